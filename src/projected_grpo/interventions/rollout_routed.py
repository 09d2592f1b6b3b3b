"""Route whole completions: one whose own gradient reads as a hack's trains the quarantine, not the deployed adapter.

With s_i the reading of completion i's own gradient, where A_i > 0:
    s_i <= low: deployed adapter only        s_i > high: quarantine only        between: both
The band between lets both learn what nobody can tell, so that the deployed adapter is not starved by a reading that
is unsure: gradient routing, too, leaves data without a label to both sides (Cloud et al. 2024, arXiv 2410.04332).

Read is either with the guard's discriminant (0: the mean clean answer, 1: the mean hack), or by the alignment with V,
||relu(V u_i)|| / ||u_i||, in standard deviations from what an isotropic gradient has: its null band.

Only what is reinforced is routed. A punished completion trains the deployed adapter whatever it reads: to punish a hack
in the quarantine would throw the lesson away with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator
from torch import Tensor

from projected_grpo.directions.algebra import Bases
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, Intervention, Parts, StepGradients, Workbench
from projected_grpo.interventions.quarantine import (
    QuarantineOff,
    QuarantineOptions,
    deployed_policy,
    nothing,
    seed_at_random,
)
from projected_grpo.interventions.reading import (
    READS,
    AlignedReader,
    DiscriminantOptions,
    Reader,
    as_reinforced,
    check_axes_read,
    check_paired,
)
from projected_grpo.settings.section import broken_rule

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

NEEDS_DIRECTION = True
NEEDS_ROLLOUT_GRADIENTS = True
READ_BY = {"discriminant": READS, "share": READS | {"k", "noise_floor", "mean_diff", "random_redraw"}}
READS_AXES = frozenset().union(*READ_BY.values())
BANDS = {"discriminant": (0.25, 0.5), "share": (-2.0, 2.0)}


class Options(QuarantineOptions, DiscriminantOptions):
    """How a completion is read, and from where on it is routed."""

    reading: Literal["discriminant", "share"] = "discriminant"
    """discriminant: that of the guard, 0 the mean clean answer and 1 the mean hack. share: the hack-ward share of the
    gradient, with V, in standard deviations from the mean of an isotropic gradient. Both are renewed at each refresh"""

    low: float | None = None
    """reading up to which a reinforced completion trains the deployed adapter alone; null: 0.25 where reading is
    discriminant, -2 where it is share"""

    high: float | None = None
    """reading above which it trains the quarantine alone, at least `low`; null: 0.5 where reading is discriminant, 2
    where it is share"""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.band
        if high < low:
            raise broken_rule("high", high, f"must be at least low, {low}", "raise high, or lower low")
        self.refuse_ridge_of(self.reading)
        return self

    @property
    def band(self) -> tuple[float, float]:
        """(low, high) in use."""
        low, high = BANDS[self.reading]
        return low if self.low is None else self.low, high if self.high is None else self.high


class RolloutRouted(Intervention):
    """See the module docstring. Its readings are the reader's, which also has what a checkpoint must hold."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(self, options: Options, workbench: Workbench, reader: Reader | AlignedReader) -> None:
        self.options = options
        self.workbench = workbench
        self.reader = reader
        self._scores: list[float] | None = None
        self._flagged = 0.0

    def start(self) -> None:
        if self.options.seeded:
            seed_at_random(self.workbench.model, self.options.seeded, self.workbench.seed)

    def start_step(self, step: int) -> None:
        self.reader.start_step(step)

    def gradient(self, gradients: StepGradients) -> Parts:
        total, rows = gradients.total, gradients.rollouts
        if not self.options.enabled:
            return {DEFAULT: total, QUARANTINE: nothing(total)}
        readings = self.reader.read(as_reinforced(gradients))
        low, high = self.options.band
        reinforced = gradients.advantages.to(readings) > 0
        away = reinforced & (readings > high)
        learned = reinforced & (readings > low)  # by the quarantine: what is shared, and what is sent away
        self._scores, self._flagged = readings.tolist(), float(away.double().mean())
        # Nothing sent away: the very gradient of the plain arm.
        deployed = {m: g - rows[m][away].sum(0) for m, g in total.items()} if away.any() else total
        return {DEFAULT: deployed, QUARANTINE: {module: rows[module][learned].sum(0) for module in total}}

    def bases(self) -> Bases | None:
        return self.reader.bases()

    def scores(self) -> Sequence[float] | None:
        return self._scores

    def figures(self) -> dict[str, float]:
        return self.reader.figures() | {"flagged": self._flagged}

    def state(self) -> dict[str, Tensor]:
        return self.reader.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.reader.load_state(state)


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what the reading cannot be made from, or does without.

    Raises:
        ParamsError: a direction without two sides of pairs, the clean answers' own span, or an axis that would be
            ignored.
    """
    del direction
    if options.reading == "discriminant":
        check_paired(arm, "set one of them, or options.reading: share")
    elif arm.direction == "clean":
        rule = "must not be clean for `rollout_routed`: what solves a problem would be thrown away"
        raise ParamsError([LabError(setting="direction", value="clean", rule=rule, fix="set direction: hack")])
    check_axes_read(options.reading, arm, READ_BY)


def build(options: Options, workbench: Workbench) -> RolloutRouted:
    """The intervention of this family. Refreshes see the deployed policy alone."""
    if options.reading == "discriminant":
        off = partial(deployed_policy, workbench.model)
        return RolloutRouted(options, workbench, Reader(workbench, options.enabled, options.ridge, off))
    settings, source = workbench.direction, workbench.source
    assert settings is not None, "the registry refuses an arm without a direction"
    assert source is not None, "it comes with the settings"
    reader = AlignedReader(settings, QuarantineOff(source, workbench.model), options.enabled)
    return RolloutRouted(options, workbench, reader)
