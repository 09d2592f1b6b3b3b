"""Erase: take the hack-ward component out of every update.

    g' = g - V^T relu(V g)        (gate one_sided)

on the gradient, on the optimizer's update, or on both. V is refreshed from the current policy every
`refresh_every` steps: the frozen one keeps pushing along -V long after the policy has moved on.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from projected_grpo.directions.algebra import Bases, Frames, basis_overlap, beside, erase_all, matched_overshoot
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import (
    DEFAULT,
    DirectionSource,
    Intervention,
    Parts,
    StepGradients,
    Vectors,
    Workbench,
)
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.section import Section

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings

NEEDS_DIRECTION = True

MIN_OVERLAP = 0.2  # of an extracted V with the one before it; chance gives k / r


class Options(Section):
    """Nothing beyond the direction block: k, gate, refresh, what is projected, overshoot (0: the arm is off)."""


class Axes:
    """V in use by an arm: the bases of `source`, with their refresh, their figures and what a checkpoint must hold."""

    def __init__(self, settings: DirectionSettings, source: DirectionSource) -> None:
        self.refresh_every = settings.refresh_every
        self.source = source
        self.frames = Frames(source.initial())
        self.overlap = 1.0  # of V with the one before this step

    def start_step(self, step: int) -> bool:
        """Draw V anew where a refresh is due at this step; says whether it was."""
        self.overlap = 1.0
        if not self.refresh_every or not step or step % self.refresh_every:
            return False
        old, self.frames = self.frames, Frames(self.source.refreshed(step))
        self.overlap = basis_overlap(old, self.frames)
        if self.overlap < MIN_OVERLAP and not self.source.independent:
            warnings.warn(
                f"step {step}: the refreshed V shares {self.overlap:.2f} of its span with the last one, under "
                f"{MIN_OVERLAP}: the policy has moved far, or the pairs no longer tell; refresh more often",
                stacklevel=3,
            )
        return True

    def beside(self, vectors: Vectors) -> Frames:
        """V, brought once to where the vectors are."""
        self.frames = beside(self.frames, vectors)
        return self.frames

    def figures(self) -> dict[str, float]:
        sizes = [len(basis) for basis in self.frames.values()]
        return {"basis_overlap": self.overlap, "axes": float(sum(sizes)), "bare_modules": float(sizes.count(0))}

    def state(self) -> dict[str, Tensor]:
        return {module: basis.clone() for module, basis in self.frames.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.frames = Frames(state)


class Erase(Intervention):
    """Projection off `source`'s axes, see the module docstring.

    With `reference` (a random control of equal energy) as much is taken out of each gradient as those bases would.
    """

    def __init__(self, settings: DirectionSettings, source: DirectionSource, reference: Bases | None = None) -> None:
        self.settings = settings
        self.axes = Axes(settings, source)
        self.reference = None if reference is None else Frames(reference)
        self._overshoot = settings.overshoot
        self._purge_due = False  # from a refresh to the gradient of the same step: never while a checkpoint is written

    def start_step(self, step: int) -> None:
        if self.axes.start_step(step):
            self._purge_due = self.settings.purge_moments

    def purge(self, moments: Vectors) -> Vectors:
        """What Adam remembers along V comes from the time before V was what it is: its whole span is cleared."""
        if not self._purge_due or self.settings.overshoot == 0:
            return moments
        self._purge_due = False
        return erase_all(moments, self._bases_for(moments), "both_sides")

    def gradient(self, gradients: StepGradients) -> Parts:
        if self.settings.project == "update":
            return {DEFAULT: gradients.total}
        erased, self._overshoot = self._erased(gradients.total)
        return {DEFAULT: erased}

    def update(self, adapter: str, update: Vectors) -> Vectors:
        if adapter != DEFAULT or self.settings.project == "gradient" or self.settings.overshoot == 0:
            return update
        # V points along gradients and the optimizer moves against them: an update is hack-ward where V u < 0.
        erased, overshoot = self._erased({module: -vector for module, vector in update.items()})
        if self.settings.project == "update":  # with `both` the gradient's is the one to know
            self._overshoot = overshoot
        return {module: -vector for module, vector in erased.items()}

    def _erased(self, gradients: Vectors) -> tuple[Vectors, float]:
        """What the gate leaves, and the overshoot in use; at overshoot 0 the very same tensors."""
        if self.settings.overshoot == 0:
            return gradients, 0.0
        bases = self._bases_for(gradients)
        gate, overshoot = self.settings.gate, self.settings.overshoot
        if self.reference is not None:
            overshoot *= matched_overshoot(gradients, bases, self.reference, gate)
        return erase_all(gradients, bases, gate, overshoot, self.settings.preserve_magnitude), overshoot

    def _bases_for(self, vectors: Vectors) -> Frames:
        """V, with the reference brought to the same device."""
        if self.reference is not None:
            self.reference = beside(self.reference, vectors)
        return self.axes.beside(vectors)

    def bases(self) -> Bases:
        return self.axes.frames

    def figures(self) -> dict[str, float]:
        return super().figures() | self.axes.figures() | {"overshoot": self._overshoot}

    def state(self) -> dict[str, Tensor]:
        return self.axes.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.axes.load_state(state)


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what would not be a defence.

    Raises:
        ParamsError: V is the clean answers' own span: without it nothing that solves a problem is learned.
    """
    del options, direction
    if arm.direction == "clean":
        rule = "must not be clean for `erase`: it would take out what the honest answers teach"
        raise ParamsError([LabError(setting="direction", value="clean", rule=rule, fix="set intervention: trusted")])


def build(options: Options, workbench: Workbench) -> Intervention:
    """The intervention of this family.

    Raises:
        ValueError: no direction settings or no source of directions.
    """
    del options
    if workbench.direction is None or workbench.source is None:
        raise ValueError("`erase` needs direction settings and a direction to act on")
    return Erase(workbench.direction, workbench.source, workbench.reference)
