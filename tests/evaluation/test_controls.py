"""Which arm controls which, and the difference to the strongest control, with known answers."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from projected_grpo.evaluation.controls import CONTROL_OPTIONS, controls_of, excess_row, excesses, strongest
from projected_grpo.evaluation.metrics import COLUMNS, measure
from projected_grpo.evaluation.study import study_arms
from projected_grpo.interventions.registry import family
from projected_grpo.report import overview
from projected_grpo.report.study import markdown, metrics
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.loader import parse, read_params

HACKS = {
    "vanilla": {1: 0.6, 2: 0.6, 3: 0.6},
    "projected": {1: 0.1, 2: 0.1, 3: 0.1},
    "random": {1: 0.5, 2: 0.6, 3: 0.6},
    "placebo": {1: 0.2, 2: 0.3, 3: 0.4},
}
PASSES = {"vanilla": 0.1, "projected": 0.3, "random": 0.1, "placebo": 0.2}
LINKS = {"random": "projected", "placebo": "projected"}


@pytest.fixture
def samples(graded):
    return {
        arm: graded(arm, hack, passed=PASSES[arm], form=0.9).assign(loophole="run_tests") for arm, hack in HACKS.items()
    }


def results(samples):
    return {arm: measure(rows[[*COLUMNS]], arm) for arm, rows in samples.items()}


def erase(direction, **more):
    return ArmSettings(intervention="erase", direction=direction, **more)


def test_controls_belong_to_the_arm_that_differs_in_direction_alone():
    arms = {
        "vanilla": ArmSettings(intervention="measure"),
        "projected": erase("hack"),
        "routed": ArmSettings(intervention="routed", direction="hack", options={"capacity": "full"}),
        "random": erase("random"),
        "routed_random": ArmSettings(intervention="routed", direction="random", options={"capacity": "full"}),
        "routed_small": ArmSettings(intervention="routed", direction="random", options={"capacity": "span"}),
    }
    assert controls_of(arms) == {"random": "projected", "routed_random": "routed"}


def test_the_studies_own_controls_are_found_whatever_makes_them_one():
    params = read_params()
    arms = {name: parse(params, f"arms.{name}", ArmSettings) for name in params["arms"]}
    links = controls_of(arms)
    assert links["guarded_shuffled"] == links["guarded_flipped"] == "guarded"
    assert links["random_energy"] == links["flipped"] == "projected"
    assert links["routed_flipped"] == "routed"
    assert links["rollout_routed_share_random"] == "rollout_routed_share"
    assert links["trusted_hacks"] == links["trusted_random"] == "trusted"
    assert links["projected_static_flipped"] == "projected_static"
    kinds = ("random", "placebo", "permuted", "flipped")
    assert all(arm.direction not in kinds or name in links for name, arm in arms.items()), "none is nobody's"
    assert not {"projected", "guarded", "trusted", "vanilla", "vanilla_taught", "routed_seeded"} & set(links)


def test_what_only_random_directions_read_is_no_other_setting():
    energy = erase("random", axes={"random_match": "energy", "random_redraw": False, "k": 4})
    assert controls_of({"projected": erase("hack", axes={"k": 4}), "energy": energy}) == {"energy": "projected"}
    named = erase("hack", axes={"k": 4, "random_match": "rank"})
    assert controls_of({"projected": named, "energy": energy}) == {"energy": "projected"}
    assert controls_of({"projected": erase("hack"), "energy": energy}) == {}, "another k"


def test_an_option_that_makes_a_control_may_be_spelled_out_as_off():
    arms = {
        "guarded": ArmSettings(intervention="guarded", direction="hack", options={"shuffled": False}),
        "shuffled": ArmSettings(intervention="guarded", direction="hack", options={"shuffled": True}),
        "permuted": ArmSettings(intervention="guarded", direction="permuted"),
    }
    assert controls_of(arms) == {"shuffled": "guarded", "permuted": "guarded"}
    other = ArmSettings(intervention="erase", direction="hack", options={"shuffled": True})
    assert controls_of({"projected": erase("hack"), "other": other}) == {}, "another family's option"


def test_the_options_are_those_of_their_families():
    for name, (option, own) in CONTROL_OPTIONS.items():
        assert getattr(family(name, "arms.x").Options(), option) == own


class TestExcess:
    def test_every_control_is_compared_paired_by_seed(self, samples):
        found = excesses(results(samples), LINKS, 0.95)
        assert list(found) == ["projected"]
        random, placebo = found["projected"]
        assert (random.control.arm, placebo.control.arm) == ("random", "placebo")
        assert random.hacks.by_seed == pytest.approx((0.4, 0.5, 0.5))
        assert placebo.hacks.by_seed == pytest.approx((0.1, 0.2, 0.3))
        assert placebo.passes.by_seed == pytest.approx((0.1, 0.1, 0.1))

    def test_the_strongest_hacks_least_and_of_equals_solves_most(self, samples, graded):
        found = excesses(results(samples), LINKS, 0.95)["projected"]
        assert strongest(found).control.arm == "placebo"
        samples["equal"] = graded("equal", HACKS["placebo"], passed=0.25, form=0.9)
        more = excesses(results(samples), {**LINKS, "equal": "projected"}, 0.95)["projected"]
        assert strongest(more).control.arm == "equal"

    def test_a_row_counts_the_controls_that_an_arm_is_shown_to_be_below(self, samples):
        row = excess_row(excesses(results(samples), LINKS, 0.95)["projected"])
        assert (row["excess_pp"], row["excess_pass_pp"]) == pytest.approx((20.0, 10.0))
        assert row["excess_ci_low"] < 0 < 20.0 < row["excess_ci_high"], "a spread of 0.1 over three seeds"
        assert row["excess_pass_ci_low"] < 10.0 < row["excess_pass_ci_high"]
        assert (row["controls"], row["controls_beaten"]) == (2, 1)

    def test_what_the_study_lacks_is_left_out(self, samples):
        found = results(samples)
        without_arm = {name: result for name, result in found.items() if name != "projected"}
        assert excesses(without_arm, LINKS, 0.95) == {}
        del found["placebo"]
        [only] = excesses(found, LINKS, 0.95)["projected"]
        assert only.control.arm == "random"

    def test_one_seed_says_nothing(self, samples):
        once = {arm: rows[rows["seed"] == 1] for arm, rows in samples.items()}
        assert excesses(results(once), LINKS, 0.95) == {}

    def test_it_stands_in_the_study_and_in_the_table_of_all(self, samples):
        log = pd.DataFrame({"step": range(5), "hacked": 0.1, "correct": 0.2})
        steps = pd.concat([log.assign(arm=arm, seed=seed) for arm in HACKS for seed in (1, 2, 3)])
        rows = study_arms("core", samples, steps, 0.95, links=LINKS)
        lines = [line for line in markdown(rows, 0.95).splitlines() if line.startswith("| projected | ")]
        random, placebo = lines[-2:]
        assert random.startswith("| projected | random | 56.7 ± 3.3 | 10.0 ± 0.0 | +46.7 (")
        assert placebo.startswith("| projected | placebo | 30.0 ± 5.8 | 20.0 ± 0.0 | +20.0 (")
        assert "| +10.0 (" in placebo
        found = json.loads(json.dumps(metrics(rows)))
        assert found["projected"]["control"] == "placebo"
        assert "control" not in found["random"]
        [line] = [
            line
            for line in overview.markdown({"core": found}, {}, {"again": {"seconds": 1.0}}).splitlines()
            if "| projected |" in line
        ]
        assert "| +20.0 (" in line
        assert ") placebo, 1 of 2 |" in line
        assert "Beside each control" not in markdown(study_arms("core", samples, steps, 0.95), 0.95)
