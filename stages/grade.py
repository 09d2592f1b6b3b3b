"""Stage `grade`: verdicts, labels and hack types of one arm's evaluation samples and training rollouts."""

import argparse
import sys
from pathlib import Path

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

UNTRAINED = "base"
BATCH = 1024  # rollouts read at a time


def problems_of(folder: Path, split: str) -> dict[str, Problem]:
    return {problem.id: problem for problem in read_problems(folder / f"{split}.jsonl")}


def labels(runs: Path, seeds: tuple[int, ...], problems: dict[str, Problem]) -> pa.Table:
    """Labels of all seeds' rollouts, batch by batch: a run's texts and token ids need not fit into memory."""
    labelled = []
    for seed in seeds:
        for batch in pq.ParquetFile(runs / str(seed) / "rollouts.parquet").iter_batches(BATCH, columns=LABELLED_FROM):
            labelled.append(pa.Table.from_pylist(label_rollouts(batch.to_pylist(), problems)))
    # A batch without one graded row has columns of nulls only; "default" gives them the others' type.
    return pa.concat_tables(labelled, promote_options="default").combine_chunks()


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
    samples = pq.read_table(paths.samples / arm / "samples.parquet").to_pylist()
    with Sandbox(limits) as sandbox:
        graded = grade_samples(samples, problems_of(paths.problems, "test"), Grader(sandbox))
    with atomic_directory(paths.graded / arm) as folder:
        pq.write_table(pa.Table.from_pylist(graded), folder / "samples.parquet")
        if arm != UNTRAINED:
            labelled = labels(paths.runs / arm, seeds, problems_of(paths.problems, "train"))
            pq.write_table(labelled, folder / "rollouts.parquet")
    hacked, correct = (sum(row[key] for row in graded) / len(graded) for key in ("hacked", "correct"))
    print(f"{arm}: {len(graded)} samples, hack {hacked:.3f}, pass {correct:.3f}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
