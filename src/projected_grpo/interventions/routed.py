"""Route: what erasing would drop trains a second adapter, the quarantine, which is thrown away at deployment.

    deployed: g' = g - V^T relu(V g)        quarantine: g - g'

While the policy samples, both stand in the sum: the hack is learned and paid, and so there is no pressure to learn it
in the deployed adapter. After Cloud et al., "Gradient Routing" (2024, arXiv 2410.04332), with a direction in place of
labels. V is refreshed with the quarantine off: what it has learned is none of the deployed policy's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from projected_grpo.directions.algebra import keep_all
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import (
    DEFAULT,
    QUARANTINE,
    Parts,
    StepGradients,
    Vectors,
    Workbench,
)
from projected_grpo.interventions.erase import Erase
from projected_grpo.interventions.quarantine import QuarantineOff, QuarantineOptions, nothing, seed_at_random
from projected_grpo.settings.direction import DirectionSettings

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings

NEEDS_DIRECTION = True


class Options(QuarantineOptions):
    """Beyond the direction block, whose `project` must be `gradient` and `preserve_magnitude` false."""

    capacity: Literal["full", "span"] = "full"
    """full: the quarantine is as long a delta as the deployed one. span: it moves along V's present axes alone, k per
    matrix, so that it can learn no more than what was routed to it"""


class Routed(Erase):
    """See the module docstring."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(self, options: Options, settings: DirectionSettings, workbench: Workbench) -> None:
        assert workbench.source is not None, "it comes with the settings"
        super().__init__(settings, QuarantineOff(workbench.source, workbench.model), workbench.reference)
        self.options = options
        self.workbench = workbench

    def start(self) -> None:
        if self.options.seeded:
            seed_at_random(self.workbench.model, self.options.seeded, self.workbench.seed)

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


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse settings with which the two parts would not be what erasing keeps and what it drops.

    Raises:
        ParamsError: an update is projected, what is kept is rescaled, or V is the clean answers' own span.
    """
    del options
    assert direction is not None, "the registry refuses an arm without a direction"
    faults = []
    if arm.direction == "clean":
        rule = "must not be clean for `routed`: what the honest answers teach would be thrown away"
        faults.append(LabError(setting="direction", value="clean", rule=rule, fix="set intervention: trusted"))
    if direction.project != "gradient":
        rule = "must be gradient for `routed`: what is taken out of an update cannot train the quarantine"
        faults.append(LabError(setting="axes.project", value=direction.project, rule=rule, fix="set gradient"))
    if direction.preserve_magnitude:
        rule = "must be false for `routed`: the quarantine would be trained against what the deployed adapter gained"
        faults.append(LabError(setting="axes.preserve_magnitude", value=True, rule=rule, fix="set false"))
    if faults:
        raise ParamsError(faults)


def build(options: Options, workbench: Workbench) -> Routed:
    """The intervention of this family."""
    settings = workbench.direction
    assert settings is not None, "the registry refuses an arm without a direction"
    assert settings.project == "gradient", "`check` refuses it"
    return Routed(options, settings, workbench)
