"""Trust: of every update only what lies in the span of updates that teach honest solving.

    g' = g + strength (V^T V g - g)        V: axes of the clean answers' own gradients

The mirror image of erase: what is unknown is kept out, not what is known to be bad. After TDGA (Deng 2026,
arXiv 2605.25189), which projects onto clean updates after a clean warm-up, at ranks from 1 to 10.
Random, permuted or placebo axes of the same rank show what the mere restriction to k dimensions per matrix does. The
span of the hacks' own gradients (`answers: hack`), found in the same way, shows what any answers' span would do.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from projected_grpo.directions.algebra import Bases, keep_all
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import DEFAULT, DirectionSource, Parts, StepGradients, Vectors, Workbench
from projected_grpo.interventions.erase import Erase
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.section import Rate, Section

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings

NEEDS_DIRECTION = True
READS_AXES = frozenset(DirectionSettings.model_fields) - {"gate"}

DIRECTIONS = ("clean", "random", "permuted", "placebo")
# Refinements of erasing with no meaning here, and the values at which they are off.
UNUSED = {"overshoot": 1.0, "preserve_magnitude": False, "purge_moments": False, "random_match": "rank"}


class Options(Section):
    """Of the direction block k, refresh, noise_floor, mean_diff and what is projected are used; a span has no gate."""

    strength: Rate = 1.0
    """share of what lies outside the span that is taken away; 0 is off"""

    answers: Literal["clean", "hack"] = "clean"
    """whose gradients span V where direction is clean; hack is a control"""


@dataclasses.dataclass(frozen=True)
class Anew:
    """A source that extracts its first V as well, in place of the stored one."""

    independent: ClassVar[bool] = False

    source: DirectionSource

    def initial(self) -> Bases:
        return self.source.refreshed(0)

    def refreshed(self, step: int) -> Bases:
        return self.source.refreshed(step)


class Trusted(Erase):
    """Of `Erase` it has V with its refresh, its figures and what is projected."""

    def __init__(self, options: Options, settings: DirectionSettings, source: DirectionSource) -> None:
        super().__init__(settings, source)
        self.options = options

    def gradient(self, gradients: StepGradients) -> Parts:
        return super().gradient(gradients) if self.options.strength else {DEFAULT: gradients.total}

    def update(self, adapter: str, update: Vectors) -> Vectors:
        return super().update(adapter, update) if self.options.strength else update

    def _erased(self, gradients: Vectors) -> tuple[Vectors, float]:
        """What the span leaves; a projection has no side, so that for updates, too, it is the same."""
        kept = keep_all(gradients, self._bases_for(gradients))
        strength = self.options.strength
        return {module: torch.lerp(g, kept[module], strength) for module, g in gradients.items()}, 1.0


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what would be no trusted span, or would be ignored.

    Raises:
        ParamsError: a direction that nobody would trust, answers of a control, or a refinement of erasing.
    """
    assert direction is not None, "the registry refuses an arm without a direction"
    faults = []
    if arm.direction not in DIRECTIONS:
        rule = "must be clean for `trusted`, or a control of it: only what lies in its span is learned"
        fix = f"one of {', '.join(DIRECTIONS)}"
        faults.append(LabError(setting="direction", value=arm.direction, rule=rule, fix=fix))
    elif options.answers == "hack" and arm.direction != "clean":
        rule = "must be clean where options.answers is hack: both are spans of single answers, of the same pairs"
        faults.append(LabError(setting="direction", value=arm.direction, rule=rule, fix="set direction: clean"))
    for name, off in UNUSED.items():
        if (value := getattr(direction, name)) != off:
            rule, fix = f"must be {off} for `trusted`, which would ignore it", f"set axes: {{{name}: {off}}}"
            faults.append(LabError(setting=f"axes.{name}", value=value, rule=rule, fix=fix))
    if faults:
        raise ParamsError(faults)


def build(options: Options, workbench: Workbench) -> Trusted:
    """The intervention of this family.

    Raises:
        ValueError, FloatingPointError: with `answers: hack`, see `directions.extract.extract_modules`.
    """
    settings, source = workbench.direction, workbench.source
    assert settings is not None, "the registry refuses an arm without a direction"
    assert source is not None, "it comes with the settings"
    return Trusted(options, settings, _of_hacks(source) if options.answers == "hack" else source)


def _of_hacks(clean: DirectionSource) -> Anew:
    """The same recipe on the same pairs with their sides exchanged."""
    from projected_grpo.directions.sources import ExtractedSource  # brings transformers, which checking does not need

    assert isinstance(clean, ExtractedSource), "`check` refuses another direction than clean"
    assert clean.options.rows == "clean", "the stored direction holds its recipe"
    exchanged = [dataclasses.replace(pair, hack=pair.clean, clean=pair.hack) for pair in clean.pairs]
    return Anew(dataclasses.replace(clean, pairs=exchanged))
