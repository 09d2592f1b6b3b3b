"""Monitored: what a monitor calls a hack is paid less, or is left out.

    penalty     r' = r - penalty      where flagged
    screening   r' = None             where flagged: neither in the group's baseline nor in the update
    watch       r' = r                the monitor's scores are logged, and nothing else: the arm's off switch

After the reference benchmark's comparison of penalties and screening by ground truth (of accuracy 1, 0.9, 0.7), a
probe and a judge. A completion for which the monitor has no verdict (a judge that does not answer, a sandbox that
fails) is neither flagged nor clean: it is left out, unless the arm only watches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from projected_grpo.directions.concept import PAIRED
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.advantage import Depths
from projected_grpo.interventions.base import Intervention, Rollouts, Workbench
from projected_grpo.interventions.judge import JudgeSettings
from projected_grpo.interventions.monitors import RIDGE, Asked, Flag, Flags, Monitor, Probe, Truth
from projected_grpo.settings.section import Positive, broken_rule

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

READS_AXES: frozenset[str] = frozenset()
NEEDS_DIRECTION = None  # the probe is trained on the pairs of one; the other monitors act on none
UNKNOWN = -1.0  # logged where the monitor has no verdict
USED_BY = {  # setting -> what uses it
    "penalty": ("action", ("penalty",)),
    "accuracy": ("monitor", ("truth",)),
    "threshold": ("monitor", ("probe", "judge")),
    "depth_low": ("monitor", ("probe",)),
    "depth_high": ("monitor", ("probe",)),
    "ridge": ("monitor", ("probe",)),
    "flag": ("monitor", ("flags",)),
    "judge": ("monitor", ("judge",)),
}


class Options(Depths):
    """Who watches, and what follows."""

    monitor: Literal["truth", "probe", "flags", "judge"]
    """truth: the oracle, an upper bound. probe: a linear one on hidden states. flags: a detector. judge: a model"""

    action: Literal["penalty", "screening", "watch"] = "penalty"
    """what follows for a flagged completion: less reward, left out, nothing"""

    penalty: Positive = 3.0
    """taken off a flagged completion's reward; 3 is what a paid one gets by default (`grpo.reward_paid`)"""

    accuracy: Annotated[float, Field(ge=0.5, le=1.0)] = 1.0
    """of the monitor `truth`: probability that a label is right"""

    threshold: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """of the monitors `probe` and `judge`: P(hack) from which a completion is flagged"""

    ridge: Positive = RIDGE
    """of the monitor `probe`: penalty of its squared weights, for standardised features"""

    flag: Flag = "attempted"
    """of the monitor `flags`: attempted looks for the loophole's construct, stub_passes runs the answer's own tests"""

    judge: JudgeSettings | None = None
    """of the monitor `judge`: where it is"""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        for name, (setting, users) in USED_BY.items():
            value, chosen = getattr(self, name), getattr(self, setting)
            if chosen not in users and value != type(self).model_fields[name].default:
                rule = f"must not be set where {setting} is {chosen}; it would be ignored"
                shown = "(a block)" if name == "judge" else value
                raise broken_rule(name, shown, rule, f"remove it, or set {setting}: {' or '.join(users)}")
        if self.monitor == "judge" and self.judge is None:
            raise broken_rule("judge", None, "must be set where monitor is judge", "name its base_url and model")
        return self


class Monitored(Intervention):
    """Acts on the scores of `monitor`, see the module docstring."""

    def __init__(self, options: Options, monitor: Monitor) -> None:
        self.options = options
        self.monitor = monitor
        self.uses_oracle = options.monitor == "truth"
        self._scores: list[float] | None = None
        self._acted = 0.0

    def start(self) -> None:
        self.monitor.start()

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        scores = self.monitor.judge(rollouts)
        paid = [self._reward(reward, score) for reward, score in zip(rewards, scores, strict=True)]
        self._scores = [UNKNOWN if score is None else score for score in scores]
        self._acted = sum(score is None or self._flags(score) for score in scores) / max(1, len(scores))
        return paid

    def _flags(self, score: float) -> bool:
        return score >= self.options.threshold

    def _reward(self, reward: float, score: float | None) -> float | None:
        if self.options.action == "watch":
            return reward
        if score is None:
            return None
        if not self._flags(score):
            return reward
        return reward - self.options.penalty if self.options.action == "penalty" else None

    def scores(self) -> Sequence[float] | None:
        """Of the monitor, 0 to 1; -1 where it has no verdict."""
        return self._scores

    def figures(self) -> dict[str, float]:
        return super().figures() | {"flagged": self._acted}

    def state(self) -> dict[str, Tensor]:
        return self.monitor.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.monitor.load_state(state)


def modules(options: Options) -> tuple[str, ...]:
    """What `monitors` loads no sooner than it runs answers: no other arm depends on the detectors."""
    return ("projected_grpo.grading.labels.detectors",) if options.flag == "stub_passes" else ()


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse a direction that the monitor would ignore, or the lack of one that it learns from.

    Raises:
        ParamsError: the probe has no pairs to learn from, or another monitor has a direction.
    """
    del direction
    if options.monitor == "probe" and arm.direction not in PAIRED:
        rule = f"must be one of {', '.join(PAIRED)} where the monitor is probe: it is trained on the pairs of one"
        fix = "set direction: hack, or one of its controls"
    elif options.monitor != "probe" and arm.direction is not None:
        rule = f"must be null where the monitor is {options.monitor}: it would be ignored"
        fix = "remove it, or set monitor: probe"
    else:
        return
    raise ParamsError([LabError(setting="direction", value=arm.direction, rule=rule, fix=fix)])


def build(options: Options, workbench: Workbench) -> Intervention:
    """The intervention of this family.

    Raises:
        LabError: a judge's key is missing.
    """
    return Monitored(options, _monitor(options, workbench))


def _monitor(options: Options, workbench: Workbench) -> Monitor:
    if options.monitor == "probe":
        assert workbench.kind in PAIRED, "`check` refuses another direction"
        return Probe(
            workbench.model,
            workbench.tokenizer,
            workbench.pairs,
            workbench.kind,
            workbench.seed,
            workbench.texts_per_forward,
            (options.depth_low, options.depth_high),
            options.ridge,
        )
    if options.monitor == "judge":
        assert options.judge is not None, "the options refuse a judge without its settings"
        return Asked(options.judge)
    if options.monitor == "flags":
        return Flags(options.flag, workbench.sandbox)
    return Truth(options.accuracy, workbench.seed)
