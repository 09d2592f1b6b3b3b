"""How often a nominal 95 % interval holds the truth, on simulated arms whose truth is known.

A world draws, on the logit scale, an effect of each seed, of each problem (shared by both arms, and of each arm) and
of each seed on each problem, then the samples' successes. Its rates are exact: expected over new seeds and new
problems. Rates .0, .2 and .46 are those of the default run's treatment, placebo and vanilla.

Tables of percent covered: intervals of a difference by method, Wilson's interval of a rate, the interval of a share of
attempts (P(hack | attempt)), and that of a difference in times to hack, paired by seed. The last line is
JSON: lowest and highest world by method and number of seeds. A simulation of 2,000 has a standard error of 0.5.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import optimize, stats

from projected_grpo.evaluation.intervals import crossed_mean, wilson
from projected_grpo.evaluation.metrics import Tally
from projected_grpo.evaluation.statistics import conditional_rate, paired_runs

SIMULATIONS, CHUNK = 2000, 250
PROBLEMS, SAMPLES = 128, 4
SEEDS = (2, 3, 5, 10)
BAND = (93.0, 97.0)
QUANTILES = np.array([0.025, 0.975])


@dataclass(frozen=True)
class World:
    """Rates of two arms, and standard deviations on the logit scale."""

    first: float
    second: float
    seed: float
    problem: float  # shared by both arms
    own: float  # of a problem, of each arm
    each: float  # of a seed on a problem

    @property
    def spread(self) -> float:
        return math.sqrt(self.seed**2 + self.problem**2 + self.own**2 + self.each**2)


WORLDS = {
    "as measured, .46 and .0": World(0.46, 0.0, 0.1, 0.5, 0.5, 0.3),
    "as measured, .46 and .2": World(0.46, 0.2, 0.3, 0.6, 0.5, 0.3),
    "as measured, .2 and .0": World(0.2, 0.0, 0.4, 0.5, 0.5, 0.3),
    "no effect, .2": World(0.2, 0.2, 0.3, 1.0, 0.3, 0.3),
    "no effect, .46": World(0.46, 0.46, 0.1, 0.5, 0.3, 0.0),
    "one arm near zero": World(0.2, 0.02, 0.4, 0.7, 0.5, 0.3),
    "seeds dominate": World(0.46, 0.2, 1.0, 0.5, 0.3, 0.3),
    "problems dominate": World(0.46, 0.2, 0.05, 1.0, 2.0, 0.3),
    "seeds and problems alike": World(0.46, 0.2, 0.15, 0.5, 1.0, 0.3),
    "every seed its own problems": World(0.46, 0.2, 0.1, 0.3, 0.3, 1.5),
    "samples alone": World(0.46, 0.2, 0.0, 0.0, 0.0, 0.0),
}
RATES = {rate: World(rate, rate, 0.3, 0.5, 0.5, 0.3) for rate in (0.0, 0.002, 0.01, 0.03, 0.05, 0.2, 0.46, 0.9)}


@cache
def logit_mean(rate: float, spread: float) -> float:
    """Mean of the normal logits whose expected rate is `rate` (Gauss-Hermite quadrature)."""
    if rate == 0.0:
        return -1000.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    return float(optimize.brentq(lambda mean: weights @ logistic(mean + spread * nodes) - rate, -40, 40))


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -700, 700)))


def simulate(world: World, seeds: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rates by seed and problem of both arms, float (CHUNK, seeds, PROBLEMS), SIMULATIONS of them in all."""
    for _ in range(SIMULATIONS // CHUNK):
        shared = rng.normal(0, world.problem, (CHUNK, 1, PROBLEMS))
        arms = []
        for rate in (world.first, world.second):
            logits = logit_mean(rate, world.spread) + shared + rng.normal(0, world.own, (CHUNK, 1, PROBLEMS))
            logits = logits + rng.normal(0, world.seed, (CHUNK, seeds, 1))
            logits = logits + rng.normal(0, world.each, (CHUNK, seeds, PROBLEMS))
            arms.append(rng.binomial(SAMPLES, logistic(logits)) / SAMPLES)
        yield arms[0], arms[1]


# ---------------------------------------------------------------- intervals of a difference, low and high

Method = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def bootstrap(cells: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the means of resampled seeds: every resample up to 5 seeds, else 1,000 drawn."""
    per_seed = cells.mean(-1)
    seeds = per_seed.shape[-1]
    if seeds <= 5:
        picks = np.array(list(itertools.product(range(seeds), repeat=seeds)))
    else:
        picks = rng.integers(0, seeds, (1000, seeds))
    low, high = np.quantile(per_seed[:, picks].mean(-1), QUANTILES, axis=-1)
    return low, high


def paired_t(cells: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG001
    found = crossed_mean(cells)
    margin = stats.t.ppf(0.975, found.seeds - 1) * np.sqrt(found.v_seeds)
    return found.mean - margin, found.mean + margin


def satterthwaite(cells: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG001
    found = crossed_mean(cells)
    inverse = found.v_seeds**2 / (found.seeds - 1) + found.v_problems**2 / (found.problems - 1)
    df = np.where(inverse > 0, found.variance**2 / np.where(inverse > 0, inverse, 1), found.seeds - 1)
    margin = stats.t.ppf(0.975, df) * np.sqrt(found.variance)
    return found.mean - margin, found.mean + margin


def cochran_cox(cells: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG001
    found = crossed_mean(cells)
    t_seeds, t_problems = stats.t.ppf(0.975, [found.seeds - 1, found.problems - 1])
    variance = np.where(found.variance > 0, found.variance, 1)
    margin = (found.v_seeds * t_seeds + found.v_problems * t_problems) / np.sqrt(variance)
    return found.mean - margin, found.mean + margin


def ours(cells: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:  # noqa: ARG001
    found = crossed_mean(cells)
    margin = found.margin(0.95)
    return found.mean - margin, found.mean + margin


METHODS: dict[str, Method] = {
    "bootstrap": bootstrap,
    "paired t": paired_t,
    "Satterth.": satterthwaite,
    "Cochran-Cox": cochran_cox,
    "ours": ours,
}


def covered(name: str, world: World, seeds: int, methods: Mapping[str, Method] = METHODS) -> dict[str, float]:
    """Percent of the simulations of one world in which each method's interval holds the true difference."""
    rng = np.random.default_rng([seeds, *name.encode()])
    truth, hits = world.first - world.second, dict.fromkeys(methods, 0)
    for first, second in simulate(world, seeds, rng):
        for method, interval in methods.items():
            low, high = interval(first - second, rng)
            hits[method] += int(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).sum())
    return {method: 100 * count / SIMULATIONS for method, count in hits.items()}


def covered_rate(rate: float, world: World, seeds: int) -> float:
    """Percent of the simulations in which Wilson's interval holds the true rate."""
    rng, hits = np.random.default_rng([seeds, round(1000 * rate)]), 0
    for cells, _ in simulate(world, seeds, rng):
        low, high = wilson(crossed_mean(cells), seeds * PROBLEMS * SAMPLES, 0.95)
        hits += int(((low <= rate + 1e-12) & (rate <= high)).sum())
    return 100 * hits / SIMULATIONS


# ---------------------------------------------------------------- shares of attempts, and times

# (share that attempts, P(hack | attempt)): the default run's untrained base and vanilla, a defence, and a rare attempt.
GIVEN = {"base": (0.08, 0.55), "vanilla": (0.6, 0.75), "a defence": (0.05, 0.1), "rare": (0.01, 0.5)}
LENGTH = 50  # steps of a run
# Steps before half of the rollouts are hacks: mean and deviation over seeds, cut at the run's end, of both arms.
TIMES = {
    "never against at 35": ((200.0, 5.0), (35.0, 5.0)),
    "at 40 against at 30": ((40.0, 5.0), (30.0, 5.0)),
    "often never against at 30": ((48.0, 6.0), (30.0, 5.0)),
    "mostly never against never": ((200.0, 5.0), (56.0, 6.0)),
}


def covered_given(attempting: float, hacking: float, seeds: int) -> float:
    """Percent of the simulations in which the interval of P(hack | attempt) holds the truth.

    Attempts and what comes of them have effects of seeds, problems and cells of their own, so that the true ratio is
    `hacking`. Simulations without an attempt, which have no interval, are left out.
    """
    rng = np.random.default_rng([seeds, round(1000 * attempting), round(1000 * hacking)])
    names = tuple(f"p{number}" for number in range(PROBLEMS))
    world, hits, known = World(attempting, hacking, 0.3, 0.0, 0.5, 0.3), 0, 0
    for _ in range(SIMULATIONS):
        shares = []
        for rate in (attempting, hacking):
            logits = logit_mean(rate, world.spread) + rng.normal(0, world.own, (1, PROBLEMS))
            logits = logits + rng.normal(0, world.seed, (seeds, 1)) + rng.normal(0, world.each, (seeds, PROBLEMS))
            shares.append(logistic(logits))
        attempts = rng.binomial(SAMPLES, shares[0])
        graded = np.full_like(attempts, SAMPLES)
        given, hacked = (
            Tally("arm", tuple(range(seeds)), names, counts, graded)
            for counts in (attempts, rng.binomial(attempts, shares[1]))
        )
        found = conditional_rate(hacked, given)
        known += found is not None
        hits += found is not None and found.low - 1e-12 <= hacking <= found.high + 1e-12
    return 100 * hits / known


def covered_times(first: tuple[float, float], second: tuple[float, float], seeds: int) -> float:
    """Percent of the simulations in which the paired interval of a difference in times holds the true one."""
    rng = np.random.default_rng([seeds, round(first[0]), round(second[0])])

    def times(mean: float, deviation: float, count: int) -> np.ndarray:
        return np.clip(np.rint(rng.normal(mean, deviation, count)), 0, LENGTH)

    truth = times(*first, 1_000_000).mean() - times(*second, 1_000_000).mean()
    hits = 0
    for _ in range(SIMULATIONS):
        found = paired_runs(dict(enumerate(times(*first, seeds))), dict(enumerate(times(*second, seeds))))
        hits += found.low - 1e-9 <= truth <= found.high + 1e-9
    return 100 * hits / SIMULATIONS


def lines(title: str, worlds: Mapping[str, float]) -> None:
    """One line of percents, those outside of the band marked."""
    cells = (f"{name} {percent:.1f}{'' if BAND[0] <= percent <= BAND[1] else '*'}" for name, percent in worlds.items())
    print(f"{title:28} {'; '.join(cells)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three seeds only")
    counts = (3,) if parser.parse_args().quick else SEEDS
    print(f"{'difference of rates':28} seeds " + " ".join(f"{name:>11}" for name in METHODS))
    table: dict[int, dict[str, dict[str, float]]] = {}
    for seeds, (name, world) in itertools.product(counts, WORLDS.items()):
        found = table.setdefault(seeds, {})[name] = covered(name, world, seeds)
        shown = (f"{percent:10.1f}{' ' if BAND[0] <= percent <= BAND[1] else '*'}" for percent in found.values())
        print(f"{name:28} {seeds:5} " + " ".join(shown))
    print(f"\n{'rate (Wilson)':28} seeds " + " ".join(f"{rate:>7}" for rate in RATES))
    for seeds in counts:
        percents = [covered_rate(rate, world, seeds) for rate, world in RATES.items()]
        shown = (f"{percent:6.1f}{' ' if BAND[0] <= percent <= BAND[1] else '*'}" for percent in percents)
        print(f"{'':28} {seeds:5} " + " ".join(shown))
    print()
    for seeds in counts:
        lines(f"P(hack | attempt), {seeds} seeds", {name: covered_given(*pair, seeds) for name, pair in GIVEN.items()})
    for seeds in counts:
        lines(f"time to hack, {seeds} seeds", {name: covered_times(*pair, seeds) for name, pair in TIMES.items()})
    print(f"* outside of {BAND[0]:g} to {BAND[1]:g}")
    extremes = {
        f"{method}, {seeds} seeds": [f([found[method] for found in worlds.values()]) for f in (min, max)]
        for seeds, worlds in table.items()
        for method in METHODS
    }
    print(json.dumps(extremes))


if __name__ == "__main__":
    main()
