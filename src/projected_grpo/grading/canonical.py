"""A problem that its own canonical solution does not solve within the limits cannot grade anyone else's answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from projected_grpo.grading.verdict import GradedProblem, Grader, Submission
from projected_grpo.grading.verdict.comparison import MalformedTest, read_test
from projected_grpo.problems.prompts import fenced


class SolvedProblem(GradedProblem, Protocol):
    """A problem with its canonical solution."""

    @property
    def canonical_solution(self) -> str: ...


Solved = TypeVar("Solved", bound=SolvedProblem)


def solvable(problems: Sequence[Solved], grader: Grader) -> tuple[list[Solved], dict[str, str]]:
    """The problems whose canonical solution is graded correct, in order, and for each other id why it is refused."""
    refused: dict[str, str] = {}
    for problem in problems:
        try:
            for text in problem.tests:
                read_test(text)
        except MalformedTest as error:
            refused[problem.id] = str(error)
    readable = [problem for problem in problems if problem.id not in refused]
    submissions = [Submission(problem, "none", "", fenced(problem.canonical_solution)) for problem in readable]
    for problem, verdict in zip(readable, grader.grade(submissions), strict=True):
        if not verdict.correct:
            refused[problem.id] = f"its canonical solution is not graded correct: {verdict.outcome}, {verdict.reason}"
    return [problem for problem in problems if problem.id not in refused], refused
