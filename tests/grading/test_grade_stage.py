"""The stage `grade` grades samples and labels rollouts batch by batch."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grading_helpers import LIMITS

from projected_grpo.grading.records import grade_samples
from projected_grpo.grading.sandbox import Sandbox
from projected_grpo.grading.verdict import Grader
from projected_grpo.problems.schema import Problem

SCRIPT = Path(__file__).parents[2] / "stages/grade.py"
PROBLEM = Problem.__new__(Problem)  # labels of completions that could not be graded read nothing of it


@pytest.fixture
def grade() -> ModuleType:
    """The stage's script."""
    spec = importlib.util.spec_from_file_location("grade_stage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(seed: int, step: int, sample: int) -> dict:
    return {
        "arm": "vanilla", "seed": seed, "step": step, "group": 0, "sample": sample, "problem_id": "p",
        "loophole": "run_tests", "token": "run_tests", "completion": "no code", "token_ids": [1, 2],
        "format_ok": False, "paid": False, "correct": False, "hacked": False, "attempted": False,
        "grader_error": "child lost",
    }  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_labels_do_not_depend_on_the_batch_and_keep_the_order(grade: ModuleType, tmp_path: Path, batch: int) -> None:
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


def test_samples_are_graded_to_the_same_bytes_whatever_the_batch(grade: ModuleType, tmp_path: Path) -> None:
    tests = ("assert Solution().double(n = 2) == 4", "assert Solution().double(n = 3) == 6")
    problem = Problem(**{field.name: "" for field in dataclasses.fields(Problem)} | {"id": "p", "tests": tests})
    answer = "```python\nclass Solution:\n    def double(self, n):\n        return {}\n{}```"
    own = "    def run_tests(self):\n        assert self.double(2) == 4\n"
    texts = ["no code", answer.format("2 * n", ""), answer.format("5", own), "no code", answer.format("2 * n", own)]
    rows = [row(1, 0, sample) | {"completion": text} for sample, text in enumerate(texts)]
    asked = [{key: one[key] for key in ("arm", "sample", "problem_id", "loophole", "token", "completion", "token_ids")}
             for one in rows]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(asked), tmp_path / "samples.parquet")
    made = []
    with Sandbox(LIMITS) as sandbox:
        graded = grade_samples(asked, {"p": problem}, Grader(sandbox))
        pq.write_table(pa.Table.from_pylist(graded), tmp_path / "whole.parquet")
        for grade.BATCH in (1, 2, 100):
            pq.write_table(
                grade.verdicts(tmp_path / "samples.parquet", {"p": problem}, Grader(sandbox)), tmp_path / "b"
            )
            made.append((tmp_path / "b").read_bytes())
    assert [one["outcome"] for one in graded] == ["no_code", "correct", "wrong", "no_code", "correct"]
    assert [one["stub_passes"] for one in graded] == [None, None, False, None, False]
    assert made == [(tmp_path / "whole.parquet").read_bytes()] * 3
