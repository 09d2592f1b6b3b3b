"""Route whole completions: those whose gradient looks hack-ward train the quarantine, the others the deployed adapter.

With s_i the reading of rollout i's own gradient g_i, and thresholds in standard deviations of what an isotropic
gradient would read:
    s_i <= low: deployed adapter only        s_i > high: quarantine only        between: both
The band between lets both learn what nobody can tell, so that the deployed adapter is not starved by a reading that
is unsure: gradient routing, too, leaves data without a label to both sides (Cloud et al. 2024, arXiv 2410.04332).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from pydantic import model_validator
from torch import Tensor

from projected_grpo.directions.algebra import alignment_rows, cosine_rows
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
from projected_grpo.interventions.routed import QuarantineOff, nothing, routable
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.section import Section, broken_rule

if TYPE_CHECKING:
    from torch import nn

NEEDS_DIRECTION = True
NEEDS_ROLLOUT_GRADIENTS = True


class Options(Section):
    """How a gradient is read, and from where it is routed. Needs grpo.rollout_gradients."""

    enabled: bool = True
    """false sends everything to the deployed adapter"""

    reading: Literal["signed", "share"] = "signed"
    """signed: cosine with the stored mean pair difference, which no refresh changes; share: the hack-ward share of the
    gradient, with V as last refreshed"""

    low: float = 1.0
    """null standard deviations above the null mean up to which a completion trains the deployed adapter alone"""

    high: float = 3.0
    """the same, above which it trains the quarantine alone; at least `low`"""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high < self.low:
            raise broken_rule("high", self.high, f"must be at least low, {self.low}", "raise high, or lower low")
        return self


def signed_null(dimensions: int) -> tuple[float, float]:
    """Mean and sd of the cosine of an isotropic gradient with any direction: 0 and 1 / sqrt(D).

    The D squared coordinates of a unit vector along an orthonormal basis add up to 1 and have equal means.
    """
    return 0.0, dimensions**-0.5


def share_null(axes: int, dimensions: int) -> tuple[float, float]:
    """Mean and sd of ||relu(V g)|| / ||g|| for an isotropic gradient, K axes in D dimensions, by the delta method.

    With z standard normal the squared share is S = sum_K relu(z)^2 / sum_D z^2, and as S depends on the direction of z
    alone, E[S^p] = E[numerator^p] / E[denominator^p]. relu(z)^2 has mean 1/2 and variance 3/2 - 1/4 = 5/4, so
        E[S] = K / (2 D),   E[S^2] = (5 K / 4 + K^2 / 4) / (D (D + 2)),
        E[sqrt(S)] ~ sqrt(E[S]) - var(S) / (8 E[S]^1.5),   sd(sqrt(S)) ~ sd(S) / (2 sqrt(E[S])).
    The mean's first term is `alignment_null`. Good to a few percent from a dozen axes on.
    """
    if not axes:
        return 0.0, 0.0
    mean = axes / (2 * dimensions)
    square = (5 * axes / 4 + axes**2 / 4) / (dimensions * (dimensions + 2))
    variance = square - mean**2
    return math.sqrt(mean) - variance / (8 * mean**1.5), math.sqrt(variance / mean) / 2


class RolloutRouted(Erase):
    """See the module docstring. Of `Erase` it has V with its refresh and figures; nothing is projected."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(
        self,
        options: Options,
        settings: DirectionSettings,
        source: DirectionSource,
        means: Vectors,
        model: nn.Module,
    ) -> None:
        super().__init__(settings, QuarantineOff(source, model))
        self.options = options
        self.means = means
        self._scores: list[float] | None = None
        self._flagged = 0.0

    def purge(self, moments: Vectors) -> Vectors:
        return super().purge(moments) if self.options.enabled else moments

    def gradient(self, gradients: StepGradients) -> Parts:
        total, rows = gradients.total, gradients.rollouts
        if not self.options.enabled:
            return {DEFAULT: total, QUARANTINE: nothing(total)}
        if not rows:
            rule = "must be true for this arm: it reads each completion's own gradient"
            raise ParamsError([LabError(setting="grpo.rollout_gradients", value=False, rule=rule, fix="set true")])
        scores = self.read(rows)
        mean, sd = self.null()
        away = scores > mean + self.options.high * sd
        learned = scores > mean + self.options.low * sd  # by the quarantine: what is shared, and what is sent away
        self._scores, self._flagged = scores.tolist(), float(away.double().mean())
        # Nothing sent away: the very gradient of the plain arm.
        deployed = {m: g - rows[m][away].sum(0) for m, g in total.items()} if away.any() else total
        return {DEFAULT: deployed, QUARANTINE: {module: rows[module][learned].sum(0) for module in total}}

    def read(self, rows: Vectors) -> Tensor:
        """s_i of each rollout, (n,), from rows (n, r)."""
        if self.options.reading == "share":
            return alignment_rows(rows, self._bases_for(rows))
        device = next(iter(rows.values())).device
        self.means = {module: mean.to(device) for module, mean in self.means.items()}
        return cosine_rows(rows, self.means)

    def null(self) -> tuple[float, float]:
        """Mean and sd of the reading of an isotropic gradient."""
        dimensions = sum(basis.shape[1] for basis in self.basis.values())
        if self.options.reading == "signed":
            return signed_null(dimensions)
        return share_null(sum(len(basis) for basis in self.basis.values()), dimensions)

    def scores(self) -> Sequence[float] | None:
        return self._scores

    def figures(self) -> dict[str, float]:
        return super().figures() | {"flagged": self._flagged}


def build(options: Options, workbench: Workbench) -> RolloutRouted:
    """The intervention of this family.

    Raises:
        ParamsError: see `routable`.
    """
    settings, source = routable(workbench)
    assert workbench.means is not None, "they come with the direction"
    return RolloutRouted(options, settings, source, workbench.means, workbench.model)
