"""Intervals and tests: known values, refusals, and the coverage that the method was chosen for."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from projected_grpo.errors import LabError
from projected_grpo.evaluation.intervals import crossed_mean, wilson
from projected_grpo.evaluation.metrics import Tally, measure
from projected_grpo.evaluation.statistics import (
    PairedDifference,
    conditional_rate,
    holm,
    paired_difference,
    paired_runs,
    rate,
    seeds_needed,
    sign_flip_p,
)

ROOT = Path(__file__).resolve().parents[2]


def hacks(graded, arm: str, hack: dict[int, float], **more) -> Tally:
    return measure(graded(arm, hack=hack, **more), arm).hacks


def counted(hits: list[list[int]], graded: int = 4) -> Tally:
    """A tally of given hits by seed and problem."""
    array = np.array(hits)
    return Tally(
        "a",
        tuple(range(len(array))),
        tuple(map(str, range(array.shape[1]))),
        array,
        np.full_like(array, graded),
    )


class TestPairedDifference:
    def test_is_the_difference_of_headline_rates_with_its_sem_over_seeds(self, graded):
        difference = paired_difference(
            hacks(graded, "a", {1: 0.6, 2: 0.5, 3: 0.7}), hacks(graded, "b", {1: 0.1, 2: 0.1, 3: 0.1})
        )
        assert difference.by_seed == pytest.approx((0.5, 0.4, 0.6))
        assert difference.estimate == pytest.approx(0.5)
        assert difference.sem == pytest.approx(0.1 / math.sqrt(3))

    def test_of_equal_arms_is_nothing_at_all(self, graded):
        arm = hacks(graded, "a", {1: 0.6, 2: 0.5})
        difference = paired_difference(arm, arm)
        assert (difference.estimate, difference.sem, difference.low, difference.high) == (0.0, 0.0, 0.0, 0.0)
        assert difference.p_value() == 1.0

    def test_is_mirrored_by_swapping_the_arms_and_wider_with_more_confidence(self, graded):
        first = hacks(graded, "a", {1: 0.6, 2: 0.5, 3: 0.55})
        second = hacks(graded, "b", {1: 0.2, 2: 0.3, 3: 0.2})
        there, back = paired_difference(first, second), paired_difference(second, first)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
        assert paired_difference(first, second, 0.99).low < there.low

    def test_stays_within_the_range_of_a_difference(self, graded):
        difference = paired_difference(hacks(graded, "a", {1: 0.9, 2: 0.1}), hacks(graded, "b", {1: 0, 2: 0}))
        assert (difference.low, difference.high) == (-1.0, 1.0)

    def test_p_is_where_the_interval_begins_to_leave_out_zero(self, graded):
        first = hacks(graded, "a", {1: 0.6, 2: 0.5, 3: 0.55})
        second = hacks(graded, "b", {1: 0.4, 2: 0.45, 3: 0.35})
        p = paired_difference(first, second).p_value()
        assert 0.001 < p < 0.5
        assert (
            paired_difference(first, second, 1 - p * 1.01).low > 0 > paired_difference(first, second, 1 - p * 0.99).low
        )

    def test_non_inferiority_is_one_sided_and_asks_about_its_margin(self):
        found = PairedDifference(-0.02, 0.03, 0.03, 2.0, -0.15, 0.11, 0.95, (0.0, -0.08, 0.02))
        assert found.p_not_above(-0.10) == pytest.approx(stats.t.sf(0.08 / 0.03, 2))
        assert found.p_not_above(-0.10) < 0.06 < 0.5 < found.p_not_above(0.0)

    def test_loses_problems_with_grader_errors_from_the_variance_but_not_from_the_estimate(self, graded):
        samples = graded("a", hack={1: 0.5, 2: 0.5})
        samples["grader_error"] = (samples["seed"] == 1) & (samples["problem_id"] < "p010")
        first, second = measure(samples, "a"), measure(graded("b", hack={1: 0.1, 2: 0.1}), "b")
        difference = paired_difference(first.hacks, second.hacks)
        assert difference.estimate == pytest.approx(first.rates.hack_rate - second.rates.hack_rate)
        assert difference.low < difference.estimate < difference.high
        samples["grader_error"] = (samples["seed"] == 1) & (samples["problem_id"] != "p050")
        with pytest.raises(LabError, match="1 of 100 problems judged in every seed"):
            paired_difference(measure(samples, "a").hacks, second.hacks)

    def test_of_runs_is_the_paired_t_interval(self):
        found = paired_runs({1: 24, 2: 30, 3: 31}, {3: 50, 1: 50, 2: 50})
        t_interval = stats.ttest_1samp([-26, -20, -19], 0).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((t_interval.low, t_interval.high))
        assert found.p_value() == pytest.approx(stats.ttest_rel([24, 30, 31], [50, 50, 50]).pvalue)


class TestRefusals:
    def test_unequal_seeds_with_both_sets_named(self, graded):
        with pytest.raises(LabError, match=r"a: 1, 2; b: 1, 3"):
            paired_difference(hacks(graded, "a", {1: 0.5, 2: 0.5}), hacks(graded, "b", {1: 0.5, 3: 0.5}))
        with pytest.raises(LabError, match="never a mean of four against a mean of two"):
            paired_runs({1: 1.0, 2: 2.0}, {1: 1.0, 3: 2.0})

    def test_unequal_problems(self, graded):
        few = hacks(graded, "b", {1: 0.5, 2: 0.5}, problems=90)
        with pytest.raises(LabError, match=r"10 problems answered by one arm only, e\.g\. p090, p091, p092"):
            paired_difference(hacks(graded, "a", {1: 0.5, 2: 0.5}), few)

    def test_an_interval_from_one_seed(self, graded):
        one = hacks(graded, "a", {1: 0.5})
        for interval in (
            lambda: paired_difference(one, one),
            lambda: rate(one),
            lambda: conditional_rate(one, one),
            lambda: paired_runs({1: 3.0}, {1: 2.0}),
        ):
            with pytest.raises(LabError, match="one seed says nothing about the next"):
                interval()
        with pytest.raises(ValueError, match="at least two seeds and two problems, got 1 and 100"):
            crossed_mean(np.zeros((1, 100)))

    @pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
    def test_a_confidence_outside_its_range(self, graded, confidence):
        arm = hacks(graded, "a", {1: 0.6, 2: 0.5})
        for interval in (lambda: paired_difference(arm, arm, confidence), lambda: rate(arm, confidence)):
            with pytest.raises(ValueError, match="between 0 and 1"):
                interval()


class TestCrossedMean:
    def test_is_the_paired_t_interval_where_all_problems_are_alike(self):
        per_seed = np.array([0.5, 0.4, 0.6])
        t_interval = stats.ttest_1samp(per_seed, 0).confidence_interval(0.95)
        margin = crossed_mean(np.tile(per_seed[:, None], (1, 50))).margin(0.95)
        assert float(margin) == pytest.approx((t_interval.high - t_interval.low) / 2)

    def test_is_the_t_interval_over_problems_where_all_seeds_are_alike(self):
        per_problem = np.random.default_rng(0).normal(0.3, 0.2, 50)
        t_interval = stats.ttest_1samp(per_problem, 0).confidence_interval(0.9)
        margin = crossed_mean(np.tile(per_problem, (3, 1))).margin(0.9)
        assert float(margin) == pytest.approx((t_interval.high - t_interval.low) / 2)

    def test_mixes_inverse_degrees_of_freedom_by_the_parts_of_the_variance(self):
        cells = np.add.outer([0.0, 0.1, 0.2], np.linspace(-0.6, 0.6, 13))  # no interaction
        found = crossed_mean(cells)
        assert (found.v_seeds, found.v_problems) == pytest.approx(
            (0.01 / 3, np.var(np.linspace(-0.6, 0.6, 13), ddof=1) / 13)
        )
        w = float(found.v_seeds / found.variance)
        assert float(found.df) == pytest.approx(1 / (w / 2 + (1 - w) / 12))


class TestRate:
    def test_is_wilsons_interval_of_the_samples_that_the_variance_amounts_to(self):
        tally = counted([[4, 0, 2, 1], [3, 0, 2, 0], [4, 1, 3, 1]])
        found, cells = rate(tally), crossed_mean(tally.hits / 4)
        p, n = 21 / 48, 21 / 48 * 27 / 48 / float(cells.variance)
        for end in (found.low, found.high):  # the ends solve |p - x| = t sqrt(x (1 - x) / n)
            assert abs(p - end) == pytest.approx(float(cells.critical(0.95)) * math.sqrt(end * (1 - end) / n))
        assert (found.estimate, found.n) == (pytest.approx(p), 48)

    def test_has_a_width_at_zero_hits(self):
        found = rate(counted([[0] * 128] * 3))
        t = stats.t.ppf(0.975, 2)
        assert (found.estimate, found.low) == (0.0, 0.0)
        assert found.high == pytest.approx(t**2 / (1536 + t**2))

    def test_given_an_attempt_is_over_all_attempts(self):
        hits, attempts = counted([[4, 1, 0], [3, 2, 0], [2, 1, 1]]), counted([[4, 2, 0], [4, 3, 0], [2, 2, 1]])
        found = conditional_rate(hits, attempts)
        assert found is not None
        assert (found.estimate, found.n) == (pytest.approx(14 / 18), 18)
        linear = crossed_mean((hits.hits - 14 / 18 * attempts.hits) / 2)  # 2 attempts in a mean cell
        for end in (found.low, found.high):
            variance = float(linear.variance) * end * (1 - end) / (14 / 18 * 4 / 18)
            assert abs(end - 14 / 18) == pytest.approx(float(linear.critical(0.95)) * math.sqrt(variance))

    def test_given_an_attempt_does_not_fall_with_the_attempts(self):
        """Half as many attempts, as many of them paid: the outcome rate halves, this one does not."""
        often, seldom = counted([[4, 4], [4, 4]]), counted([[2, 2], [2, 2]])
        twice = [conditional_rate(often, often), conditional_rate(seldom, seldom)]
        assert [found.estimate for found in twice if found] == [1.0, 1.0]

    def test_given_no_attempt_at_all_is_unknown_and_more_hits_than_attempts_are_refused(self):
        never, ever = counted([[0, 0], [0, 0]]), counted([[1, 0], [0, 0]])
        assert conditional_rate(never, never) is None
        with pytest.raises(ValueError, match="a hit outside"):
            conditional_rate(ever, never)


class TestSignFlip:
    def test_counts_every_pattern_of_signs(self):
        assert sign_flip_p([0.5, 0.4, 0.6]) == 2 / 8
        assert sign_flip_p([0.5, 0.4, -0.1]) == 4 / 8  # |sum| 0.8 or more: +++, ++-, and their mirrors
        assert sign_flip_p([1.0] * 5) == 2 / 32
        assert sign_flip_p([0.0, 0.0]) == 1.0

    def test_is_exact_under_its_null_hypothesis(self):
        """With any differences whose signs are fair, p <= alpha in no more than alpha of the cases."""
        rng = np.random.default_rng(0)
        draws = [sign_flip_p(rng.choice([-1, 1], 6) * rng.exponential(size=6)) for _ in range(1000)]
        assert 0.02 < np.mean(np.array(draws) <= 2 / 64) < 0.045

    @pytest.mark.parametrize("count", [0, 17])
    def test_refuses_what_it_cannot_count(self, count):
        with pytest.raises(ValueError, match="1 to 16 seeds"):
            sign_flip_p([0.1] * count)


class TestHolm:
    def test_adjusts_step_by_step(self):
        adjusted = holm({"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.012})
        assert adjusted == pytest.approx(
            {"c": 0.06, "a": 0.04, "d": 0.06, "b": 0.04}
        )  # 4a, max(4a, 3b), 2c, max(2c, d)
        assert list(adjusted) == ["c", "a", "d", "b"]

    def test_never_exceeds_one_and_leaves_one_test_alone(self):
        assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
        assert holm({"a": 0.03}) == {"a": 0.03}
        assert holm({}) == {}


class TestSeedsNeeded:
    def difference(self, sem: float, error: float, seeds: int = 3) -> PairedDifference:
        return PairedDifference(0.3, sem, error, 2.0, 0.0, 0.6, 0.95, (0.3,) * seeds)

    def test_is_the_power_of_the_paired_t_test_where_seeds_are_all_that_varies(self):
        spread = 0.2  # standard deviation over seeds
        found = seeds_needed(self.difference(spread / math.sqrt(3), spread / math.sqrt(3)), 0.3, 0.8, 128)

        def power(n: int) -> float:
            return float(stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, 0.3 / spread * math.sqrt(n)))

        assert found is not None
        assert power(found) >= 0.8 > power(found - 1)

    def test_grows_with_variance_and_shrinks_with_the_effect(self):
        few, many = self.difference(0.02, 0.02), self.difference(0.2, 0.2)
        assert seeds_needed(few, 0.3, 0.8, 128) == 3  # with two, t is 12.7
        assert seeds_needed(many, 0.3, 0.8, 128) > seeds_needed(many, 0.6, 0.8, 128) > 3

    def test_is_none_where_the_problems_alone_are_too_uncertain(self):
        assert seeds_needed(self.difference(0.01, 0.3), 0.3, 0.8, 128) is None

    def test_refuses_no_effect(self):
        with pytest.raises(ValueError, match="effect other than 0"):
            seeds_needed(self.difference(0.1, 0.1), 0.0, 0.8, 128)


# ---------------------------------------------------------------- coverage, as in benchmarks/coverage.py


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks/coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "world", ["as measured, .46 and .0", "as measured, .46 and .2", "no effect, .2", "seeds and problems alike"]
)
def test_a_95_percent_interval_covers_the_truth_in_93_to_97_percent(coverage, world, seeds):
    found = coverage.covered(world, coverage.WORLDS[world], seeds, {"ours": coverage.METHODS["ours"]})
    assert 93.0 <= found["ours"] <= 97.0


@pytest.mark.parametrize("probability", [0.2, 0.46])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_rates_interval_covers_it_in_93_to_97_percent(coverage, probability, seeds):
    assert 93.0 <= coverage.covered_rate(probability, coverage.RATES[probability], seeds) <= 97.0


def test_a_rate_of_zero_is_always_covered(coverage):
    assert coverage.covered_rate(0.0, coverage.RATES[0.0], 3) == 100.0


def test_the_simulations_can_tell_a_bad_interval_from_a_good_one(coverage):
    """A bootstrap of three seeds misses by far; the interval over seeds alone misses the problems' share."""
    methods = {name: coverage.METHODS[name] for name in ("bootstrap", "paired t", "ours")}
    found = coverage.covered("problems dominate", coverage.WORLDS["problems dominate"], 3, methods)
    assert found["bootstrap"] < 40
    assert found["paired t"] < 80
    assert 93 <= found["ours"] <= 97


def test_wilson_is_inside_its_range_at_both_ends():
    for hits in (0, 4):
        low, high = wilson(crossed_mean(np.full((3, 5), hits / 4)), 60, 0.95)
        assert 0 <= low < high <= 1
        assert (low == 0) == (hits == 0)
        assert (high == 1) == (hits == 4)
