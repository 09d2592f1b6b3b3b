"""What the arms with a quarantine share: a second adapter beside the deployed one, thrown away at deployment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from projected_grpo.interventions.base import DEFAULT, QUARANTINE, DirectionSource, Vectors

if TYPE_CHECKING:
    from torch import nn

    from projected_grpo.directions.algebra import Bases


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
