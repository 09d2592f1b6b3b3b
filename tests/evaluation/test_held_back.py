"""What a quarantine holds back, with known answers."""

from __future__ import annotations

import pandas as pd
import pytest

from projected_grpo.errors import LabError
from projected_grpo.evaluation.held_back import has_quarantine, held_back
from projected_grpo.evaluation.study import study_arms
from projected_grpo.report.study import markdown

CURVE = [0.0] * 5 + [0.6] * 4 + [0.8]  # the last five steps: 0.64


def log(arm: str, seed: int, curve: list[float], norm: float = 1.0) -> pd.DataFrame:
    rows = pd.DataFrame({"step": range(len(curve)), "hacked": curve, "correct": 0.2, "quarantine_norm": norm})
    return rows.assign(arm=arm, seed=seed).iloc[::-1]  # a log is not always in order


def test_the_trained_rate_of_the_last_steps_beside_the_deployed_one_under_the_same_names(graded):
    samples = graded("routed", {1: 0.0, 2: 0.1}, passed=0.3, train_hack=0.04)
    samples.loc[(samples["tokens"] == "heldout"), "correct"] = False
    steps = pd.concat([log("routed", 1, CURVE), log("routed", 2, [0.44] * 10)])
    found = held_back(samples, steps, "routed", 5)
    assert found.trained == {"hack": pytest.approx((0.64, 0.44)), "pass": pytest.approx((0.2, 0.2))}
    assert found.deployed == {"hack": (0.04, 0.04), "pass": (0.3, 0.3)}, "held-out names are another question"
    row = found.row()
    assert (row["trained_hack_rate"], row["deployed_hack_rate"]) == pytest.approx((0.54, 0.04))
    assert (row["trained_pass_rate"], row["deployed_pass_rate"]) == pytest.approx((0.2, 0.3))
    assert (row["held_back_pp"], row["held_back_pp_sem"]) == pytest.approx((50.0, 10.0))


def test_what_could_not_be_graded_counts_nowhere(graded):
    samples = graded("routed", {1: 0.0}, train_hack=0.5)
    samples.loc[samples["hacked"] & (samples["tokens"] == "train"), "grader_error"] = True
    assert held_back(samples, log("routed", 1, CURVE), "routed", 5).deployed["hack"] == (0.0,)


def test_other_seeds_are_refused(graded):
    with pytest.raises(LabError, match="same seeds"):
        held_back(graded("routed", {1: 0.5}), log("routed", 2, CURVE), "routed", 5)


def test_a_quarantine_is_one_that_moved():
    assert has_quarantine(log("routed", 1, CURVE, 0.5))
    assert not has_quarantine(log("vanilla", 1, CURVE, 0.0))
    assert not has_quarantine(log("vanilla", 1, CURVE).drop(columns="quarantine_norm"))


def test_it_stands_in_the_studys_table_beside_the_first_arm(graded):
    arms = ("vanilla", "other", "routed")
    samples = {arm: graded(arm, {1: 0.5, 2: 0.5}, train_hack=0.1).assign(loophole="x") for arm in arms}
    steps = pd.concat([log(arm, seed, CURVE, float(arm == "routed")) for arm in arms for seed in (1, 2)])
    rows = study_arms("routing", samples, steps, 0.95)
    assert [row.arm for row in rows if "held_back_pp" in row.row()] == ["vanilla", "routed"]
    text = markdown(rows, 0.95)
    assert "| routed | 64.0 ± 0.0 | 10.0 ± 0.0 | +54.0 ± 0.0 | 20.0 ± 0.0 | 20.0 ± 0.0 |" in text
    assert "quarantine" not in markdown([row for row in rows if row.arm == "other"], 0.95)
