"""What the arms with a quarantine share: a second adapter beside the deployed one, thrown away at deployment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from pydantic import model_validator

from projected_grpo.directions.algebra import total_norm
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, DirectionSource, Vectors
from projected_grpo.settings.section import NonNegative, Section, broken_rule

if TYPE_CHECKING:
    from torch import nn

    from projected_grpo.directions.algebra import Bases


class QuarantineOptions(Section):
    """Whether anything is routed, and where the quarantine begins."""

    enabled: bool = True
    """false sends everything to the deployed adapter"""

    seeded: NonNegative = 0.0
    """Euclidean norm of the quarantine's first delta, over all modules together and in a random direction; with 0 it
    begins at zero, as the deployed adapter does"""

    @model_validator(mode="after")
    def _off_is_off(self) -> Self:
        if self.seeded and not self.enabled:
            rule = "must be 0 where enabled is false: the policy would sample with what it never trains"
            raise broken_rule("seeded", self.seeded, rule, "set seeded: 0, or enabled: true")
        return self


@torch.no_grad()
def seed_at_random(model: nn.Module, norm: float, seed: int) -> None:
    """Give the quarantine a delta of this norm, isotropic over all modules together: a function of `seed`."""
    from projected_grpo.spectral import deltas  # brings PEFT, which checking an arm's options does not need

    generator = torch.Generator().manual_seed(seed)
    begun = deltas(model, QUARANTINE)
    drawn = {module: torch.randn(begun[module].shape, generator=generator) for module in sorted(begun)}
    length = total_norm(drawn)
    for module, delta in begun.items():
        delta.copy_(drawn[module] * (norm / length))


@contextmanager
def deployed_policy(model: nn.Module) -> Iterator[None]:
    """The model without its quarantine."""
    from projected_grpo.spectral import activate  # brings PEFT, which checking an arm's options does not need

    activate(model, DEFAULT)
    try:
        yield
    finally:
        activate(model, DEFAULT, QUARANTINE)


class QuarantineOff:
    """A source whose refreshes see the deployed policy alone."""

    def __init__(self, source: DirectionSource, model: nn.Module) -> None:
        self.source = source
        self.model = model

    @property
    def independent(self) -> bool:
        return self.source.independent

    def initial(self) -> Bases:
        return self.source.initial()

    def refreshed(self, step: int) -> Bases:
        with deployed_policy(self.model):
            return self.source.refreshed(step)


def nothing(like: Vectors) -> Vectors:
    """Exact zeros of the same shapes: an adapter that gets them stays where it is."""
    return {module: vector.new_zeros(vector.shape) for module, vector in like.items()}
