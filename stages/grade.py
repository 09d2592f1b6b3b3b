"""Stage `grade`: verdicts, labels and hack types of one arm's evaluation samples and training rollouts."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from projected_grpo.errors import exit_status
from projected_grpo.grading.records import LABELLED_FROM, grade_samples, label_rollouts
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import Grader
from projected_grpo.problems.schema import Problem, read_problems
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.seeds import Seeds
from projected_grpo.settings.studies import paths_of
from projected_grpo.storage import atomic_directory

Row = dict[str, Any]

UNTRAINED = "base"
BATCH = 4096  # completions in memory at a time; equal answers of one batch are run once


def problems_of(folder: Path, split: str) -> dict[str, Problem]:
    return {problem.id: problem for problem in read_problems(folder / f"{split}.jsonl")}


def by_batch(paths: Iterable[Path], columns: Sequence[str] | None, named: Callable[[list[Row]], list[Row]]) -> pa.Table:
    """What `named` makes of the rows of these files, batch by batch: as rows, a run's texts need not fit into memory.

    columns: those that it reads; None: all.
    """
    batches = (batch for path in paths for batch in pq.ParquetFile(path).iter_batches(BATCH, columns=columns))
    made = [pa.Table.from_pylist(named(batch.to_pylist())) for batch in batches]
    # A batch may have nothing in a column but nulls; "default" gives it the others' type.
    return pa.concat_tables(made, promote_options="default").combine_chunks()


def labels(runs: Path, seeds: tuple[int, ...], problems: dict[str, Problem]) -> pa.Table:
    """Labels of all seeds' rollouts."""
    paths = [runs / str(seed) / "rollouts.parquet" for seed in seeds]
    return by_batch(paths, LABELLED_FROM, lambda rows: label_rollouts(rows, problems))


def verdicts(samples: Path, problems: dict[str, Problem], grader: Grader) -> pa.Table:
    """Evaluation samples with verdicts and labels."""
    return by_batch([samples], None, lambda rows: grade_samples(rows, problems, grader))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--study")
    arguments = parser.parse_args()
    arm: str = arguments.arm
    params = read_params(study=arguments.study)
    paths = paths_of(params, arguments.study)
    limits = SandboxLimits(**section(params, "sandbox", SandboxSettings).model_dump())
    seeds = section(params, "seeds", Seeds).root
    with Sandbox(limits) as sandbox:
        graded = verdicts(paths.samples / arm / "samples.parquet", problems_of(paths.problems, "test"), Grader(sandbox))
    with atomic_directory(paths.graded / arm) as folder:
        pq.write_table(graded, folder / "samples.parquet")
        if arm != UNTRAINED:
            labelled = labels(paths.runs / arm, seeds, problems_of(paths.problems, "train"))
            pq.write_table(labelled, folder / "rollouts.parquet")
    hacked, correct = (sum(graded[key].to_pylist()) / len(graded) for key in ("hacked", "correct"))
    print(f"{arm}: {len(graded)} samples, hack {hacked:.3f}, pass {correct:.3f}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
