"""Route whole completions: one whose own gradient reads as a hack's trains the quarantine, not the deployed adapter.

With s_i the reading of completion i's own gradient (0: the mean clean answer, 1: the mean hack), where A_i > 0:
    s_i <= low: deployed adapter only        s_i > high: quarantine only        between: both
The band between lets both learn what nobody can tell, so that the deployed adapter is not starved by a reading that
is unsure: gradient routing, too, leaves data without a label to both sides (Cloud et al. 2024, arXiv 2410.04332).

Only what is reinforced is routed. A punished completion trains the deployed adapter whatever it reads: to punish a hack
in the quarantine would throw the lesson away with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from projected_grpo.directions.discriminant import Discriminant
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, Parts, StepGradients, Workbench
from projected_grpo.interventions.quarantine import deployed_policy, nothing
from projected_grpo.interventions.reading import READS, Reader, check_paired
from projected_grpo.settings.section import Section, broken_rule

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

NEEDS_DIRECTION = True
NEEDS_ROLLOUT_GRADIENTS = True
READS_AXES = READS


class Options(Section):
    """From where on a completion is routed. Of the direction block `refresh_every` alone is read."""

    enabled: bool = True
    """false sends everything to the deployed adapter"""

    low: float = 0.25
    """reading up to which a reinforced completion trains the deployed adapter alone: 0 is the mean clean answer"""

    high: float = 0.5
    """reading above which it trains the quarantine alone: 1 is the mean hack; at least `low`"""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise broken_rule("high", self.high, f"must be at least low, {self.low}", "raise high, or lower low")
        return self


class RolloutRouted(Reader):
    """See the module docstring."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(self, options: Options, workbench: Workbench) -> None:
        super().__init__(workbench, options.enabled)
        self.options = options

    def _refit(self) -> Discriminant:
        with deployed_policy(self.workbench.model):  # what the quarantine has learned is none of the deployed policy's
            return self._fit()

    def gradient(self, gradients: StepGradients) -> Parts:
        total, rows = gradients.total, gradients.rollouts
        if not self.options.enabled:
            return {DEFAULT: total, QUARANTINE: nothing(total)}
        readings = self.read(gradients)
        reinforced = gradients.advantages.to(readings) > 0
        away = reinforced & (readings > self.options.high)
        learned = reinforced & (readings > self.options.low)  # by the quarantine: what is shared, and what is sent away
        self._scores, self._flagged = readings.tolist(), float(away.double().mean())
        # Nothing sent away: the very gradient of the plain arm.
        deployed = {m: g - rows[m][away].sum(0) for m, g in total.items()} if away.any() else total
        return {DEFAULT: deployed, QUARANTINE: {module: rows[module][learned].sum(0) for module in total}}


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what this family cannot be built from.

    Raises:
        ParamsError: a direction without two sides of pairs.
    """
    del options, direction
    check_paired(arm)


def build(options: Options, workbench: Workbench) -> RolloutRouted:
    """The intervention of this family."""
    return RolloutRouted(options, workbench)
