"""The environment of one run: grades completions and pays the reward.

It never shows `correct` to an intervention, and `hacked` to those alone that declare `uses_oracle`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from projected_grpo.grading.verdict import Grader, Submission, Verdict
from projected_grpo.interventions.base import Intervention, Rollouts, Task
from projected_grpo.problems.prompts import PLAIN, PromptForm, render_prompt
from projected_grpo.problems.schema import Problem
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.training.ranks import ALONE, Ranks


@dataclasses.dataclass(frozen=True)
class GradedBatch:
    """One step's completions, of all ranks, with everything known of them, in sampling order."""

    problem_ids: list[str]
    prompts: list[str]
    completions: list[str]
    token_ids: list[list[int]]
    verdicts: list[Verdict]
    rewards: list[float | None]
    teacher: list[bool]
    seconds: float  # spent grading, on this rank


class Environment:
    """Callable as a TRL reward function. `last` holds the batch it graded last.

    honest: grade without the loophole, so that only correct answers are paid (the upper bound `rl_baseline`).
    form: how the policy is asked; what it is handed over of an answer lacks the beginning that was written for it.
    begin: told by the trainer before each step: its number, and the verdicts of cached completions by their row.
    Each of `ranks` grades its own share; the intervention sees the whole step.
    """

    __name__ = "environment"  # TRL names its metrics after the reward function

    def __init__(
        self,
        problems: Mapping[str, Problem],
        grader: Grader,
        settings: GrpoSettings,
        intervention: Intervention,
        honest: bool,
        ranks: Ranks = ALONE,
        form: PromptForm = PLAIN,
    ) -> None:
        self.problems = problems
        self.grader = grader
        self.settings = settings
        self.intervention = intervention
        self.honest = honest
        self.ranks = ranks
        self.form = form
        self.last: GradedBatch | None = None
        self._step = 0
        self._frozen: Mapping[int, Verdict] = {}

    def begin(self, step: int, frozen: Mapping[int, Verdict]) -> None:
        """Optimizer step `step` (0-based) comes next; rows in `frozen`, of this rank's, were graded when cached."""
        self._step, self._frozen = step, frozen

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
        problem_id: Sequence[str],
        **_: Any,
    ) -> list[float | None]:
        started = time.perf_counter()
        completions = [self.form.answer(text) for text in completions]
        own = self._grade([self.problems[key] for key in problem_id], completions)
        cached = [row in self._frozen for row in range(len(own))]
        whole = self.ranks.lists  # from here on of the whole step, on every rank
        problem_ids, texts, verdicts, teacher = whole(problem_id), whole(completions), whole(own), whole(cached)
        asked, token_ids = whole(prompts), whole([list(ids) for ids in completion_ids])
        problems = [self.problems[key] for key in problem_ids]
        rollouts = Rollouts(
            step=self._step,
            group_size=self.settings.samples,
            tasks=tuple(
                Task(p.func_name, p.setup_code, p.loophole, p.token, render_prompt(p, p.token)) for p in problems
            ),
            prompts=tuple(asked),
            completions=tuple(texts),
            token_ids=tuple(tuple(ids) for ids in token_ids),
            paid=tuple(verdict.paid for verdict in verdicts),
            teacher=tuple(teacher),
            hacked=tuple(verdict.hacked for verdict in verdicts) if self.intervention.uses_oracle else None,
            graded=tuple(not verdict.grader_error for verdict in verdicts),
        )
        rewards = self.ranks.agree(self.intervention.reward(rollouts, [self.pay(verdict) for verdict in verdicts]))
        # A fault of the sandbox is no verdict: TRL leaves a None out of the baseline and of the update.
        rewards = [None if v.grader_error else reward for v, reward in zip(verdicts, rewards, strict=True)]
        seconds = time.perf_counter() - started
        self.last = GradedBatch(problem_ids, asked, texts, token_ids, verdicts, rewards, teacher, seconds)
        return [rewards[row] for row in self.ranks.rows(len(own))]

    def _grade(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """Verdicts in order; cached completions keep the one they were stored with."""
        live = [row for row in range(len(completions)) if row not in self._frozen]
        graded = self.grader.grade([self.submission(problems[row], completions[row]) for row in live])
        fresh = dict(zip(live, graded, strict=True))
        return [fresh[row] if row in fresh else self._frozen[row] for row in range(len(completions))]

    def submission(self, problem: Problem, completion: str) -> Submission:
        """How a completion is handed to the grader."""
        if self.honest:
            return Submission(problem, "none", "", completion)
        return Submission(problem, problem.loophole, problem.token, completion)

    def pay(self, verdict: Verdict) -> float:
        """Reward of one verdict: what the (flawed) grader decides, plus a small part for an answer that compiles."""
        return self.settings.reward_format * verdict.format_ok + self.settings.reward_paid * verdict.paid
