"""The environment of one run: grades completions and pays the reward. It never shows `correct` to an intervention."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from projected_grpo.grading.verdict import Grader, Submission, Verdict
from projected_grpo.interventions.base import Intervention
from projected_grpo.problems.schema import Problem
from projected_grpo.settings.grpo import GrpoSettings


@dataclasses.dataclass(frozen=True)
class GradedBatch:
    """One step's completions with everything known of them, in sampling order."""

    problem_ids: list[str]
    prompts: list[str]
    completions: list[str]
    token_ids: list[list[int]]
    verdicts: list[Verdict]
    rewards: list[float | None]
    seconds: float  # spent grading


class Environment:
    """Callable as a TRL reward function. `last` holds the batch it graded last.

    honest: grade without the loophole, so that only correct answers are paid (the upper bound `rl_baseline`).
    """

    __name__ = "environment"  # TRL names its metrics after the reward function

    def __init__(
        self,
        problems: Mapping[str, Problem],
        grader: Grader,
        settings: GrpoSettings,
        intervention: Intervention,
        honest: bool,
    ) -> None:
        self.problems = problems
        self.grader = grader
        self.settings = settings
        self.intervention = intervention
        self.honest = honest
        self.last: GradedBatch | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        problem_id: Sequence[str],
        **_: Any,
    ) -> list[float | None]:
        started = time.perf_counter()
        submissions = [
            self.submission(self.problems[key], text) for key, text in zip(problem_id, completions, strict=True)
        ]
        verdicts = self.grader.grade(submissions)
        paid = [verdict.paid for verdict in verdicts]
        rewards = self.intervention.reward(completions, paid, [self.pay(verdict) for verdict in verdicts])
        # A fault of the sandbox is no verdict: TRL leaves a None out of the baseline and of the update.
        rewards = [None if v.grader_error else reward for v, reward in zip(verdicts, rewards, strict=True)]
        self.last = GradedBatch(
            list(problem_id),
            list(prompts),
            list(completions),
            [list(ids) for ids in completion_ids],
            verdicts,
            rewards,
            time.perf_counter() - started,
        )
        return rewards

    def submission(self, problem: Problem, completion: str) -> Submission:
        """How a completion is handed to the grader."""
        if self.honest:
            return Submission(problem, "none", "", completion)
        return Submission(problem, problem.loophole, problem.token, completion)

    def pay(self, verdict: Verdict) -> float:
        """Reward of one verdict: what the (flawed) grader decides, plus a small part for an answer that compiles."""
        return self.settings.reward_format * verdict.format_ok + self.settings.reward_paid * verdict.paid
