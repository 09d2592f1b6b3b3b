"""What the arms share that judge each completion by its own gradient.

Every completion is read as if it were reinforced, so that a reading says what it is and not what it earned: with the
discriminant of hacks and clean answers, fitted on the policy as it is, at first and at each refresh; or by its
alignment with V, in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projected_grpo.directions.algebra import (
    Bases,
    alignment_deviation,
    alignment_null,
    alignment_rows,
    cosine,
)
from projected_grpo.directions.concept import PAIRED, relabelled
from projected_grpo.directions.discriminant import RIDGE, Discriminant, discriminant, unit_rows
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import DirectionSource, Intervention, StepGradients, Vectors, Workbench
from projected_grpo.interventions.erase import Axes
from projected_grpo.settings.section import Positive, Section, broken_rule

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

READS = frozenset({"refresh_every"})  # of the direction block: a discriminant has no axes


class DiscriminantOptions(Section):
    """How the discriminant is fitted."""

    ridge: Positive = RIDGE
    """of the discriminant: added to each coordinate's variance within the sides, in shares of the mean one"""

    def refuse_ridge_of(self, reading: str) -> None:
        """Raise a refusal where the ridge is set and `reading` has no discriminant."""
        if reading != "discriminant" and "ridge" in self.model_fields_set:
            rule = f"must not be set where reading is {reading}; it would be ignored"
            raise broken_rule("ridge", self.ridge, rule, "remove it, or set reading: discriminant")


def as_reinforced(gradients: StepGradients) -> Vectors:
    """Each completion's gradient (n, r) as if its advantage were above 0; one of advantage 0 has none."""
    signs = gradients.advantages.sign()[:, None]
    return {module: signs.to(rows) * rows for module, rows in gradients.rollouts.items()}


class Reader(Intervention):
    """The discriminant with its refresh, its figures and its checkpoint; `enabled` false never refreshes it.

    refitting: entered at a refresh, when the policy may have more adapters than at the first fit.
    """

    def __init__(
        self,
        workbench: Workbench,
        enabled: bool,
        ridge: float = RIDGE,
        refitting: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        assert workbench.direction is not None, "the registry refuses an arm without a direction"
        self.workbench = workbench
        self.enabled = enabled
        self.ridge = ridge
        self.refitting = refitting
        self.refresh_every = workbench.direction.refresh_every
        self.discriminant = self._fit()
        self._step = 0
        self._overlap = 1.0
        self._scores: list[float] | None = None
        self._flagged = 0.0

    def _fit(self) -> Discriminant:
        """On the policy as it is now."""
        from projected_grpo.directions.extract import ExtractionOptions, pair_gradients

        bench = self.workbench
        # Axes and denominator are of no account: rows are scaled to length 1.
        options = ExtractionOptions(k_max=1, loss_denominator=1, batch_size=bench.texts_per_pass)
        pairs = pair_gradients(bench.model, bench.tokenizer, bench.pairs, options)
        hack, clean = (unit_rows(side) for side in (pairs.hack, pairs.clean))
        # Labels are dealt over whole gradients, not module by module.
        joined = [torch.cat(list(side.values()), dim=1) for side in (hack, clean)]
        sides = relabelled(joined[0], joined[1], str(bench.kind), bench.seed)
        sizes = [rows.shape[1] for rows in hack.values()]
        hacks, others = (dict(zip(hack, side.split(sizes, dim=1), strict=True)) for side in sides)
        return discriminant(hacks, others, self.ridge)

    def start_step(self, step: int) -> None:
        self._step, self._overlap = step, 1.0
        if not self.enabled or not self.refresh_every or not step or step % self.refresh_every:
            return
        with self.refitting():
            old, self.discriminant = self.discriminant, self._fit()
        self._overlap = cosine(old.weights, self.discriminant.weights) ** 2

    def read(self, rows: Vectors) -> Tensor:
        """(n,) of gradients (n, r) per module: 0 is read like the mean clean answer, 1 like the mean hack."""
        return self.discriminant.read(rows)

    def scores(self) -> Sequence[float] | None:
        return self._scores

    def figures(self) -> dict[str, float]:
        return super().figures() | {"basis_overlap": self._overlap, "flagged": self._flagged}

    def state(self) -> dict[str, Tensor]:
        ends = torch.tensor([self.discriminant.clean, self.discriminant.hack], dtype=torch.float64)
        return {f"weights/{module}": weight for module, weight in self.discriminant.weights.items()} | {"ends": ends}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        weights = {key.removeprefix("weights/"): value for key, value in state.items() if key != "ends"}
        self.discriminant = Discriminant(weights, *state["ends"].tolist())


class AlignedReader(Intervention):
    """The alignment with V, ||relu(V u)|| / ||u||, against the null band: 0 is an isotropic gradient's mean alignment,
    1 a standard deviation of it more. `enabled` false never refreshes V."""

    def __init__(self, settings: DirectionSettings, source: DirectionSource, enabled: bool) -> None:
        self.axes = Axes(settings, source)
        self.enabled = enabled

    def start_step(self, step: int) -> None:
        if self.enabled:
            self.axes.start_step(step)

    def read(self, rows: Vectors) -> Tensor:
        """(n,) of gradients (n, r) per module, in standard deviations from the null's mean."""
        basis = self.axes.beside(rows)
        return (alignment_rows(rows, basis) - alignment_null(basis)) / alignment_deviation(basis)

    def bases(self) -> Bases:
        return self.axes.frames

    def figures(self) -> dict[str, float]:
        return super().figures() | self.axes.figures()

    def state(self) -> dict[str, Tensor]:
        return self.axes.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.axes.load_state(state)


def check_axes_read(reading: str, arm: ArmSettings, read_by: Mapping[str, frozenset[str]]) -> None:
    """Refuse axes that this way of reading does without. `read_by`: reading -> keys of `axes` that it reads.

    Raises:
        ParamsError: with every such key.
    """
    rule, fix = f"must not be set where options.reading is {reading}; it would be ignored", "remove it"
    ignored = [key for key in arm.axes if key not in read_by[reading]]
    if ignored:
        raise ParamsError(LabError(setting=f"axes.{key}", value=arm.axes[key], rule=rule, fix=fix) for key in ignored)


def check_paired(arm: ArmSettings, fix: str = "set one of them") -> None:
    """Refuse a direction without two sides of pairs. `fix`: what to do about it.

    Raises:
        ParamsError: there is nothing to learn a discriminant from.
    """
    if arm.direction not in PAIRED:
        rule = f"must be one of {', '.join(PAIRED)}: `{arm.intervention}` learns from the two sides of pairs"
        raise ParamsError([LabError(setting="direction", value=arm.direction, rule=rule, fix=fix)])
