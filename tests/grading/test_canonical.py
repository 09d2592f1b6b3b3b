"""Problems are refused that their own canonical solution does not solve."""

from __future__ import annotations

import dataclasses

import pytest
from grading_helpers import LIMITS, SmallProblem, fixture_path

from projected_grpo.grading.canonical import solvable
from projected_grpo.grading.sandbox import Sandbox
from projected_grpo.grading.verdict import Grader
from projected_grpo.problems.leetcode import read_leetcode

LOAD = dataclasses.replace(LIMITS, workers=2, cpu_seconds=10.0, wall_seconds=20.0, memory_mb=1024)


def test_a_problem_is_kept_or_refused_with_the_reason() -> None:
    loop = "class Solution:\n    def double(self, n):\n        while True: pass\n"
    problems = [
        SmallProblem("slow", canonical_solution=loop),
        SmallProblem("good"),
        SmallProblem("wrong", tests=("assert Solution().double(n = 3) == 7",)),
        SmallProblem("unreadable", tests=("assert Solution().double(n = 3) > 7",)),
    ]
    with Sandbox(dataclasses.replace(LIMITS, wall_seconds=60.0)) as patient:  # so that a busy host decides nothing
        kept, refused = solvable(problems, Grader(patient))
    assert [problem.id for problem in kept] == ["good"]
    assert set(refused) == {"slow", "wrong", "unreadable"}
    assert "timeout, more than 1 s of CPU time" in refused["slow"]
    assert "test 1 of 1: int differs from the expected value" in refused["wrong"]
    assert "assert <call> == <literal>" in refused["unreadable"]


@pytest.mark.parametrize(
    ("name", "count"), [("problems_benchmark_format", 8), pytest.param("problems_open", 83, marks=pytest.mark.slow)]
)
def test_real_problems_are_all_accepted(name: str, count: int) -> None:
    """`pow` with a modulus, expected -inf, float tolerance and slow canonical solutions among them."""
    problems = read_leetcode(fixture_path(f"{name}.jsonl"))
    with Sandbox(LOAD) as sandbox:
        kept, refused = solvable(problems, Grader(sandbox))
    assert refused == {}
    assert len(kept) == count
