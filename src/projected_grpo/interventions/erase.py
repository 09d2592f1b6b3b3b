"""Erase: take the hack-ward component out of every update.

    g' = g - V^T relu(V g)        (gate one_sided)

on the gradient, on the optimizer's update, or on both. V is refreshed from the current policy every
`refresh_every` steps: the frozen one keeps pushing along -V long after the policy has moved on.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from projected_grpo.directions.algebra import Bases, erase_all
from projected_grpo.interventions.base import DirectionSource, Intervention, Vectors
from projected_grpo.settings.direction import DirectionSettings


class Erase(Intervention):
    """Projection off `source`'s axes, see the module docstring."""

    def __init__(self, settings: DirectionSettings, source: DirectionSource) -> None:
        self.settings = settings
        self.source = source
        self.basis: Bases = source.initial()

    def start_step(self, step: int) -> None:
        every = self.settings.refresh_every
        if every and step and step % every == 0:
            self.basis = self.source.refreshed(step)

    def gradient(self, gradients: Vectors) -> Vectors:
        if self.settings.project == "update":
            return gradients
        return erase_all(gradients, self.basis, self.settings.gate)

    def update(self, update: Vectors) -> Vectors:
        if self.settings.project == "gradient":
            return update
        # V points along gradients and the optimizer moves against them: an update is hack-ward where V u < 0.
        descent = {module: -vector for module, vector in update.items()}
        return {module: -v for module, v in erase_all(descent, self.basis, self.settings.gate).items()}

    def bases(self) -> Bases:
        return self.basis

    def state(self) -> dict[str, Tensor]:
        return dict(self.basis)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.basis = dict(state)


def build(settings: DirectionSettings | None, source: DirectionSource | None) -> Intervention:
    """The intervention of this module.

    Raises:
        ValueError: no direction settings or no source of directions.
    """
    if settings is None or source is None:
        raise ValueError("`erase` needs direction settings and a direction to act on")
    return Erase(settings, source)
