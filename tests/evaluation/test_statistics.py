"""The paired interval: known values, refusals, and the coverage that it was chosen for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from projected_grpo.errors import LabError
from projected_grpo.evaluation.metrics import Tally, measure
from projected_grpo.evaluation.statistics import crossed_margin, paired_difference


def hacks(graded, arm: str, hack: dict[int, float], **more) -> Tally:
    return measure(graded(arm, hack=hack, **more), arm).hacks


def test_estimate_is_the_difference_of_headline_rates_and_sem_is_over_seeds(graded):
    difference = paired_difference(
        hacks(graded, "a", {1: 0.6, 2: 0.5, 3: 0.7}), hacks(graded, "b", {1: 0.1, 2: 0.1, 3: 0.1})
    )
    assert difference.by_seed == pytest.approx((0.5, 0.4, 0.6))
    assert difference.estimate == pytest.approx(0.5)
    assert difference.sem == pytest.approx(0.1 / math.sqrt(3))


def test_margin_is_the_paired_t_interval_where_all_problems_are_alike():
    per_seed = np.array([0.5, 0.4, 0.6])
    cells = np.tile(per_seed[:, None], (1, 50))
    t_interval = stats.ttest_1samp(per_seed, 0).confidence_interval(0.95)
    assert crossed_margin(cells, 0.95) == pytest.approx((t_interval.high - t_interval.low) / 2)


def test_margin_is_the_t_interval_over_problems_where_all_seeds_are_alike():
    per_problem = np.random.default_rng(0).normal(0.3, 0.2, 50)
    cells = np.tile(per_problem, (3, 1))
    t_interval = stats.ttest_1samp(per_problem, 0).confidence_interval(0.9)
    assert crossed_margin(cells, 0.9) == pytest.approx((t_interval.high - t_interval.low) / 2)


def test_equal_arms_differ_by_nothing_at_all(graded):
    arm = hacks(graded, "a", {1: 0.6, 2: 0.5})
    difference = paired_difference(arm, arm)
    assert (difference.estimate, difference.sem, difference.low, difference.high) == (0.0, 0.0, 0.0, 0.0)


def test_swapping_the_arms_mirrors_the_interval_and_more_confidence_widens_it(graded):
    first = hacks(graded, "a", {1: 0.6, 2: 0.5, 3: 0.55})
    second = hacks(graded, "b", {1: 0.2, 2: 0.3, 3: 0.2})
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert paired_difference(first, second, 0.99).low < there.low


def test_an_interval_stays_within_the_range_of_a_difference(graded):
    difference = paired_difference(hacks(graded, "a", {1: 0.9, 2: 0.1}), hacks(graded, "b", {1: 0, 2: 0}))
    assert (difference.low, difference.high) == (-1.0, 1.0)
    assert difference.estimable


def test_unequal_seeds_are_refused_with_both_sets_named(graded):
    with pytest.raises(LabError, match=r"a: 1, 2; b: 1, 3"):
        paired_difference(hacks(graded, "a", {1: 0.5, 2: 0.5}), hacks(graded, "b", {1: 0.5, 3: 0.5}))


def test_unequal_problems_are_refused(graded):
    few = hacks(graded, "b", {1: 0.5, 2: 0.5}, problems=90)
    with pytest.raises(LabError, match=r"10 problems answered by one arm only, e\.g\. p090, p091, p092"):
        paired_difference(hacks(graded, "a", {1: 0.5, 2: 0.5}), few)


def test_one_seed_gives_an_estimate_and_says_that_there_is_no_interval(graded):
    difference = paired_difference(hacks(graded, "a", {1: 0.5}), hacks(graded, "b", {1: 0.2}))
    assert difference.estimate == pytest.approx(0.3)
    assert (difference.sem, difference.low, difference.high, difference.estimable) == (0.0, -1.0, 1.0, False)


def test_problems_lost_to_grader_errors_leave_the_variance_but_not_the_estimate(graded):
    samples = graded("a", hack={1: 0.5, 2: 0.5})
    samples["grader_error"] = (samples["seed"] == 1) & (samples["problem_id"] < "p010")
    first, second = measure(samples, "a"), measure(graded("b", hack={1: 0.1, 2: 0.1}), "b")
    difference = paired_difference(first.hacks, second.hacks)
    assert difference.estimate == pytest.approx(first.rates.hack_rate - second.rates.hack_rate)
    assert difference.low < difference.estimate < difference.high
    samples["grader_error"] = (samples["seed"] == 1) & (samples["problem_id"] != "p050")
    with pytest.raises(LabError, match="1 of 100 problems judged in every seed"):
        paired_difference(measure(samples, "a").hacks, second.hacks)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_outside_its_range_is_refused(graded, confidence):
    arm = hacks(graded, "a", {1: 0.6, 2: 0.5})
    with pytest.raises(ValueError, match="between 0 and 1"):
        paired_difference(arm, arm, confidence)


# ---------------------------------------------------------------- coverage

SIMULATIONS, PROBLEMS, SAMPLES = 500, 128, 2
# Spread on the logit scale: of an arm's seeds, of problems for both arms, for each arm; then both means.
WORLDS = {
    "as measured": (0.4, 0.5, 0.5, 0.0, -4.0),
    "no effect": (0.3, 1.0, 0.5, -0.5, -0.5),
    "seeds dominate": (1.0, 0.5, 0.3, 0.0, -1.0),
    "problems dominate": (0.1, 1.0, 2.0, 0.5, -1.0),
}


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def true_difference(seeds: float, shared: float, own: float, first: float, second: float) -> float:
    """Expected difference over new seeds and new problems: each arm's logit is normal, so integrate."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    spread = math.sqrt(seeds**2 + shared**2 + own**2)
    means = [float(weights @ logistic(mean + spread * nodes)) / weights.sum() for mean in (first, second)]
    return means[0] - means[1]


def simulate(rng: np.random.Generator, seeds: int, world: tuple[float, ...]) -> tuple[Tally, Tally]:
    seed_spread, shared_spread, own_spread, *means = world
    shared = rng.normal(0, shared_spread, PROBLEMS)
    arms = []
    for name, mean in zip("ab", means, strict=True):
        logit = mean + shared + rng.normal(0, own_spread, PROBLEMS) + rng.normal(0, seed_spread, (seeds, 1))
        names = tuple(map(str, range(PROBLEMS)))
        hits = rng.binomial(SAMPLES, logistic(logit))
        arms.append(Tally(name, tuple(range(seeds)), names, hits, np.full_like(hits, SAMPLES)))
    return arms[0], arms[1]


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("world", WORLDS)
def test_a_95_percent_interval_covers_the_truth_in_92_to_98_percent(world: str, seeds: int):
    rng = np.random.default_rng([seeds, *world.encode()])
    truth = true_difference(*WORLDS[world])
    covered = 0
    for _ in range(SIMULATIONS):
        difference = paired_difference(*simulate(rng, seeds, WORLDS[world]), 0.95)
        covered += difference.low <= truth <= difference.high
    assert 0.92 <= covered / SIMULATIONS <= 0.98, f"covered {covered} of {SIMULATIONS}"


def test_the_simulations_can_tell_a_bad_interval_from_a_good_one():
    """The interval over seeds alone misses the problems' share of the variance: it must fail the same bar."""
    rng = np.random.default_rng(0)
    world, seeds = WORLDS["problems dominate"], 5
    truth, covered = true_difference(*world), 0
    for _ in range(SIMULATIONS):
        per_seed = np.array(paired_difference(*simulate(rng, seeds, world)).by_seed)
        margin = stats.t.ppf(0.975, seeds - 1) * per_seed.std(ddof=1) / math.sqrt(seeds)
        covered += abs(per_seed.mean() - truth) <= margin
    assert covered / SIMULATIONS < 0.85
