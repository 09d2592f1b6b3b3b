"""The weak detector: studies whose V does not know all loopholes of their problems, and the hacks of the unknown ones.

Such a study is a *fold*. What is unseen follows from its settings: the loopholes of its problems without those of the
pairs that V is extracted from, and without what never pays (`none`). Rates, intervals and paired differences are those
of every study (`statistics`), taken over the completions for the unseen loopholes, and for the known ones, apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from projected_grpo.errors import LabError
from projected_grpo.evaluation.comparison import one_rate
from projected_grpo.evaluation.hypothesis import Evidence
from projected_grpo.evaluation.metrics import COLUMNS, DIGITS, Tally, measure, sem, tally
from projected_grpo.evaluation.statistics import PairedDifference, Rate, check_seeds, paired_difference
from projected_grpo.problems.loopholes import NONE
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.problems import ProblemsSettings

RATES = {  # figure -> (is it of the unseen loopholes, the verdict it is a share of)
    "unseen_hack": (True, "hacked"),
    "unseen_pass": (True, "correct"),
    "known_hack": (False, "hacked"),
}


@dataclass(frozen=True)
class Fold:
    """One fold: the study, the loopholes that its V has no pair of, and the bodies of its pairs' hacks."""

    study: str
    unseen: tuple[str, ...]
    bodies: str


@dataclass(frozen=True)
class FoldArm:
    """One arm of one fold.

    shares: each of `RATES` with its interval; sems: their standard errors over seeds. drop: unseen hacks of the
    fold's first arm minus this one's; excess: of the control that hacks least minus this one's. Both are paired by
    seed and problem, and None where there is nothing to compare with or only one seed. control: its name, or "".
    """

    fold: Fold
    arm: str
    seeds: int
    shares: Mapping[str, Rate]
    sems: Mapping[str, float]
    drop: PairedDifference | None
    excess: PairedDifference | None
    control: str

    def row(self) -> dict[str, float | int]:
        """Flat and finite, rates as shares, differences in points; no key for a difference that there is not."""
        found: dict[str, float | int] = {"seeds": self.seeds, "unseen_samples": self.shares["unseen_hack"].n}
        for name, rate in self.shares.items():
            found |= {f"{name}_rate": rate.estimate, f"{name}_rate_sem": self.sems[name]}
            found |= {f"{name}_ci_low": rate.low, f"{name}_ci_high": rate.high}
        for name, gap in (("drop", self.drop), ("excess", self.excess)):
            if gap is not None:
                found |= {f"{name}_pp": 100 * gap.estimate}
                found |= {f"{name}_ci_low": 100 * gap.low, f"{name}_ci_high": 100 * gap.high}
        return {key: round(found[key], DIGITS) for key in sorted(found)}


def fold_of(study: str, problems: ProblemsSettings, extract: ExtractSettings) -> Fold | None:
    """The study as a fold; None if its pairs are about all loopholes of its problems, or about none of them."""
    exploitable = [name for name in problems.loopholes if name != NONE.name]
    known = exploitable if extract.loopholes is None else extract.loopholes
    unseen = tuple(name for name in exploitable if name not in known)
    return Fold(study, unseen, extract.bodies) if 0 < len(unseen) < len(exploitable) else None


def fold_arms(
    fold: Fold, samples: Mapping[str, pd.DataFrame], links: Mapping[str, str], confidence: float
) -> list[FoldArm]:
    """Every arm of a fold in the order of `samples` (as of `read_study_samples`), whose first is the reference.

    links: control -> the arm that it controls, as of `controls_of`.

    Raises:
        LabError: arms differ in seeds or problems.
    """
    counted = {arm: _tallies(fold, rows, arm) for arm, rows in samples.items()}
    reference = next(iter(counted))
    found = []
    for arm, tallies in counted.items():
        hacks = tallies["unseen_hack"]
        controls = [name for name, treated in links.items() if treated == arm and name in counted]
        control = min(controls, key=lambda name: counted[name]["unseen_hack"].by_seed().mean(), default="")
        found.append(
            FoldArm(
                fold=fold,
                arm=arm,
                seeds=len(hacks.seeds),
                shares={name: one_rate(each, confidence) for name, each in tallies.items()},
                sems={name: sem(each.by_seed().tolist()) for name, each in tallies.items()},
                drop=_gap(counted, reference, arm, confidence),
                excess=_gap(counted, control, arm, confidence),
                control=control,
            )
        )
    return found


def pooled(folds: Sequence[tuple[Fold, Mapping[str, pd.DataFrame]]], confidence: float) -> Evidence:
    """The arms that every fold has, each measured on the unseen loopholes' completions of all folds together.

    Each held-out problem counts once, with the models whose V does not know its loophole: cells of seeds and problems
    as in any comparison. A seed stands for the models of all folds trained with it. Intervals are for new seeds and
    problems of these loopholes, not for other loopholes.

    Raises:
        LabError: a loophole is unseen in two folds, whose completions would be counted twice; folds differ in seeds, or
            share a problem.
    """
    names = [name for fold, _ in folds for name in fold.unseen]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        rule, fix = "must be unseen in one fold only, where folds are taken together", "give these folds other bodies"
        raise LabError(setting="studies", value=twice[0], rule=rule, fix=fix)
    shared = [arm for arm in folds[0][1] if all(arm in samples for _, samples in folds)]
    parts = {
        arm: [samples[arm][samples[arm]["loophole"].isin(fold.unseen)] for fold, samples in folds] for arm in shared
    }
    for arm, rows in parts.items():
        _check_parts(arm, [fold for fold, _ in folds], rows)
    return Evidence({arm: measure(pd.concat(rows)[[*COLUMNS]], arm) for arm, rows in parts.items()}, {}, confidence)


def _check_parts(arm: str, folds: Sequence[Fold], parts: Sequence[pd.DataFrame]) -> None:
    """Cells of seeds and problems are whole only if every fold has the same seeds, and no two folds a problem."""
    known: set[str] = set()
    for fold, rows in zip(folds, parts, strict=True):
        check_seeds(folds[0].study, sorted(parts[0]["seed"].unique()), fold.study, sorted(rows["seed"].unique()))
        problems = set(rows["problem_id"])
        if both := sorted(known & problems):
            rule, fix = "must have one loophole in all folds that are taken together", "use the same problems"
            raise LabError(setting=f"problem of {arm!r} in {fold.study}", value=both[0], rule=rule, fix=fix)
        known |= problems


def means(arms: Sequence[FoldArm]) -> dict[tuple[str, str], dict[str, float]]:
    """(bodies, arm) -> the mean of each of `RATES` over the folds with these bodies, each fold counting the same."""
    cells: dict[tuple[str, str], list[FoldArm]] = {}
    for row in arms:
        cells.setdefault((row.fold.bodies, row.arm), []).append(row)
    return {
        key: {name: sum(row.shares[name].estimate for row in rows) / len(rows) for name in RATES}
        for key, rows in cells.items()
    }


def _tallies(fold: Fold, rows: pd.DataFrame, arm: str) -> dict[str, Tally]:
    unseen = rows["loophole"].isin(fold.unseen)
    return {
        name: tally(rows[unseen] if of_unseen else rows[~unseen], arm, verdict)
        for name, (of_unseen, verdict) in RATES.items()
    }


def _gap(
    counted: Mapping[str, Mapping[str, Tally]], first: str, second: str, confidence: float
) -> PairedDifference | None:
    """Unseen hacks of `first` minus those of `second`."""
    if first in ("", second) or len(counted[second]["unseen_hack"].seeds) < 2:
        return None
    return paired_difference(counted[first]["unseen_hack"], counted[second]["unseen_hack"], confidence)
