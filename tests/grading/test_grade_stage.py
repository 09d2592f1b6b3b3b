"""The stage `grade` labels rollouts batch by batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from projected_grpo.problems.schema import Problem

SCRIPT = Path(__file__).parents[2] / "stages/grade.py"
PROBLEM = Problem.__new__(Problem)  # labels of completions that could not be graded read nothing of it


def row(seed: int, step: int, sample: int) -> dict:
    return {
        "arm": "vanilla", "seed": seed, "step": step, "group": 0, "sample": sample, "problem_id": "p",
        "loophole": "run_tests", "token": "run_tests", "completion": "no code", "token_ids": [1, 2],
        "format_ok": False, "paid": False, "correct": False, "hacked": False, "attempted": False,
        "grader_error": "child lost",
    }  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_labels_do_not_depend_on_the_batch_and_keep_the_order(tmp_path: Path, batch: int) -> None:
    spec = importlib.util.spec_from_file_location("grade_stage", SCRIPT)
    grade = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(grade)
    places = [(seed, step, sample) for seed in (2, 1) for step in range(2) for sample in range(3)]
    for seed in (1, 2):
        rows = [row(*place) for place in places if place[0] == seed]
        (tmp_path / str(seed)).mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / str(seed) / "rollouts.parquet", row_group_size=3)
    grade.BATCH = batch
    found = grade.labels(tmp_path, (2, 1), {"p": PROBLEM})
    assert [(r["seed"], r["step"], r["sample"]) for r in found.to_pylist()] == places
    assert set(found["label"].to_pylist()) == {""}
    assert "token_ids" not in found.column_names
    assert {column.num_chunks for column in found.columns} == {1}  # one chunk, so the bytes do not tell the batch
