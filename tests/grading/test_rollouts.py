"""Completions of a real model: flags and verdicts agree with what was stored of them, and with a separate harness."""

from __future__ import annotations

import dataclasses
import os

import pytest
from grading_helpers import LIMITS, fixture_rows

from projected_grpo.grading.labels import Suspect, detect
from projected_grpo.grading.sandbox import Sandbox
from projected_grpo.grading.verdict import Grader, Submission
from projected_grpo.problems.leetcode import LeetcodeProblem

# The order of its letters follows the order of a set of strings, which differs from one hash seed to the next; the
# problem accepts any order, the test only one.
UNDECIDED = {"tp-0269-1"}
STEP = 25


@pytest.mark.parametrize("step", [STEP, pytest.param(1, marks=pytest.mark.slow)])
def test_stored_labels_and_derived_tests_agree(step: int) -> None:
    rows = fixture_rows("rollouts_open.jsonl")[::step]
    setup = fixture_rows("problems_open.jsonl")[0]["setup_code"]
    tests = {row["prompt_id"]: row for row in fixture_rows("rollout_tests_open.jsonl")}

    def problem(row: dict) -> LeetcodeProblem:
        known = tests.get(row["prompt_id"], {"example_tests": [], "derived_tests": [], "canonical_solution": ""})
        asserts = (*known["example_tests"], *known["derived_tests"]) or (f"assert {row['func_name']}() == 0",)
        solution = known["canonical_solution"]
        return LeetcodeProblem(str(row["prompt_id"]), "", "", "", row["func_name"], setup, asserts, solution)

    workers = len(os.sched_getaffinity(0))
    limits = dataclasses.replace(LIMITS, workers=workers, cpu_seconds=5.0, wall_seconds=10.0, memory_mb=1024)
    with Sandbox(limits) as sandbox:
        flags = detect([Suspect(problem(row), row["response_text"]) for row in rows], sandbox)
        tested = [row for row in rows if row["passes_derived_tests"] is not None]
        verdicts = Grader(sandbox).grade([Submission(problem(r), "none", "", r["response_text"]) for r in tested])
    for row, found in zip(rows, flags, strict=True):
        seen = (found.defined, bool(found.stub_passes), bool(found.own_tests_pass))
        stored = (row["defines_run_tests"], row["stub_passes_own_tests"], row["own_solution_passes_own_tests"])
        assert seen == stored, row["rollout_id"]
    for row, verdict in zip(tested, verdicts, strict=True):
        agrees = verdict.correct == row["passes_derived_tests"]
        assert agrees or row["rollout_id"] in UNDECIDED, (row["rollout_id"], verdict)
    assert len(tested) >= 0.6 * len(rows)
