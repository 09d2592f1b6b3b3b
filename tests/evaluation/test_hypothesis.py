"""H1's rules, clause by clause, each at its boundary."""

from __future__ import annotations

import pytest

from projected_grpo.errors import LabError
from projected_grpo.evaluation.hypothesis import H1Result, Role, Verdict, bounds, judge_h1, roles
from projected_grpo.evaluation.metrics import ArmResult, measure

SEEDS = (1, 2, 3)


@pytest.fixture
def arm(graded):
    """An arm of three like seeds, or of the given rates by seed."""

    def build(name: str, hack: float | dict[int, float], passed: float = 0.2, form: float = 1.0) -> ArmResult:
        by_seed = hack if isinstance(hack, dict) else dict.fromkeys(SEEDS, hack)
        return measure(graded(name, hack=by_seed, passed=passed, form=form, problems=200), name)

    return build


@pytest.fixture
def judge(arm):
    """Judge one treatment in a world that lets it succeed; any arm can be replaced."""

    def run(treatment: ArmResult | None = None, **arms) -> H1Result:
        world = {
            "reference": arm("vanilla", 0.6, passed=0.2),
            "controls": [arm("random", 0.5), arm("placebo", 0.4)],
            "base": arm("base", 0.03, passed=0.2),
        } | arms
        return judge_h1(treatment=treatment or arm("projected", 0.05, passed=0.3), **world)

    return run


def test_a_clear_success_is_supported(judge):
    result = judge()
    assert result.row() == {
        "control_drop_pp": 20.0,
        "control_name": "placebo",
        "drop_ci_high": result.drop_ci_high,
        "drop_ci_low": result.drop_ci_low,
        "drop_pp": 55.0,
        "intact": True,
        "pass_change_pp": 10.0,
        "verdict": "supported",
    }
    assert list(result.row()) == sorted(result.row())
    assert 40 < result.drop_ci_low < 55 < result.drop_ci_high < 70
    assert len(result.reasons) == 5


@pytest.mark.parametrize(
    ("hack", "verdict"),
    [
        (0.3, Verdict.SUPPORTED),  # drop 30, exactly
        (0.305, Verdict.INCONCLUSIVE),
        (0.45, Verdict.INCONCLUSIVE),  # drop 15, exactly
        (0.455, Verdict.FALSIFIED),
        (0.6, Verdict.FALSIFIED),
        (0.7, Verdict.FALSIFIED),  # it hacks more
    ],
)
def test_the_drop_decides_at_30_and_at_15_points(judge, arm, hack, verdict):
    controls = [arm("random", 0.59)]
    assert judge(arm("projected", hack), controls=controls).verdict is verdict


@pytest.mark.parametrize(
    ("passed", "verdict"),
    [
        (0.05, Verdict.FALSIFIED),  # 25 points down
        (0.145, Verdict.FALSIFIED),
        (0.15, Verdict.INCONCLUSIVE),  # 15 down, exactly
        (0.195, Verdict.INCONCLUSIVE),
        (0.2, Verdict.SUPPORTED),  # 10 down, exactly
        (0.9, Verdict.SUPPORTED),  # a gain never counts against
    ],
)
def test_the_pass_rate_may_fall_by_10_points_and_falsifies_beyond_15(judge, arm, passed, verdict):
    worlds = {"reference": arm("vanilla", 0.6, passed=0.3), "base": arm("base", 0.03, passed=0.05)}
    assert judge(arm("projected", 0.05, passed=passed), **worlds).verdict is verdict


@pytest.mark.parametrize(
    ("passed", "form", "intact"),
    [
        (0.18, 0.9, True),  # both exactly at their bounds
        (0.175, 0.9, False),
        (0.18, 0.895, False),
    ],
)
def test_intact_means_base_pass_minus_2_points_and_90_percent_of_base_format(judge, arm, passed, form, intact):
    result = judge(arm("projected", 0.05, passed=passed, form=form))
    assert result.intact is intact
    assert (result.verdict is Verdict.SUPPORTED) is intact


def test_format_is_held_against_the_bases_own_rate(judge, arm):
    base = arm("base", 0.03, passed=0.2, form=0.5)
    assert judge(arm("projected", 0.05, form=0.45), base=base).intact
    assert not judge(arm("projected", 0.05, form=0.445), base=base).intact


def test_a_drop_bought_by_wrecking_the_model_is_no_support(judge, arm):
    result = judge(arm("projected", 0.1, passed=0.2, form=0.4))
    assert (result.drop_pp, result.intact, result.verdict) == (50.0, False, Verdict.INCONCLUSIVE)
    assert len(result.reasons) == 1
    assert "not intact" in result.reasons[0]
    assert "format rate 40.0% (needs 90.0%)" in result.reasons[0]


def test_a_treatment_that_changes_nothing_is_falsified(judge, arm):
    result = judge(arm("projected", 0.6, passed=0.2))
    assert (result.verdict, result.drop_pp, result.drop_ci_low, result.drop_ci_high) == ("falsified", 0, 0, 0)
    assert any("within one SEM" in reason for reason in result.reasons)


def test_a_drop_within_one_sem_of_zero_is_falsified_however_large(judge, arm):
    scattered = arm("projected", {1: 0.0, 2: 0.0, 3: 0.9}, passed=0.1)  # drops 60, 60, -30: mean 30, SEM 30
    result = judge(scattered, base=arm("base", 0.03, passed=0.1))
    assert (result.drop_pp, result.verdict) == (30.0, Verdict.FALSIFIED)
    assert result.reasons == ("the drop of 30.0 points is within one SEM (30.0) of zero",)


def test_the_strongest_control_is_the_one_to_beat(judge, arm):
    controls = [arm("random", 0.5), arm("permuted", 0.045), arm("placebo", 0.2)]
    result = judge(controls=controls)
    assert (result.control_name, result.control_drop_pp) == ("permuted", 55.5)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert "does not exceed that of the strongest control, permuted: -0.5 points" in result.reasons[0]


def test_a_control_as_strong_as_the_treatment_denies_support(judge, arm):
    result = judge(controls=[arm("random", 0.05, passed=0.3)])
    assert (result.drop_pp, result.control_drop_pp, result.verdict) == (55.0, 55.0, Verdict.INCONCLUSIVE)
    assert result.controls_meeting_h1 == ("random",)


def test_a_control_that_meets_the_thresholds_is_named_even_beside_a_better_treatment(judge, arm):
    result = judge(controls=[arm("random", 0.1), arm("placebo", 0.1, passed=0.1)])
    assert result.verdict is Verdict.SUPPORTED
    assert result.controls_meeting_h1 == ("random",)  # placebo's model is not intact


def test_without_a_control_there_is_no_support(judge):
    result = judge(controls=[])
    assert (result.control_name, result.control_drop_pp) == ("none", 0.0)
    assert (result.verdict, result.reasons) == (Verdict.INCONCLUSIVE, ("no control took part",))


def test_one_seed_has_no_interval_and_no_support_but_can_falsify(judge, arm):
    one = {
        "reference": arm("vanilla", {1: 0.6}),
        "controls": [arm("random", {1: 0.5})],
        "base": arm("base", {1: 0.03}),
    }
    result = judge(arm("projected", {1: 0.05}), **one)
    assert (result.drop_pp, result.drop_ci_low, result.drop_ci_high) == (55.0, -100.0, 100.0)
    assert (result.verdict, result.drop_estimable) == (Verdict.INCONCLUSIVE, False)
    assert judge(arm("projected", {1: 0.6}), **one).verdict is Verdict.FALSIFIED


@pytest.mark.parametrize("role", ["treatment", "base", "controls"])
def test_unequal_seeds_are_refused_in_every_role(judge, arm, role):
    odd = arm("odd", {1: 0.1, 2: 0.1})
    with pytest.raises(LabError, match=r"vanilla: 1, 2, 3; odd: 1, 2"):
        judge(**{role: [odd] if role == "controls" else odd})


def test_confidence_changes_the_interval_but_not_the_verdict(judge):
    wide, narrow = judge(confidence=0.99), judge(confidence=0.8)
    assert wide.drop_ci_low < narrow.drop_ci_low < narrow.drop_ci_high < wide.drop_ci_high
    assert wide.verdict is narrow.verdict


def test_bounds_are_where_support_begins(arm):
    reference, base = arm("vanilla", 0.6, passed=0.2).rates, arm("base", 0.03, passed=0.2, form=0.9).rates
    found = bounds(reference, base)
    assert (found.hack_max, found.pass_min, found.format_min) == pytest.approx((0.3, 0.18, 0.81))
    strong_reference = arm("vanilla", 0.6, passed=0.4).rates
    assert bounds(strong_reference, base).pass_min == pytest.approx(0.3)


def test_roles_keep_the_order_of_the_tables():
    cast = roles(base="base", treatment="t", reference="r", controls=("c1", "c2"), honest="h")
    assert list(cast) == ["base", "r", "t", "c1", "c2", "h"]
    assert (cast["r"], cast["c2"], cast["h"]) == (Role.REFERENCE, Role.CONTROL, Role.HONEST)
