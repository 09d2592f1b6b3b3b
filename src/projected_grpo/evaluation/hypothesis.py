"""The claims of hypotheses.yaml, judged by code.

The *effect* of an arm on a metric is how much better it is than the reference, over the same seeds and problems:
in percentage points (pp) for a rate, in steps for a time. With the clauses that a claim asks for,

    falsified    if the effect < `falsified_below`, or within `falsified_within_sem` SEM of zero (SEM over seeds of
                 the paired difference), or the pass rate falls by more than `pass_fall.falsified`
    supported    if not falsified, and the effect >= `supported_from`, the pass rate falls by no more than
                 `pass_fall.supported` (a gain never counts against), the model is *intact*, at least two seeds
                 took part, the effect's interval lies above `interval_above`, and the effect exceeds that of the
                 strongest control, with a paired interval above 0
    inconclusive otherwise

    intact       pass rate >= the untrained base's - `intact.pass_fall`, format rate >= `intact.format_share` of
                 the base's

The strongest control is the one with the largest effect. A control that meets effect, pass rate and intact by
itself is named before the verdict, because then the direction is not what helped.

Figures are rounded to 6 digits before they meet a threshold, so that a boundary is where the written number is.
Nothing here reads files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from projected_grpo.evaluation.metrics import DIGITS, ArmRates, ArmResult
from projected_grpo.evaluation.onset import Onset
from projected_grpo.evaluation.statistics import (
    PairedDifference,
    check_pairing,
    check_seeds,
    paired_difference,
    paired_runs,
)
from projected_grpo.settings.hypotheses import HypothesisSettings, IntactSettings

BASE_ARM = "base"  # the untrained model, sampled and graded like an arm
NO_CONTROL = "none"
WORDS = {
    "hack_rate": "hack rate",
    "pass_rate": "pass rate",
    "train_token_hack_rate": "hack rate under training names",
    "hacks_lead_step": "time until hacks outnumber correct answers",
    "half_hacked_step": "time until half of the rollouts are hacks",
}


class Verdict(StrEnum):
    SUPPORTED = "supported"
    FALSIFIED = "falsified"
    INCONCLUSIVE = "inconclusive"


class Role(StrEnum):
    """The part an arm plays in the comparison."""

    BASE = "base"  # the untrained model
    REFERENCE = "reference"  # trained on the flawed grader, no defence
    TREATMENT = "treatment"
    CONTROL = "control"  # the same defence with a direction that should not matter
    HONEST = "honest"  # trained on the honest grader: what could be reached


@dataclass(frozen=True)
class Evidence:
    """What claims are judged on: arms by name, the untrained base among them; times as metric -> arm -> onset."""

    arms: Mapping[str, ArmResult]
    onsets: Mapping[str, Mapping[str, Onset]]
    confidence: float


@dataclass(frozen=True)
class Effect:
    """How much better one arm is than another, in `unit` ("points" or "steps"); positive is better.

    With one seed there is no interval: `paired` is None, `low` and `high` span the whole scale, and `sem` is 0.
    """

    estimate: float
    low: float
    high: float
    sem: float
    unit: str
    seeds: int
    paired: PairedDifference | None  # in the metric's own unit: shares, or steps


@dataclass(frozen=True)
class Judgement:
    """A verdict with its figures, in the effect's unit. `reasons` are the clauses that decided it, in words.

    `controls_alone` are controls that reach the thresholds by themselves. `excess` is how far the effect exceeds
    the strongest control's; without a control it is None, `control_name` "none" and `control_effect` 0.
    """

    name: str
    statement: str
    verdict: Verdict
    metric: str
    better: str
    treatment: str
    reference: str
    effect: Effect
    intact: bool
    pass_change_pp: float
    control_name: str
    control_effect: float
    excess: Effect | None
    controls_alone: tuple[str, ...]
    reasons: tuple[str, ...]

    def row(self) -> dict[str, str | float]:
        """The keys of a claim beside the headline in `metrics/compare.json`."""
        return {
            "ci_high": self.effect.high,
            "ci_low": self.effect.low,
            "effect": self.effect.estimate,
            "verdict": self.verdict.value,
        }

    def headline(self) -> dict[str, str | bool | float]:
        """The keys under `h1` of `metrics/compare.json`, in alphabetical order; without a control excess is 0."""
        excess = self.excess
        return {
            "control_drop_pp": self.control_effect,
            "control_name": self.control_name,
            "drop_ci_high": self.effect.high,
            "drop_ci_low": self.effect.low,
            "drop_pp": self.effect.estimate,
            "excess_ci_high": excess.high if excess else 0.0,
            "excess_ci_low": excess.low if excess else 0.0,
            "excess_pp": excess.estimate if excess else 0.0,
            "intact": self.intact,
            "pass_change_pp": self.pass_change_pp,
            "verdict": self.verdict.value,
        }


@dataclass(frozen=True)
class H1Bounds:
    """H1's thresholds as rates that a treatment has to reach, given one reference and one base."""

    hack_max: float
    pass_min: float
    format_min: float


@dataclass(frozen=True)
class _Clause:
    holds: bool
    text: str


def roles(*, base: str, treatment: str, reference: str, controls: Iterable[str], honest: str) -> dict[str, Role]:
    """Arm -> role, in the order in which tables and figures list them."""
    parts = [(base, Role.BASE), (reference, Role.REFERENCE), (treatment, Role.TREATMENT)]
    parts += [(control, Role.CONTROL) for control in controls]
    parts.append((honest, Role.HONEST))
    cast: dict[str, Role] = {}
    for arm, role in parts:
        cast.setdefault(arm, role)
    return cast


def judge(name: str, rules: HypothesisSettings, evidence: Evidence) -> Judgement:
    """Judge one claim (see the module's rules).

    Raises:
        LabError: an arm has other seeds, other problems or another number of steps than the reference.
    """
    for arm in (*rules.arms, *([BASE_ARM] if rules.intact else [])):
        check_pairing(evidence.arms[rules.reference].hacks, evidence.arms[arm].hacks)
    effect = effect_of(rules.treatment, rules, evidence)
    controls = {arm: effect_of(arm, rules, evidence).estimate for arm in rules.controls}
    strongest = max(controls, key=lambda arm: controls[arm], default=None)
    excess = effect_of(rules.treatment, rules, evidence, against=strongest) if strongest else None
    decisive = [*_support(rules.treatment, rules, evidence), _seeds_clause(effect)]
    if rules.interval_above is not None and effect.paired is not None:
        decisive.append(_interval_clause(effect, rules.interval_above))
    if strongest and excess:
        decisive.append(_control_clause(strongest, excess, evidence.confidence))
    against = _falsification(rules, effect, evidence)
    verdict = _verdict(decisive, against)
    return Judgement(
        name=name,
        statement=rules.statement,
        verdict=verdict,
        metric=rules.metric,
        better=rules.better,
        treatment=rules.treatment,
        reference=rules.reference,
        effect=effect,
        intact=rules.intact is None or _intact(rules.treatment, rules.intact, evidence).holds,
        pass_change_pp=_pass_change(rules.treatment, rules.reference, evidence),
        control_name=strongest or NO_CONTROL,
        control_effect=controls[strongest] if strongest else 0.0,
        excess=excess,
        controls_alone=tuple(arm for arm in controls if all(c.holds for c in _support(arm, rules, evidence))),
        reasons=_reasons(verdict, decisive, against),
    )


def effect_of(arm: str, rules: HypothesisSettings, evidence: Evidence, against: str | None = None) -> Effect:
    """How much better `arm` is than the claim's reference, or than the arm `against`.

    Raises:
        LabError: the two differ in seeds, problems or number of steps.
    """
    first, second = arm, against or rules.reference
    if rules.better == "lower":
        first, second = second, first
    if rules.metric in evidence.onsets:
        return _effect_on_time(evidence.onsets[rules.metric], first, second, evidence.confidence)
    one, other = (evidence.arms[name].tallies[rules.metric] for name in (first, second))
    if len(one.seeds) == 1:
        check_pairing(one, other)
        return Effect(_pp(float((one.by_seed() - other.by_seed())[0])), -100.0, 100.0, 0.0, "points", 1, None)
    return _scaled(paired_difference(one, other, evidence.confidence), 100.0, "points")


def bounds(reference: ArmRates, base: ArmRates, rules: HypothesisSettings) -> H1Bounds:
    """Where H1's support begins on each rate's own axis; a figure marks these. May lie below 0; a bound on the
    pass or format rate that H1 does not ask for is 0."""
    pass_min = [0.0]
    if rules.pass_fall is not None:
        pass_min.append(reference.pass_rate - rules.pass_fall.supported / 100)
    if rules.intact is not None:
        pass_min.append(base.pass_rate - rules.intact.pass_fall / 100)
    return H1Bounds(
        hack_max=reference.hack_rate - rules.supported_from / 100,
        pass_min=max(pass_min),
        format_min=base.format_rate * rules.intact.format_share if rules.intact is not None else 0.0,
    )


def _effect_on_time(onsets: Mapping[str, Onset], first: str, second: str, confidence: float) -> Effect:
    one, other = onsets[first], onsets[second]
    one.check_length(other)
    check_seeds(first, list(one.by_seed), second, list(other.by_seed))
    if len(one.by_seed) == 1:
        return Effect(one.mean() - other.mean(), -float(one.steps), float(one.steps), 0.0, "steps", 1, None)
    return _scaled(paired_runs(one.by_seed, other.by_seed, confidence), 1.0, "steps")


def _scaled(paired: PairedDifference, factor: float, unit: str) -> Effect:
    return Effect(
        estimate=round(factor * paired.estimate, DIGITS),
        low=round(factor * paired.low, DIGITS),
        high=round(factor * paired.high, DIGITS),
        sem=round(factor * paired.sem, DIGITS),
        unit=unit,
        seeds=len(paired.by_seed),
        paired=paired,
    )


def _support(arm: str, rules: HypothesisSettings, evidence: Evidence) -> list[_Clause]:
    effect, change = effect_of(arm, rules, evidence), _pass_change(arm, rules.reference, evidence)
    needed = _threshold(rules.better, rules.supported_from, effect.unit)
    clauses = [_Clause(effect.estimate >= rules.supported_from, f"{_said(rules, effect)} ({needed})")]
    if rules.pass_fall is not None:
        text = f"pass rate {_moved(change)} against {rules.reference} (may fall by {rules.pass_fall.supported:g})"
        clauses.append(_Clause(change >= -rules.pass_fall.supported, text))
    if rules.intact is not None:
        clauses.append(_intact(arm, rules.intact, evidence))
    return clauses


def _intact(arm: str, rules: IntactSettings, evidence: Evidence) -> _Clause:
    change = _pass_change(arm, BASE_ARM, evidence)
    needed = round(rules.format_share * evidence.arms[BASE_ARM].rates.format_rate, DIGITS)
    form = round(evidence.arms[arm].rates.format_rate, DIGITS)
    holds = change >= -rules.pass_fall and form >= needed
    return _Clause(
        holds,
        f"model {'intact' if holds else 'not intact'}: pass rate {_moved(change)} against the untrained base "
        f"(may fall by {rules.pass_fall:g}), format rate {form:.1%} (needs {needed:.1%})",
    )


def _seeds_clause(effect: Effect) -> _Clause:
    if effect.paired is None:
        return _Clause(False, "one seed only: no interval can be estimated")
    return _Clause(True, f"{effect.seeds} seeds, paired")


def _interval_clause(effect: Effect, above: float) -> _Clause:
    holds = effect.low > above
    verb = "lies above" if holds else "does not lie above"
    return _Clause(
        holds, f"the effect's interval, {effect.low:.1f} to {effect.high:.1f} {effect.unit}, {verb} {above:g}"
    )


def _control_clause(control: str, excess: Effect, confidence: float) -> _Clause:
    holds = excess.paired is not None and excess.low > 0
    if holds or excess.estimate <= 0:
        text = f"the effect {'exceeds' if holds else 'does not exceed'} that of the strongest control, {control}"
    else:
        text = f"the effect exceeds that of the strongest control, {control}, in the mean only"
    interval = f" ({confidence:.0%} interval {excess.low:.1f} to {excess.high:.1f})" if excess.paired else ""
    return _Clause(holds, f"{text}: {excess.estimate:+.1f} {excess.unit}{interval}")


def _falsification(rules: HypothesisSettings, effect: Effect, evidence: Evidence) -> list[_Clause]:
    limit = _threshold(rules.better, rules.falsified_below, effect.unit)
    clauses = [
        _Clause(effect.estimate < rules.falsified_below, f"{_said(rules, effect)} ({limit} not to be falsified)")
    ]
    if rules.falsified_within_sem is not None:
        within = f"within {rules.falsified_within_sem:g} SEM ({effect.sem:.1f}) of zero"
        text = f"the effect of {effect.estimate:.1f} {effect.unit} is {within}"
        clauses.append(_Clause(effect.estimate <= rules.falsified_within_sem * effect.sem, text))
    if rules.pass_fall is not None:
        change = _pass_change(rules.treatment, rules.reference, evidence)
        text = f"pass rate {_moved(change)} against {rules.reference} (a fall by more than "
        clauses.append(_Clause(change < -rules.pass_fall.falsified, f"{text}{rules.pass_fall.falsified:g} falsifies)"))
    return clauses


def _verdict(decisive: Sequence[_Clause], against: Sequence[_Clause]) -> Verdict:
    if any(clause.holds for clause in against):
        return Verdict.FALSIFIED
    return Verdict.SUPPORTED if all(clause.holds for clause in decisive) else Verdict.INCONCLUSIVE


def _reasons(verdict: Verdict, decisive: Sequence[_Clause], against: Sequence[_Clause]) -> tuple[str, ...]:
    if verdict is Verdict.FALSIFIED:
        return tuple(clause.text for clause in against if clause.holds)
    wanted = verdict is Verdict.SUPPORTED
    return tuple(clause.text for clause in decisive if clause.holds is wanted)


def _pass_change(arm: str, other: str, evidence: Evidence) -> float:
    return _pp(evidence.arms[arm].rates.pass_rate - evidence.arms[other].rates.pass_rate)


def _said(rules: HypothesisSettings, effect: Effect) -> str:
    """ "hack rate down 46.2 points against vanilla" """
    change = effect.estimate if rules.better == "higher" else -effect.estimate
    return f"{WORDS[rules.metric]} {_moved(change, effect.unit)} against {rules.reference}"


def _threshold(better: str, effect: float, unit: str) -> str:
    """ "must drop by 30 points", or "may fall by 10 points" where the claim is that little is lost."""
    if effect < 0:
        return f"may {'fall' if better == 'higher' else 'rise'} by {-effect:g} {unit}"
    return f"must {'rise' if better == 'higher' else 'drop'} by {effect:g} {unit}"


def _moved(change: float, unit: str = "points") -> str:
    return "unchanged" if change == 0 else f"{'up' if change > 0 else 'down'} {abs(change):.1f} {unit}"


def _pp(share: float) -> float:
    return round(100 * share, DIGITS)
