"""Every arm beside the reference: intervals, tests, times, and how many seeds it would take.

These figures describe; what decides a claim stands in `hypothesis`. All p are two-sided against "no difference in
hack rate", except `pass_noninferior_p`. Holm's adjustment is over all arms but the reference, the untrained base
included. With one seed nothing can be estimated: intervals span the whole scale then, and every p is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from projected_grpo.evaluation.hypothesis import BASE_ARM, Evidence, Judgement
from projected_grpo.evaluation.metrics import DIGITS, ArmResult, Tally, sem
from projected_grpo.evaluation.onset import ONSETS, Onset, onset
from projected_grpo.evaluation.statistics import (
    PairedDifference,
    Rate,
    conditional_rate,
    holm,
    paired_difference,
    rate,
    seeds_needed,
    sign_flip_p,
)

SHARES = ("hack", "pass", "attempt", "paid", "format")  # of the metrics `<name>_rate`
NO_NUMBER = 0  # written for "no number of seeds would do"


@dataclass(frozen=True)
class ArmComparison:
    """One arm. `shares` and `sems`: each of `SHARES` with its interval, and its standard error over seeds (0.0 with one
    seed). `hack_given_attempt` is None if it never attempted; `drop` and `pass_change` are None for the
    reference itself and with one seed; `onsets` is empty for the untrained base."""

    arm: str
    shares: Mapping[str, Rate]
    sems: Mapping[str, float]
    attempts: int
    hack_given_attempt: Rate | None
    drop: PairedDifference | None
    pass_change: PairedDifference | None
    p_holm: float
    p_noninferior: float
    onsets: Mapping[str, Onset]

    @property
    def hack(self) -> Rate:
        return self.shares["hack"]

    @property
    def passed(self) -> Rate:
        return self.shares["pass"]

    @property
    def p_flip(self) -> float:
        """Exact sign-flip p over seeds."""
        return sign_flip_p(self.drop.by_seed) if self.drop else 1.0

    def row(self) -> dict[str, float | int]:
        """Flat, finite, the same keys for every arm; P(hack | attempt) is 0 with `attempts` = 0, and an untrained
        base has onsets of 0 steps in 0 seeds."""
        given = self.hack_given_attempt or Rate(0.0, 0.0, 1.0, 0)
        found: dict[str, float | int] = {
            "attempts": self.attempts,
            "drop_p_flip": self.p_flip,
            "drop_p_holm": self.p_holm,
            "hack_given_attempt": given.estimate,
            "hack_given_attempt_ci_high": given.high,
            "hack_given_attempt_ci_low": given.low,
            "pass_noninferior_p": self.p_noninferior,
        }
        for name, share in self.shares.items():
            found |= {f"{name}_rate_sem": self.sems[name]}
            found |= {f"{name}_ci_low": share.low, f"{name}_ci_high": share.high}
        for name, difference in (("drop", self.drop), ("pass_change", self.pass_change)):
            found |= _points(name, difference)
        for kind in ONSETS:
            at = self.onsets.get(kind)
            found[kind] = at.mean() if at else 0.0
            found[f"{kind.removesuffix('_step')}_seeds"] = at.reached if at else 0
        return {key: round(found[key], DIGITS) for key in sorted(found)}


def compare_arms(evidence: Evidence, reference: str, pass_margin: float) -> dict[str, ArmComparison]:
    """Every arm of the evidence beside `reference`; `pass_margin` is the fall of the pass rate (a share) that the
    non-inferiority test allows.

    Raises:
        LabError: arms differ in seeds or problems.
    """
    several = len(evidence.arms[reference].hacks.seeds) > 1
    drops, changes = {}, {}
    for arm, result in evidence.arms.items():
        if several and arm != reference:
            drops[arm] = _difference(evidence.arms[reference], result, "hack_rate", evidence.confidence)
            changes[arm] = _difference(result, evidence.arms[reference], "pass_rate", evidence.confidence)
    adjusted = holm({arm: drop.p_value() for arm, drop in drops.items()})
    return {
        arm: ArmComparison(
            arm=arm,
            shares={name: one_rate(result.tallies[f"{name}_rate"], evidence.confidence) for name in SHARES},
            sems={name: sem(result.tallies[f"{name}_rate"].by_seed().tolist()) for name in SHARES},
            attempts=int(result.tallies["attempt_rate"].hits.sum()),
            hack_given_attempt=_given_attempt(result, evidence.confidence),
            drop=drops.get(arm),
            pass_change=changes.get(arm),
            p_holm=adjusted.get(arm, 1.0),
            p_noninferior=changes[arm].p_not_above(-pass_margin) if arm in changes else 1.0,
            onsets={kind: arms[arm] for kind, arms in evidence.onsets.items() if arm in arms},
        )
        for arm, result in evidence.arms.items()
    }


def gather(results: Mapping[str, ArmResult], steps: pd.DataFrame, confidence: float) -> Evidence:
    """Evidence from measured arms (the base among them) and the training logs of the others.

    Raises:
        LabError: runs of an arm differ in length, or an arm was not trained.
    """
    trained = [arm for arm in results if arm != BASE_ARM]
    onsets = {kind: {arm: onset(steps, arm, kind) for arm in trained} for kind in ONSETS}
    return Evidence(results, onsets, confidence)


@dataclass(frozen=True)
class PowerNote:
    """Seeds that the variance seen would need: to show a drop of `effect_pp`, and the excess over the strongest
    control that was seen. None: no number up to 1,000; or, for the excess, nothing to show."""

    power: float
    effect_pp: float
    drop_seeds: int | None
    excess_pp: float
    excess_seeds: int | None

    def row(self) -> dict[str, float | int]:
        return {
            "seeds_needed_drop": self.drop_seeds or NO_NUMBER,
            "seeds_needed_excess": self.excess_seeds or NO_NUMBER,
        }


def power_note(judgement: Judgement, effect_pp: float, power: float, problems: int) -> PowerNote | None:
    """How many seeds H1 would need; None with one seed, from which no variance is known."""
    drop, excess = judgement.effect.paired, judgement.excess
    if drop is None:
        return None
    excess_seeds = None
    if excess and excess.paired and excess.estimate > 0:
        excess_seeds = seeds_needed(excess.paired, excess.estimate / 100, power, problems)
    return PowerNote(
        power=power,
        effect_pp=effect_pp,
        drop_seeds=seeds_needed(drop, effect_pp / 100, power, problems),
        excess_pp=excess.estimate if excess else 0.0,
        excess_seeds=excess_seeds,
    )


def _difference(first: ArmResult, second: ArmResult, metric: str, confidence: float) -> PairedDifference:
    return paired_difference(first.tallies[metric], second.tallies[metric], confidence)


def one_rate(tally: Tally, confidence: float) -> Rate:
    """The rate with its interval. One seed says nothing about the next: its interval spans the whole scale."""
    if len(tally.seeds) == 1:
        return Rate(float(tally.by_seed()[0]), 0.0, 1.0, int(tally.graded.sum()))
    return rate(tally, confidence)


def _given_attempt(result: ArmResult, confidence: float) -> Rate | None:
    hacks, attempts = result.tallies["hack_rate"], result.tallies["attempt_rate"]
    count = int(attempts.hits.sum())
    if count and len(hacks.seeds) == 1:
        return Rate(int(hacks.hits.sum()) / count, 0.0, 1.0, count)
    return conditional_rate(hacks, attempts, confidence) if count else None


def _points(name: str, difference: PairedDifference | None) -> dict[str, float]:
    """In percentage points; the reference differs from itself by nothing, one seed by who knows what."""
    figures: Sequence[float] = (0.0, 0.0, 0.0)
    if difference:
        figures = (difference.estimate, difference.low, difference.high)
    return dict(zip((f"{name}_pp", f"{name}_ci_low", f"{name}_ci_high"), (100 * f for f in figures), strict=True))
