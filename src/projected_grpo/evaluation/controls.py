"""Which arm controls which, and by how much an arm hacks less than each of its controls.

That a defence works says nothing of its direction, as another one may work as well. What the direction does is the
difference to what works without it; it is shown where that difference is above 0 against every control.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from projected_grpo.evaluation.metrics import ArmRates, ArmResult
from projected_grpo.evaluation.statistics import PairedDifference, paired_difference
from projected_grpo.settings.arms import ArmSettings

CONTROL_KINDS = ("random", "placebo", "permuted", "flipped")  # directions that do not tell hacks from clean answers
# Family -> the option that makes a control of its arm, and its value in the arm itself. Controls: chance decides which
# completions are left out; the span of the hacks stands in for that of the clean answers.
CONTROL_OPTIONS: Mapping[str, tuple[str, object]] = {"guarded": ("shuffled", False), "trusted": ("answers", "clean")}
RANDOM_ONLY = ("random_match", "random_redraw")  # axes that random directions alone read


@dataclass(frozen=True)
class Excess:
    """An arm beside one of its controls. hacks: the control's minus the arm's; passes: the arm's minus the control's;
    both paired by seed and problem."""

    control: ArmRates
    hacks: PairedDifference
    passes: PairedDifference


def strongest(controls: Sequence[Excess]) -> Excess:
    """The control with the fewest hacks; of several, the one that solves most. It is picked after seeing the data, to
    the arm's disadvantage: the interval of the difference holds for this control, not for the choice."""
    return min(controls, key=lambda each: (each.control.hack_rate, -each.control.pass_rate))


def excess_row(controls: Sequence[Excess]) -> dict[str, float | int]:
    """Of an arm with controls: points below the strongest, how many there are, and above how many it is shown to be."""
    found: dict[str, float | int] = {
        "controls": len(controls),
        "controls_beaten": sum(e.hacks.low > 0 for e in controls),
    }
    first = strongest(controls)
    for name, gap in (("excess", first.hacks), ("excess_pass", first.passes)):
        ends = {"pp": gap.estimate, "ci_low": gap.low, "ci_high": gap.high}
        found |= {f"{name}_{end}": 100 * value for end, value in ends.items()}
    return found


def controls_of(arms: Mapping[str, ArmSettings]) -> dict[str, str]:
    """Control -> the arm that it controls: the same settings, as params.yaml spells them, but for the direction, how a
    random one is drawn, and the option that makes a control.

    The first such arm in the order of `arms`; a control without one is left out.
    """
    treated = {name: _bare(arm) for name, arm in arms.items() if arm.direction is not None and not _is_control(arm)}
    found = {}
    for name, control in arms.items():
        if not _is_control(control):
            continue
        bare = _bare(control)
        for other, arm in treated.items():
            if bare.model_copy(update={"direction": arm.direction}) == arm:
                found[name] = other
                break
    return found


def _is_control(arm: ArmSettings) -> bool:
    option, own = CONTROL_OPTIONS.get(arm.intervention, ("", None))
    return arm.direction in CONTROL_KINDS or arm.options.get(option, own) != own


def _bare(arm: ArmSettings) -> ArmSettings:
    """The arm without what may tell a control from the arm that it controls, its direction apart."""
    option, _ = CONTROL_OPTIONS.get(arm.intervention, ("", None))
    options = {name: value for name, value in arm.options.items() if name != option}
    axes = {name: value for name, value in arm.axes.items() if name not in RANDOM_ONLY}
    return arm.model_copy(update={"options": options, "axes": axes})


def excesses(
    results: Mapping[str, ArmResult], links: Mapping[str, str], confidence: float
) -> dict[str, tuple[Excess, ...]]:
    """Arm -> each of its controls, in the order of `results`; arms without a control, or with one seed, are left out.

    links: control -> the arm that it controls, as of `controls_of`.
    """
    found: dict[str, tuple[Excess, ...]] = {}
    for control, against in results.items():
        arm = links.get(control, "")
        if arm not in results or len(against.hacks.seeds) < 2:
            continue
        own = results[arm].tallies
        hacks = paired_difference(against.tallies["hack_rate"], own["hack_rate"], confidence)
        passes = paired_difference(own["pass_rate"], against.tallies["pass_rate"], confidence)
        found[arm] = (*found.get(arm, ()), Excess(against.rates, hacks, passes))
    return found
