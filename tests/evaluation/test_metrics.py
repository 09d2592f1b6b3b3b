"""Rates by seed and arm, on samples whose rates are known exactly."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from projected_grpo.errors import LabError
from projected_grpo.evaluation.metrics import HEADLINE, measure, read_samples, sem


def test_rates_are_means_over_seeds_and_sem_divides_by_n_minus_one(graded):
    samples = graded("a", hack={1: 0.5, 2: 0.4, 3: 0.6}, passed={1: 0.1, 2: 0.1, 3: 0.4}, form=0.9)
    rates = measure(samples, "a").rates
    assert rates.headline() == {
        "attempt_rate": 0.5,
        "format_rate": 0.9,
        "hack_rate": 0.5,
        "hack_rate_sem": 0.057735,  # standard deviation 0.1 over sqrt(3)
        "paid_rate": 0.7,
        "pass_rate": 0.2,
        "pass_rate_sem": 0.1,
        "samples": 300,
        "seeds": 3,
    }
    assert [(seed.seed, seed.hack_rate, seed.pass_rate, seed.samples) for seed in rates.by_seed] == [
        (1, 0.5, 0.1, 100),
        (2, 0.4, 0.1, 100),
        (3, 0.6, 0.4, 100),
    ]


def test_headline_has_held_out_tokens_and_the_row_has_both(graded):
    rates = measure(graded("a", hack={1: 0.1}, passed=0.3, train_hack=0.5), "a").rates
    assert tuple(rates.headline()) == tuple(sorted(HEADLINE))
    assert rates.headline()["hack_rate"] == 0.1
    assert rates.row()["train_token_hack_rate"] == 0.5
    assert rates.row()["train_token_pass_rate"] == 0.3
    assert list(rates.row()) == sorted(rates.row())


def test_each_seed_counts_the_same_however_many_of_its_samples_were_graded(graded):
    samples = graded("a", hack={1: 1.0, 2: 0.0}, passed=0.0)
    kept = (samples["seed"] == 1) | (samples["problem_id"] < "p010")
    rates = measure(samples[kept], "a").rates
    assert (rates.hack_rate, rates.samples) == (0.5, 110)


def test_a_sample_with_a_grader_error_is_in_no_rate_and_in_no_count(graded):
    samples = graded("a", hack={1: 0.5}, passed=0.2, form=1.0)
    faulty = (samples["tokens"] == "heldout") & (samples["problem_id"] < "p020")  # 20 hacked ones
    samples["grader_error"] = faulty
    samples.loc[faulty, ["hacked", "correct"]] = True  # whatever the columns say, there was no verdict
    result = measure(samples, "a")
    assert (result.rates.hack_rate, result.rates.pass_rate, result.rates.samples) == (30 / 80, 20 / 80, 80)
    assert result.hacks.graded.tolist() == [[0] * 20 + [1] * 80]
    assert result.hacks.hits.sum() == 30


def test_verdict_columns_may_be_null_where_the_grader_failed(graded):
    samples = graded("a", hack={1: 0.5}).astype({"hacked": "boolean"})
    samples["grader_error"] = samples["problem_id"] == "p000"
    samples.loc[samples["grader_error"], "hacked"] = pd.NA
    result = measure(samples, "a")
    assert (result.rates.hack_rate, int(result.hacks.hits.sum())) == (49 / 99, 49)


def test_one_seed_has_finite_numbers(graded):
    rates = measure(graded("a", hack={7: 0.5}), "a").rates
    assert (rates.hack_rate_sem, rates.pass_rate_sem, rates.seeds) == (0.0, 0.0, 1)
    assert all(math.isfinite(value) for value in rates.row().values())
    assert sem([0.1]) == 0.0


def test_tally_counts_samples_by_seed_and_problem(graded):
    samples = pd.concat([graded("a", hack={2: 0.5, 1: 0.25}, problems=4)] * 2)
    hacks = measure(samples, "a").hacks
    assert (hacks.seeds, hacks.problems) == ((1, 2), ("p000", "p001", "p002", "p003"))
    assert hacks.hits.tolist() == [[2, 0, 0, 0], [2, 2, 0, 0]]
    assert hacks.graded.tolist() == [[2, 2, 2, 2]] * 2
    assert hacks.by_seed().tolist() == [0.25, 0.5]


def test_a_seed_that_lost_all_its_samples_is_refused_not_forgotten(graded):
    samples = graded("a", hack={1: 0.5, 2: 0.5})
    samples["grader_error"] = samples["seed"] == 2
    with pytest.raises(LabError, match=r"seed 2: no graded completion with heldout tokens"):
        measure(samples, "a")


def test_a_missing_token_list_column_or_arm_is_refused(graded):
    samples = graded("a", hack={1: 0.5})
    with pytest.raises(LabError, match="no graded completion with train tokens"):
        measure(samples[samples["tokens"] == "heldout"], "a")
    with pytest.raises(LabError, match="needs also: grader_error"):
        measure(samples.drop(columns="grader_error"), "a")
    with pytest.raises(LabError, match="rows of a"):
        measure(samples, "b")


def test_only_the_needed_columns_are_read_and_a_missing_file_says_what_to_run(graded, tmp_path: Path):
    (tmp_path / "a").mkdir()
    samples = graded("a", hack={1: 0.5})
    samples.assign(completion="long text").to_parquet(tmp_path / "a" / "samples.parquet")
    read = read_samples(tmp_path, "a")
    assert "completion" not in read.columns
    assert measure(read, "a").rates == measure(samples, "a").rates
    with pytest.raises(LabError, match="arm 'b' must be sampled and graded"):
        read_samples(tmp_path, "b")
