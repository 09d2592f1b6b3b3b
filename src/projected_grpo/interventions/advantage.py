"""Advantage modification: completions whose hidden states look like hacks earn less than their group's others.

After Wu & Tang (2026, arXiv 2604.01476). A completion's concept score s is compared within its group,
    z = relu((s - mean) / max(sd, floor)),
and its reward is discounted before the group baseline is taken:
    additive:        r' = r - alpha z
    multiplicative:  r' = r / (1 + alpha z)
Known of the source: mean-difference concepts at 60-75 % depth, the one-sided z-score with a floor of 0.1, both forms,
alpha 2, and that it comes before the normalisation. The multiplicative formula itself is ours: a discount that never
changes a reward's sign. A reward below 0 is multiplied instead, so that a discount never pays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from projected_grpo.directions.concept import DEPTHS, KINDS, Concept, concept, hidden_means
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import Intervention, Rollouts, Workbench
from projected_grpo.settings.section import Positive, Rate, Section, broken_rule

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

NEEDS_DIRECTION = True
READS_AXES: frozenset[str] = frozenset()

Form = Literal["multiplicative", "additive"]


class Depths(Section):
    """Where the concept is read."""

    depth_low: Rate = DEPTHS[0]
    """blocks from this share of the model's depth ..."""

    depth_high: Rate = DEPTHS[1]
    """... to this one are read"""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.depth_low > self.depth_high:
            rule = f"must not exceed depth_high ({self.depth_high})"
            raise broken_rule("depth_low", self.depth_low, rule, "lower depth_low, or raise depth_high")
        return self


class Options(Depths):
    """The discount, and where the concept is read."""

    form: Form = "multiplicative"
    """how the reward is discounted"""

    alpha: Annotated[float, Field(ge=0.0)] = 2.0
    """strength of the discount; 0 is off"""

    floor: Positive = 0.1
    """least spread of a group's scores that counts, in standard deviations of the clean texts' scores"""


def one_sided_z(scores: Tensor, group_size: int, floor: float) -> Tensor:
    """relu((s - mean) / max(sd, floor)) within each group of neighbours, (n,)."""
    groups = scores.view(-1, group_size)
    sd = groups.std(1, correction=0, keepdim=True).clamp_min(floor)
    return ((groups - groups.mean(1, keepdim=True)) / sd).clamp_min(0).flatten()


def discounted(rewards: Sequence[float], z: Sequence[float], form: Form, alpha: float) -> list[float]:
    """Each reward less what its z-score costs; see the module docstring."""
    if form == "additive":
        return [reward - alpha * score for reward, score in zip(rewards, z, strict=True)]
    factors = [1 + alpha * score for score in z]
    return [r / factor if r >= 0 else r * factor for r, factor in zip(rewards, factors, strict=True)]


class Advantage(Intervention):
    """Scores by the concept of the untrained policy; the source finds its direction unchanged by training."""

    def __init__(self, options: Options, workbench: Workbench) -> None:
        self.options = options
        self.model, self.tokenizer, self.at_once = workbench.model, workbench.tokenizer, workbench.texts_per_forward
        assert workbench.kind is not None, "the registry refuses an arm without a direction"
        depths = (options.depth_low, options.depth_high)
        # Extracted from the base in any case: a run that resumes is built from the base, too.
        self.concept: Concept = concept(
            self.model, self.tokenizer, workbench.pairs, workbench.kind, workbench.seed, depths, self.at_once
        )
        self._scores: list[float] | None = None
        self._flagged = 0.0

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        if not self.options.alpha:
            return list(rewards)
        states = hidden_means(
            self.model, self.tokenizer, rollouts.prompts, rollouts.token_ids, self.concept.layers, self.at_once
        )
        scores = self.concept.score(states).cpu()
        z = one_sided_z(scores, rollouts.group_size, self.options.floor)
        self._scores, self._flagged = scores.tolist(), float((z > 0).float().mean())
        return list(discounted(rewards, z.tolist(), self.options.form, self.options.alpha))

    def scores(self) -> list[float] | None:
        return self._scores

    def figures(self) -> dict[str, float]:
        return super().figures() | {"flagged": self._flagged}

    def state(self) -> dict[str, Tensor]:
        return {"vectors": self.concept.vectors, "spread": torch.tensor(self.concept.spread, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.concept = dataclasses.replace(self.concept, vectors=state["vectors"], spread=float(state["spread"]))


def check(options: Depths, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse a direction that no concept is learned from, for every arm that reads or projects concepts.

    Raises:
        ParamsError: the clean answers' span, which has no two sides to differ.
    """
    del options, direction
    if arm.direction not in KINDS:
        rule = f"must be one of {', '.join(KINDS)} for `{arm.intervention}`: a concept is the difference of two sides"
        raise ParamsError([LabError(setting="direction", value=arm.direction, rule=rule, fix="set one of them")])


def build(options: Options, workbench: Workbench) -> Intervention:
    """The intervention of this family."""
    return Advantage(options, workbench)
