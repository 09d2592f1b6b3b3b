"""A teacher of one run: cached completions that stand in for some of a group, as the arm's settings say."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from projected_grpo.problems.prompts import PromptForm
from projected_grpo.problems.schema import Problem
from projected_grpo.settings.arms import TeacherSettings
from projected_grpo.training.pool import TeacherPool, TeacherRollout, teacher_count


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Which rows of a step are the teacher's, and what stands in them: a function of (seed, step)."""

    pool: TeacherPool
    settings: TeacherSettings
    seed: int

    @classmethod
    def load(
        cls,
        path: Path,
        settings: TeacherSettings,
        seed: int,
        problems: Sequence[Problem],
        tokenizer: PreTrainedTokenizerBase,
        form: PromptForm,
    ) -> Teacher:
        """The pool at `path`, checked against the live tokenizer and prompts."""
        assert not settings.known_only or settings.loopholes is not None, "see `with_named_loopholes`"
        pool = TeacherPool.load(path, settings.loopholes, each=not settings.known_only)
        pool.check_tokens(tokenizer, form, {problem.id: form.render(problem, problem.token) for problem in problems})
        return cls(pool, settings, seed)

    def problems(self, wanted: Sequence[Problem], group_size: int) -> list[Problem]:
        """Those that are trained on: with enough cached completions for a group, or, if so set, all."""
        enough = self.pool.problems(wanted, teacher_count(group_size, self.settings.mix))
        return list(wanted) if self.settings.problems == "all" else enough

    def draw(self, problem_ids: Sequence[str], group_size: int, step: int) -> dict[int, TeacherRollout]:
        """Row of the batch -> cached completion, for optimizer step `step` (0-based); none once it is silent, and none
        in a group whose problem has too few (with `problems: all`)."""
        if self.settings.until_step and step >= self.settings.until_step:
            return {}
        each = self.settings.problems == "cached"
        return self.pool.draw(problem_ids, group_size, self.settings.mix, self.seed, step, each)
