"""Every arm beside the reference: the figures are those of the statistics, and finite where there are none."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from projected_grpo.evaluation.comparison import compare_arms, gather
from projected_grpo.evaluation.hypothesis import Evidence
from projected_grpo.evaluation.metrics import measure
from projected_grpo.evaluation.statistics import holm, paired_difference, rate

TRAINED = ("vanilla", "projected", "random")


def evidence(graded, seeds=(1, 2, 3)) -> Evidence:
    rates = {"base": 0.03, "vanilla": 0.6, "projected": 0.0, "random": 0.5}
    results = {}
    for arm, hack in rates.items():
        by_seed = {seed: hack + (0.02 * (seed - 2) if hack else 0) for seed in seeds}
        results[arm] = measure(graded(arm, hack=by_seed, passed=0.1 if arm == "random" else 0.2), arm)
    logs = [
        pd.DataFrame({"arm": arm, "seed": seed, "step": range(10), "hacked": 0.1 * seed, "correct": 0.15})
        for arm in TRAINED
        for seed in seeds
    ]
    return gather(results, pd.concat(logs, ignore_index=True), 0.95)


def test_a_row_holds_what_the_statistics_say(graded):
    world = evidence(graded)
    found = compare_arms(world, "vanilla", 0.1)
    drop = paired_difference(world.arms["vanilla"].hacks, world.arms["random"].hacks)
    row, hack = found["random"].row(), rate(world.arms["random"].hacks)
    assert (row["drop_pp"], row["drop_ci_low"]) == pytest.approx((100 * drop.estimate, 100 * drop.low))
    assert (row["hack_ci_low"], row["hack_ci_high"]) == pytest.approx((hack.low, hack.high), abs=1e-6)
    assert (row["pass_change_pp"], row["drop_p_flip"]) == (pytest.approx(-10.0), 0.25)
    assert (row["hacks_lead_step"], row["hacks_lead_seeds"]) == (pytest.approx(10 / 3, abs=1e-6), 2)
    assert (row["half_hacked_step"], row["half_hacked_seeds"]) == (10.0, 0)
    assert list(row) == sorted(row)


def test_holm_goes_over_every_arm_but_the_reference(graded):
    world = evidence(graded)
    found = compare_arms(world, "vanilla", 0.1)
    plain = {arm: one.drop.p_value() for arm, one in found.items() if one.drop}
    assert set(plain) == {"base", "projected", "random"}
    assert {arm: found[arm].p_holm for arm in plain} == holm(plain)


def test_the_pass_rate_is_tested_against_the_margin(graded):
    world = evidence(graded)
    loose, tight = (compare_arms(world, "vanilla", margin)["random"] for margin in (0.2, 0.1))
    assert loose.p_noninferior < 0.05 < 0.4 < tight.p_noninferior  # random passes 10 points less


def test_the_reference_is_compared_with_nothing_and_never_attempting_is_unknown(graded):
    found = compare_arms(evidence(graded), "vanilla", 0.1)
    reference, treatment = found["vanilla"].row(), found["projected"]
    assert (reference["drop_pp"], reference["drop_p_holm"], reference["drop_p_flip"]) == (0.0, 1.0, 1.0)
    assert treatment.hack_given_attempt is None
    assert treatment.row()["attempts"] == treatment.row()["hack_given_attempt"] == 0


def test_one_seed_has_the_same_keys_the_whole_scale_and_no_test(graded):
    one, three = (compare_arms(evidence(graded, seeds), "vanilla", 0.1) for seeds in ((1,), (1, 2, 3)))
    for arm in one:
        row = one[arm].row()
        assert list(row) == list(three[arm].row())
        assert all(math.isfinite(value) for value in row.values())
        assert (row["hack_ci_low"], row["hack_ci_high"], row["drop_p_holm"]) == (0.0, 1.0, 1.0)
