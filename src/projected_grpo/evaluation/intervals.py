"""Intervals for a mean over crossed seeds and problems: of a rate, and of a difference of rates.

Cells x[s, p] hold one number for each seed and problem. Seeds and problems are *crossed* (each seed answers
every problem) and both are samples from something larger: another seed trains another model, and the claim is
about problems of this kind, not about these 128. The variance of the mean has two parts,

    V_seeds     = variance over seeds of the seeds' means / S      (the noise of finite samples is in it, too)
    V_problems  = max(0, (MS_problems - MS_rest) / (S P))          two-way analysis of variance, random effects

known with S - 1 and P - 1 degrees of freedom. Student's t is used with df from

    1 / df = w / (S - 1) + (1 - w) / (P - 1),     w = V_seeds / (V_seeds + V_problems)

which is exact at both ends. Satterthwaite's df has w^2 and (1 - w)^2 here; with three seeds w is so uncertain
that its intervals are too short, while averaging the two critical values (Cochran-Cox) makes them too long.

The method was chosen by measured coverage of nominal 95 % intervals of a difference (`benchmarks/coverage.py`:
2,000 simulations each; 128 problems, 4 samples; eleven worlds, from "seeds dominate" to "problems dominate"), lowest
and highest world:

    seeds   bootstrap of seeds   paired t   Satterthwaite   Cochran-Cox      this
      3         31 - 67           76 - 95      92 - 95        95 - 97      94 - 96
      5         37 - 84           54 - 95      92 - 95        94 - 97      94 - 96
     10         31 - 91           36 - 95      94 - 96        94 - 97      94 - 97

With two seeds it falls to 90 in the worst world. A difference whose cells are all equal (both arms at exactly 0) has
an interval of no width: nothing in the data tells how far off it may be.

A rate's interval is Wilson's, with the sample size that the variance above amounts to. It stays inside [0, 1]
and has a width at 0 hits, where it takes all completions as independent, for want of anything that says
otherwise, and t for the seeds. It covers 94 to 96 % for true rates from 1 to 90 %; rarer ones are covered too often
(98 to 99 % at 0.2 %, with three or five seeds; always at exactly 0), which discrete counts do not let one avoid.

Nothing here promises anything about other base models or other pair sets: those are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, eq=False)
class CrossedMean:
    """Means of cells with the two parts of their variances; float arrays of one shape."""

    mean: np.ndarray
    v_seeds: np.ndarray
    v_problems: np.ndarray
    seeds: int
    problems: int

    @property
    def variance(self) -> np.ndarray:
        return self.v_seeds + self.v_problems

    @property
    def df(self) -> np.ndarray:
        return degrees_of_freedom(self.v_seeds, self.v_problems, self.seeds, self.problems)

    def critical(self, confidence: float) -> np.ndarray:
        """Two-sided quantile of Student's t."""
        return stats.t.ppf((1 + confidence) / 2, self.df)

    def margin(self, confidence: float) -> np.ndarray:
        """Half-width of the interval of a difference."""
        return self.critical(confidence) * np.sqrt(self.variance)


def degrees_of_freedom(v_seeds: np.ndarray, v_problems: np.ndarray, seeds: int, problems: int) -> np.ndarray:
    """The module's df; S - 1 where nothing varies at all."""
    variance = v_seeds + v_problems
    w = np.where(variance > 0, v_seeds / np.where(variance > 0, variance, 1.0), 1.0)
    return 1 / (w / (seeds - 1) + (1 - w) / (problems - 1))


def crossed_mean(cells: np.ndarray) -> CrossedMean:
    """The mean over seeds and problems of `cells`, float (..., seeds >= 2, problems >= 2).

    Raises:
        ValueError: one seed or one problem, from which no variance can be estimated.
    """
    seeds, problems = cells.shape[-2:]
    if min(seeds, problems) < 2:
        raise ValueError(f"an interval needs at least two seeds and two problems, got {seeds} and {problems}")
    seed_means, problem_means, mean = cells.mean(-1), cells.mean(-2), cells.mean((-1, -2))
    rest = cells - seed_means[..., :, None] - problem_means[..., None, :] + mean[..., None, None]
    v_seeds = seed_means.var(-1, ddof=1) / seeds
    v_rest = (rest**2).sum((-1, -2)) / ((seeds - 1) * (problems - 1)) / (seeds * problems)
    v_problems = np.maximum(0.0, problem_means.var(-1, ddof=1) / problems - v_rest)
    return CrossedMean(mean, v_seeds, v_problems, seeds, problems)


def wilson(rate: CrossedMean, graded: int | np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Wilson's interval of a rate (E. B. Wilson 1927), low and high, inside [0, 1].

    Its n is mean (1 - mean) / variance: how many independent answers would leave this variance. Where the
    variance is 0, n is `graded`, the number of completions, or of whatever else is the rate's denominator.
    """
    spread = rate.mean * (1 - rate.mean)
    known = (rate.variance > 0) & (spread > 0)
    n = np.where(known, spread / np.where(known, rate.variance, 1.0), graded)
    k = rate.critical(confidence) ** 2 / n
    middle, half = (rate.mean + k / 2) / (1 + k), np.sqrt(k * spread + k**2 / 4) / (1 + k)
    return np.maximum(0.0, middle - half), np.minimum(1.0, middle + half)
