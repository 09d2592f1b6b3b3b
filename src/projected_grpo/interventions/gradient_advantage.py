"""Advantage modification by gradients: the discount of `advantage`, with a rollout's own gradient as its score.

u_i is the gradient of rollout i's loss at advantage 1, i.e. of reinforcing it. +V is the gradient of an update that
rewards hacking, so reinforcing a hack has a positive cosine with it:
    s_i = cos(u_i, d),   d the mean pair difference (`signed`), or ||relu(V u_i)|| / ||u_i|| (`share`),
          or what the guard reads, 0 the mean clean answer and 1 the mean hack (`discriminant`)
All u_i come out of the one backward pass of the step, and the loss is linear in the advantages; so rewards are
discounted after the backward pass, and g' = sum_i A'_i u_i is put together at the cost of one weighted sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from projected_grpo.directions.algebra import Bases, Frames, alignment_rows, beside, cosine_rows
from projected_grpo.interventions.advantage import Form, discounted, one_sided_z
from projected_grpo.interventions.base import (
    DEFAULT,
    Intervention,
    Parts,
    Rollouts,
    StepGradients,
    Vectors,
    Workbench,
)
from projected_grpo.interventions.reading import READS, DiscriminantOptions, Reader, check_axes_read, check_paired
from projected_grpo.settings.section import Positive

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

NEEDS_DIRECTION = True
NEEDS_ROLLOUT_GRADIENTS = "unit"

READ_BY = {"signed": frozenset(), "share": frozenset({"k", "noise_floor", "mean_diff"}), "discriminant": READS}
READS_AXES = frozenset().union(*READ_BY.values())
FLOOR = 0.125  # of the discriminant's readings: about what clean answers vary by


class Options(DiscriminantOptions):
    """The discount, and how a gradient is read."""

    form: Form = "multiplicative"
    """how the reward is discounted"""

    alpha: Annotated[float, Field(ge=0.0)] = 2.0
    """strength of the discount; 0 is off"""

    reading: Literal["signed", "share", "discriminant"] = "signed"
    """signed: cosine with the mean pair difference; share: the hack-ward share of the gradient, with V; discriminant:
    that of the guard, fitted anew at each refresh"""

    floor: Positive | None = None
    """least spread of a group's scores that counts; null: 0.125 where reading is discriminant, else what the cosine of
    two isotropic directions varies by"""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        self.refuse_ridge_of(self.reading)
        return self


class GradientAdvantage(Intervention):
    """V and the mean difference are those of the untrained policy."""

    def __init__(self, options: Options, means: Vectors, bases: Bases) -> None:
        self.options = options
        self.unit_rollouts = options.alpha > 0
        self.means = means
        self.frames = Frames(bases)
        # What the cosine of two isotropic directions varies by: 1 / sqrt(sum r).
        self.floor = options.floor or sum(mean.numel() for mean in means.values()) ** -0.5
        self._rewards: list[float] = []
        self._graded: tuple[bool, ...] = ()
        self._group_size = 1
        self._weights: list[float] | None = None
        self._scores: list[float] | None = None
        self._flagged = 0.0

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        self._rewards, self._group_size = list(rewards), rollouts.group_size
        self._graded = rollouts.graded or (True,) * len(rollouts)
        return list(rewards)

    def gradient(self, gradients: StepGradients) -> Parts:
        if not self.unit_rollouts:
            return {DEFAULT: gradients.total}
        scores = self.read(gradients.unit).float().cpu()
        z = one_sided_z(scores, self._group_size, self.floor)
        self._scores, self._flagged = scores.tolist(), float((z > 0).float().mean())
        rewards = torch.tensor(discounted(self._rewards, z.tolist(), self.options.form, self.options.alpha))
        advantages = self._advantages(rewards)
        self._weights = advantages.tolist()
        return {DEFAULT: {module: advantages.to(u) @ u for module, u in gradients.unit.items()}}

    def read(self, unit: Vectors) -> Tensor:
        """Score of each rollout, (n,)."""
        if self.options.reading == "signed":
            device = next(iter(unit.values())).device
            return cosine_rows(unit, {module: mean.to(device) for module, mean in self.means.items()})
        return alignment_rows(unit, beside(self.frames, unit))

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Discounted rewards less their group's mean, (n,); a completion that could not be graded counts in none."""
        groups = torch.where(torch.tensor(self._graded), rewards, torch.nan).view(-1, self._group_size)
        return torch.nan_to_num(groups - groups.nanmean(1, keepdim=True)).flatten()

    def weights(self) -> list[float] | None:
        """The discounted advantages."""
        return self._weights

    def scores(self) -> list[float] | None:
        return self._scores

    def figures(self) -> dict[str, float]:
        return super().figures() | {"flagged": self._flagged}


class DiscriminantAdvantage(GradientAdvantage):
    """Its readings are a `Reader`'s, which also has what a checkpoint must hold."""

    def __init__(self, options: Options, means: Vectors, bases: Bases, reader: Reader) -> None:
        super().__init__(options, means, bases)
        self.floor = options.floor or FLOOR
        self.reader = reader

    def start_step(self, step: int) -> None:
        self.reader.start_step(step)

    def read(self, unit: Vectors) -> Tensor:
        return self.reader.read(unit)

    def figures(self) -> dict[str, float]:
        return self.reader.figures() | {"flagged": self._flagged}

    def state(self) -> dict[str, Tensor]:
        return self.reader.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.reader.load_state(state)


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what the reading cannot be made from, or does without.

    Raises:
        ParamsError: the discriminant has no pairs to learn from, or an axis is set that would be ignored.
    """
    del direction
    if options.reading == "discriminant":
        check_paired(arm)
    check_axes_read(options.reading, arm, READ_BY)


def build(options: Options, workbench: Workbench) -> Intervention:
    """The intervention of this family. `grpo.kl_beta` must be 0: a rollout's gradient would hold its penalty."""
    means, source = workbench.means, workbench.source
    assert means is not None, "the registry refuses an arm without a direction"
    assert source is not None, "it comes with the means"
    if options.reading == "discriminant":
        return DiscriminantAdvantage(
            options, means, source.initial(), Reader(workbench, options.alpha > 0, options.ridge)
        )
    return GradientAdvantage(options, means, source.initial())
