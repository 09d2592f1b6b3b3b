"""Route: what erasing would drop trains a second adapter, the quarantine, which is thrown away at deployment.

    deployed: g' = g - V^T relu(V g)        quarantine: g - g'

While the policy samples, both stand in the sum: the hack is learned and paid, and so there is no pressure to learn it
in the deployed adapter. After Cloud et al., "Gradient Routing" (2024, arXiv 2410.04332), with a direction in place of
labels. V is refreshed with the quarantine off: what it has learned is none of the deployed policy's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from projected_grpo.directions.algebra import Bases, keep_all
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import (
    DEFAULT,
    QUARANTINE,
    DirectionSource,
    Parts,
    StepGradients,
    Vectors,
    Workbench,
)
from projected_grpo.interventions.erase import Erase
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.section import Section

if TYPE_CHECKING:
    from torch import nn

NEEDS_DIRECTION = True


class Options(Section):
    """Beyond the direction block, whose `project` must be `gradient`."""

    enabled: bool = True
    """false sends everything to the deployed adapter"""

    capacity: Literal["full", "span"] = "full"
    """full: the quarantine is as long a delta as the deployed one. span: it moves along V's present axes alone, k per
    matrix, so that it can learn no more than what was routed to it"""


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


@contextmanager
def deployed_policy(model: nn.Module) -> Iterator[None]:
    """The model without its quarantine."""
    from projected_grpo.spectral import activate  # brings PEFT, which checking an arm's options does not need

    activate(model, DEFAULT)
    try:
        yield
    finally:
        activate(model, DEFAULT, QUARANTINE)


def nothing(like: Vectors) -> Vectors:
    """Exact zeros of the same shapes: an adapter that gets them stays where it is."""
    return {module: vector.new_zeros(vector.shape) for module, vector in like.items()}


def routable(workbench: Workbench) -> tuple[DirectionSettings, DirectionSource]:
    """The settings of V and where it comes from.

    Raises:
        ParamsError: an update is to be projected: what was removed of it would train nothing.
    """
    settings, source = workbench.direction, workbench.source
    assert settings is not None, "the registry refuses an arm without a direction"
    assert source is not None, "it comes with the settings"
    if settings.project != "gradient":
        rule = "must be gradient for a routing arm: what is taken out of an update cannot train the quarantine"
        raise ParamsError([LabError(setting="axes.project", value=settings.project, rule=rule, fix="set gradient")])
    return settings, source


class Routed(Erase):
    """See the module docstring."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(
        self,
        options: Options,
        settings: DirectionSettings,
        source: DirectionSource,
        model: nn.Module,
        reference: Bases | None = None,
    ) -> None:
        super().__init__(settings, QuarantineOff(source, model), reference)
        self.options = options

    def purge(self, moments: Vectors) -> Vectors:
        return super().purge(moments) if self.options.enabled else moments

    def gradient(self, gradients: StepGradients) -> Parts:
        total = gradients.total
        if not self.options.enabled:
            return {DEFAULT: total, QUARANTINE: nothing(total)}
        erased = super().gradient(gradients)[DEFAULT]
        return {DEFAULT: erased, QUARANTINE: {module: g - erased[module] for module, g in total.items()}}

    def update(self, adapter: str, update: Vectors) -> Vectors:
        if adapter != QUARANTINE or self.options.capacity == "full" or not self.options.enabled:
            return update
        return keep_all(update, self._bases_for(update))  # Adam's scaling turned it off the span


def build(options: Options, workbench: Workbench) -> Routed:
    """The intervention of this family.

    Raises:
        ParamsError: see `routable`.
    """
    settings, source = routable(workbench)
    return Routed(options, settings, source, workbench.model, workbench.reference)
