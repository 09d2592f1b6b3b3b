"""What the comparison of arms rests on: rates with intervals, paired differences, tests, and power.

Arms share their seeds and their held-out problems, so they are compared cell by cell: d[s, p] is the difference
of the two arms' rates on problem p after training with seed s. `intervals` tells how a mean of such cells gets
its interval. Figures of a whole run, such as the step at which hacking began, are paired by seed alone.

Wrong use is refused: arms with other seeds or other problems, and an interval from one seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import stats

from projected_grpo.errors import LabError
from projected_grpo.evaluation.intervals import crossed_mean, degrees_of_freedom, wilson
from projected_grpo.evaluation.metrics import Tally, sem

MAX_FLIP_SEEDS = 16  # 65,536 patterns of signs, counted one by one
MAX_SEEDS = 1000  # where the search for a sufficient number of seeds ends


@dataclass(frozen=True)
class Rate:
    """A share with its interval, both in [0, 1]. `n` is what it is a share of (completions, attempts)."""

    estimate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference, first minus second: of rates as shares in [-1, 1], else in the figure's own unit.

    `sem` is over the seeds' differences alone; `error` (standard error) and `df` are those of the interval.
    """

    estimate: float
    sem: float
    error: float
    df: float
    low: float
    high: float
    confidence: float
    by_seed: tuple[float, ...]

    def p_value(self) -> float:
        """Two-sided p of "no difference": 1 - the confidence at which the interval begins to leave out 0."""
        return min(1.0, 2 * self._tail(abs(self.estimate)))

    def p_not_above(self, margin: float) -> float:
        """One-sided p of "the true difference is `margin` or less"; a small one shows that it is above.

        With margin = -0.1 this is the non-inferiority test of a rate that may fall by 10 points.
        """
        return self._tail(self.estimate - margin)

    def _tail(self, distance: float) -> float:
        if self.error == 0.0:
            return 0.0 if distance > 0 else 1.0
        return float(stats.t.sf(distance / self.error, self.df))


def rate(tally: Tally, confidence: float = 0.95) -> Rate:
    """An arm's rate, the mean of its seeds' rates, with an interval for new seeds and new problems.

    Raises: LabError: one seed, or fewer than two problems judged in every seed. ValueError: `confidence`.
    """
    _check_confidence(confidence)
    _several_seeds(tally.seeds, tally.arm)
    judged = _judged(tally)
    cells = crossed_mean(tally.hits[:, judged] / tally.graded[:, judged])
    estimate, n = float(tally.by_seed().mean()), int(tally.graded.sum())
    low, high = wilson(replace(cells, mean=np.asarray(estimate)), n, confidence)
    return Rate(estimate, float(low), float(high), n)


def conditional_rate(hits: Tally, given: Tally, confidence: float = 0.95) -> Rate | None:
    """P(hit | given), such as P(hack | attempt), over all completions of all seeds; None if `given` never was.

    Every hit must be one of `given`. The ratio R = sum(h) / sum(a) is linearised: its variance is that of the
    mean of (h - R a) / mean(a) over seeds and problems. Covers 94 to 96 % at 3, 5 and 10 seeds, for attempts from 1 to
    60 % (`benchmarks/coverage.py`).

    Raises: LabError: one seed, or other seeds or problems. ValueError: more hits than `given`, or `confidence`.
    """
    _check_confidence(confidence)
    check_pairing(hits, given)
    _several_seeds(hits.seeds, hits.arm)
    if (hits.hits > given.hits).any():
        raise ValueError(f"{hits.arm}: a hit outside of what it is conditioned on")
    n = int(given.hits.sum())
    if n == 0:
        return None
    ratio = float(hits.hits.sum()) / n
    residuals = crossed_mean((hits.hits - ratio * given.hits) / given.hits.mean())
    low, high = wilson(replace(residuals, mean=np.asarray(ratio)), n, confidence)
    return Rate(ratio, float(low), float(high), n)


def paired_difference(first: Tally, second: Tally, confidence: float = 0.95) -> PairedDifference:
    """Difference of rates, `first` minus `second`, paired by seed and problem.

    The estimate is the mean over seeds of the difference between the seeds' rates: exactly the difference of the
    two arms' headline rates. Problems that lost all completions in some seed (grader errors) do not enter the
    variance.

    Raises: LabError: the arms differ in seeds or in problems, there is one seed, or fewer than two problems were
        judged in every seed. ValueError: `confidence` is not inside (0, 1).
    """
    _check_confidence(confidence)
    check_pairing(first, second)
    _several_seeds(first.seeds, f"{first.arm} and {second.arm}")
    judged = _judged(first, second)
    rates = [arm.hits[:, judged] / arm.graded[:, judged] for arm in (first, second)]
    cells = crossed_mean(rates[0] - rates[1])
    found = _difference(first.by_seed() - second.by_seed(), float(cells.variance), float(cells.df), confidence)
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def paired_runs(first: Mapping[int, float], second: Mapping[int, float], confidence: float = 0.95) -> PairedDifference:
    """Difference of a figure of whole runs, seed -> value, `first` minus `second`: the paired t interval.

    Of times to hack it covers 93.5 to 96 % at 3, 5 and 10 seeds (`benchmarks/coverage.py`), but where in most runs of
    both arms the time never comes: three equal values then have an interval of no width, which often misses.

    Raises: LabError: the seeds differ, or there is one. ValueError: `confidence` is not inside (0, 1).
    """
    _check_confidence(confidence)
    check_seeds("first", sorted(first), "second", sorted(second))
    _several_seeds(sorted(first), "these runs")
    by_seed = np.array([first[seed] - second[seed] for seed in sorted(first)], dtype=float)
    return _difference(by_seed, float(by_seed.var(ddof=1)) / len(by_seed), len(by_seed) - 1, confidence)


def sign_flip_p(by_seed: Sequence[float]) -> float:
    """Exact two-sided p of the paired differences by seed under "either sign is as likely".

    Every one of the 2^S patterns of signs is counted, so no p is below 2 / 2^S: 0.25 with three seeds. It assumes
    nothing about distributions, and the seeds must be independent.

    Raises:
        ValueError: no seed, or more than 16.
    """
    values = np.asarray(by_seed, dtype=float)
    if not 1 <= len(values) <= MAX_FLIP_SEEDS:
        raise ValueError(f"the sign-flip test counts patterns of 1 to 16 seeds, got {len(values)}")
    signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    sums = np.abs(signs @ values)
    return float((sums >= abs(values.sum()) * (1 - 1e-12)).mean())


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p (S. Holm 1979): below alpha for an arm only if the whole family errs with probability < alpha."""
    ordered = sorted(p_values, key=lambda name: p_values[name])
    adjusted, running = {}, 0.0
    for place, name in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - place) * p_values[name]))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def seeds_needed(difference: PairedDifference, effect: float, power: float, problems: int) -> int | None:
    """Seeds with which a true difference of `effect` would be told from 0 (two-sided) with probability `power`.

    The variance observed is split as in the interval: what comes from the seeds shrinks with their number, what
    comes from the problems stays. Both are taken as they were estimated, and three seeds estimate a variance
    within a factor of 6: a guide, no more. None: no number up to 1,000 would do.

    `problems` is how many there are, at least 2.

    Raises: ValueError: `effect` is 0, or `power` is not inside (0, 1).
    """
    if effect == 0 or not 0 < power < 1:
        raise ValueError(f"needs an effect other than 0 and a power between 0 and 1, got {effect} and {power}")
    alpha, count = 1 - difference.confidence, len(difference.by_seed)
    v_problems = np.asarray(max(0.0, difference.error**2 - difference.sem**2))
    for seeds in range(2, MAX_SEEDS + 1):
        v_seeds = np.asarray(difference.sem**2 * count / seeds)
        variance = float(v_seeds + v_problems)
        if variance == 0.0:
            return seeds
        df = degrees_of_freedom(v_seeds, v_problems, seeds, problems)
        reached = stats.nct.sf(stats.t.ppf(1 - alpha / 2, df), df, abs(effect) / math.sqrt(variance))
        if reached >= power:
            return seeds
    return None


def check_pairing(first: Tally, second: Tally) -> None:
    """Refuse arms that do not compare.

    Raises:
        LabError: they differ in seeds or in problems.
    """
    check_seeds(first.arm, first.seeds, second.arm, second.seeds)
    if first.problems != second.problems:
        odd = sorted(set(first.problems) ^ set(second.problems))
        raise LabError(
            setting=f"problems of {first.arm!r} and {second.arm!r}",
            value=f"{len(odd)} problems answered by one arm only, e.g. {_listed(odd[:3])}",
            rule="arms are compared on the same held-out problems",
            fix="run the stages `sample` and `grade` of both arms again",
        )


def check_seeds(first: str, first_seeds: Sequence[int], second: str, second_seeds: Sequence[int]) -> None:
    """Refuse two sets of runs with other seeds.

    Raises:
        LabError: they differ.
    """
    if tuple(first_seeds) != tuple(second_seeds):
        raise LabError(
            setting=f"seeds of {first!r} and {second!r}",
            value=f"{first}: {_listed(first_seeds)}; {second}: {_listed(second_seeds)}",
            rule="arms are compared on the same seeds, never a mean of four against a mean of two",
            fix="run the missing seeds of either arm (`dvc repro`)",
        )


def _difference(by_seed: np.ndarray, variance: float, df: float, confidence: float) -> PairedDifference:
    estimate, error = float(by_seed.mean()), math.sqrt(variance)
    margin = float(stats.t.ppf((1 + confidence) / 2, df)) * error
    return PairedDifference(
        estimate=estimate,
        sem=sem(by_seed.tolist()),
        error=error,
        df=df,
        low=estimate - margin,
        high=estimate + margin,
        confidence=confidence,
        by_seed=tuple(by_seed.tolist()),
    )


def _judged(*arms: Tally) -> np.ndarray:
    """Which problems every arm has a verdict on in every seed, bool (problems,)."""
    judged = np.logical_and.reduce([(arm.graded > 0).all(axis=0) for arm in arms])
    if judged.sum() < 2:
        raise LabError(
            setting=f"graded samples of {' and '.join(repr(arm.arm) for arm in arms)}",
            value=f"{int(judged.sum())} of {judged.size} problems judged in every seed",
            rule="an interval needs at least two",
            fix="sample more problems, or look at the grader errors of these arms",
        )
    return judged


def _several_seeds(seeds: Sequence[int], whose: str) -> None:
    if len(seeds) < 2:
        raise LabError(
            setting=f"seeds of {whose}",
            value=_listed(seeds),
            rule="an interval needs at least two: one seed says nothing about the next",
            fix="add seeds to scales.<scale>.seeds, or report the estimate without an interval",
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
