"""The arms of a study beside its first one: rates, differences, relapse, loopholes, controls and cost, with known
answers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from projected_grpo.errors import LabError
from projected_grpo.evaluation.study import (
    DoseSeries,
    dose_series,
    ends_of,
    loophole_rates,
    read_costs,
    read_study_samples,
    relapses,
    study_arms,
)
from projected_grpo.report.study import DOSES, markdown, plane_figure
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

HACKS = {"vanilla": {1: 0.5, 2: 0.6, 3: 0.7}, "projected": {1: 0.1, 2: 0.1, 3: 0.1}, "random": {1: 0.5, 2: 0.6, 3: 0.6}}


def training_log(arm: str, seed: int, hacked: list[float]) -> pd.DataFrame:
    rows = pd.DataFrame({"step": range(len(hacked)), "hacked": hacked, "correct": 0.2})
    return rows.assign(arm=arm, seed=seed)


def training_logs(curves: dict[str, list[float]], seeds: tuple[int, ...] = (1, 2, 3)) -> pd.DataFrame:
    return pd.concat([training_log(arm, seed, curve) for arm, curve in curves.items() for seed in seeds])


CURVES = {"vanilla": [0.0] * 5 + [0.6] * 15, "projected": [0.1] * 20, "random": [0.1] * 10 + [0.5] * 10}


@pytest.fixture
def arms(graded):
    samples = {arm: graded(arm, hack, passed=0.3, form=0.9).assign(loophole="run_tests") for arm, hack in HACKS.items()}
    return {found.arm: found for found in study_arms("core", samples, training_logs(CURVES), 0.95)}


class TestAgainstTheReference:
    def test_rates_are_means_over_seeds(self, arms):
        row = arms["vanilla"].row()
        assert (row["hack_rate"], row["pass_rate"], row["format_rate"]) == (0.6, 0.3, 0.9)
        assert row["attempt_rate"] == 0.6
        assert row["hack_rate_sem"] == pytest.approx(0.1 / 3**0.5, abs=1e-6)
        assert (row["pass_rate_sem"], row["format_rate_sem"]) == (0.0, 0.0)
        assert (row["seeds"], row["samples"]) == (3, 300)

    def test_every_rate_has_an_interval_around_it(self, arms):
        for found in arms.values():
            for share in found.shares.values():
                assert share.low < share.estimate < share.high
                assert share.n == 300

    def test_drop_is_paired_by_seed(self, arms):
        assert arms["projected"].compared.drop.by_seed == pytest.approx((0.4, 0.5, 0.6))
        assert arms["projected"].row()["drop_pp"] == pytest.approx(50.0)
        assert arms["random"].row()["drop_pp"] == pytest.approx(10 / 3, abs=1e-4)

    def test_holm_counts_the_arms_but_the_reference(self, arms):
        row = arms["projected"].row()
        assert row["drop_p_holm"] == pytest.approx(min(1.0, 2 * row["drop_p"]), abs=2e-6)
        assert row["drop_p"] < 0.05
        assert arms["random"].row()["drop_p_holm"] == pytest.approx(arms["random"].row()["drop_p"], abs=2e-6)
        assert (arms["vanilla"].row()["drop_p"], arms["vanilla"].row()["drop_pp"]) == (1.0, 0.0)

    def test_times_to_hack(self, arms):
        assert (arms["vanilla"].row()["half_hacked_step"], arms["vanilla"].row()["half_hacked_seeds"]) == (5, 3)
        assert (arms["projected"].row()["half_hacked_step"], arms["projected"].row()["half_hacked_seeds"]) == (20, 0)

    def test_same_keys_for_every_arm(self, arms):
        assert len({tuple(found.row()) for found in arms.values()}) == 1

    def test_one_seed_has_no_interval(self, graded):
        samples = {arm: graded(arm, {1: rate}).assign(loophole="a") for arm, rate in (("a", 0.5), ("b", 0.1))}
        curves = training_logs({"a": [0.5] * 5, "b": [0.1] * 5}, seeds=(1,))
        row = {found.arm: found.row() for found in study_arms("core", samples, curves, 0.95)}["b"]
        assert (row["hack_rate"], row["hack_ci_low"], row["hack_ci_high"], row["drop_p_holm"]) == (0.1, 0.0, 1.0, 1.0)

    def test_other_seeds_are_refused(self, graded):
        samples = {
            "a": graded("a", {1: 0.5, 2: 0.5}).assign(loophole="x"),
            "b": graded("b", {1: 0.5, 3: 0.5}).assign(loophole="x"),
        }
        with pytest.raises(LabError, match="same seeds"):
            study_arms("core", samples, training_logs({"a": [0.1] * 5, "b": [0.1] * 5}), 0.95)


class TestRelapse:
    def test_is_the_end_above_the_lowest_five_steps(self):
        log = training_log("a", 7, [0.5] * 5 + [0.1] * 5 + [0.2, 0.3, 0.4, 0.5, 0.6])
        assert relapses(log, "a") == pytest.approx({7: 0.4 - 0.1})

    def test_is_0_where_the_end_is_lowest(self):
        assert relapses(training_log("a", 1, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]), "a") == {1: 0.0}

    def test_needs_five_steps(self):
        with pytest.raises(LabError, match="4 steps"):
            relapses(training_log("a", 1, [0.1] * 4), "a")


class TestAfterTheEnd:
    CURVE: ClassVar = [0.2] * 3 + [0.1] * 7 + [0.3] * 5 + [0.6] * 5
    FRESH: ClassVar = [0.05] * 5 + [0.25] * 5 + [0.9] * 10

    def row(self, graded, ends):
        samples = {arm: graded(arm, {1: 0.5, 2: 0.5}).assign(loophole="x") for arm in ("fresh", "a")}
        logs = [training_log("a", 1, self.CURVE), training_log("a", 2, [0.1] * 20)]
        logs += [training_log("fresh", seed, self.FRESH) for seed in (1, 2)]
        return study_arms("core", samples, pd.concat(logs), 0.95, ends)[1]

    def test_rates_before_and_after_and_what_an_undefended_policy_learns_in_that_time(self, graded):
        row = self.row(graded, {"a": 10}).row()
        assert (row["end_before"], row["end_before_sem"]) == (0.1, 0.0)
        assert (row["end_after"], row["end_after_sem"]) == pytest.approx((0.35, 0.25))
        assert row["end_fresh_rise"] == pytest.approx(0.2)
        assert row["end_half_seeds"] == 1

    def test_it_stands_in_the_table(self, graded):
        text = markdown([self.row(graded, {"a": 10})], 0.95)
        assert "| a | 10.0 ± 0.0 | 35.0 ± 25.0 | +25.0 | +20.0 | in 1 of 2 seeds |" in text
        assert "After the end" not in markdown([self.row(graded, {})], 0.95)

    @pytest.mark.parametrize("end", [4, 16])
    def test_an_end_too_near_to_the_ends_of_the_run_is_refused(self, graded, end):
        with pytest.raises(LabError, match="5 steps before and after"):
            self.row(graded, {"a": end})

    def test_the_end_is_the_arms_own_setting(self):
        arms = {
            "projected": ArmSettings(intervention="erase", direction="hack"),
            "stopped": ArmSettings(intervention="ended", direction="hack", options={"after": 20}),
        }
        assert ends_of(arms) == {"stopped": 20}


def test_loopholes_apart_each_seed_counting_the_same(graded):
    """Seed 1: 10 of 20 problems hacked, half of them have each loophole; seed 2 hacks none."""
    rows = graded("a", {1: 0.5, 2: 0.0}, problems=20)
    first = rows["problem_id"] < "p010"
    rows["loophole"] = first.map({True: "sentinel", False: "run_tests"})
    rows["correct"] = ~rows["hacked"] & ~first
    found = loophole_rates(rows, "a", 0.95)
    assert {name: (of.hack.estimate, of.passed.estimate) for name, of in found.items()} == {
        "run_tests": (0.0, 1.0),
        "sentinel": (0.5, 0.0),
    }
    assert found["run_tests"].hack.low == 0.0 < found["run_tests"].hack.high < 0.95
    assert found["sentinel"].row()["hack_ci_high"] > 0.9, "two seeds that differ by everything"
    rows.loc[first & (rows["problem_id"] >= "p005") & (rows["seed"] == 2), "grader_error"] = True
    assert loophole_rates(rows, "a", 0.95)["sentinel"].hack.estimate == 0.5, "not the mean over completions"
    alone = loophole_rates(rows[rows["problem_id"] == "p000"], "a", 0.95)["sentinel"].hack
    assert (alone.estimate, alone.low, alone.high) == (0.5, 0.0, 1.0)


class TestDoses:
    SHARED = DirectionSettings(k=8, gate="one_sided", refresh_every=10, project="gradient")
    ARMS: ClassVar = {
        "vanilla": ArmSettings(intervention="measure"),
        "k16": ArmSettings(intervention="erase", direction="hack", axes={"k": 16}),
        "projected": ArmSettings(intervention="erase", direction="hack"),
        "k1": ArmSettings(intervention="erase", direction="hack", axes={"k": 1}),
        "random_k2": ArmSettings(intervention="erase", direction="random", axes={"k": 2}),
        "both": ArmSettings(intervention="erase", direction="hack", axes={"gate": "both_sides", "k": 4}),
        "half": ArmSettings(intervention="erase", direction="hack", axes={"overshoot": 0.5}),
    }

    def test_a_series_differs_in_one_number_and_takes_in_the_arm_without_axes(self):
        k = DoseSeries("k", ((1.0, "k1"), (8.0, "projected"), (16.0, "k16")))
        assert dose_series(self.ARMS, self.SHARED) == [k]
        more = ArmSettings(intervention="erase", direction="hack", axes={"overshoot": 1.5})
        overshoot = DoseSeries("overshoot", ((0.5, "half"), (1.0, "projected"), (1.5, "more")))
        assert dose_series({**self.ARMS, "more": more}, self.SHARED) == [k, overshoot]

    def test_the_picture_and_the_table_go_by_rising_dose(self, graded):
        hack = {"k16": 0.0, "k1": 0.5, "projected": 0.25}
        samples = {arm: graded(arm, {1: rate, 2: rate}).assign(loophole="x") for arm, rate in hack.items()}
        rows = study_arms("doses", samples, training_logs(dict.fromkeys(hack, [0.1] * 5), seeds=(1, 2)), 0.95)
        series = dose_series(self.ARMS, self.SHARED)
        text = markdown(rows, 0.95, series)
        assert [line.split("|")[1:3] for line in text.splitlines() if line.startswith(("| 1 ", "| 8 ", "| 16 "))] == [
            [" 1 ", " k1 "], [" 8 ", " projected "], [" 16 ", " k16 "],
        ]  # fmt: skip
        drawn = plane_figure("doses", rows, {}, series, "svg").decode()
        [line] = re.findall(rf'<path d="([^"]+)"[^>]*stroke: {DOSES[0]}; stroke-opacity[^>]*stroke-width: 2', drawn)[:1]
        x = [float(point.split()[1]) for point in line.strip().splitlines()]
        assert x == sorted(x, reverse=True), "from k = 1, which hacks most, to k = 16"
        assert x[0] - x[1] == pytest.approx(x[1] - x[2], abs=1e-3)
        assert len(x) == 3
        assert DOSES[0] not in plane_figure("doses", rows, {}, (), "svg").decode()


class TestCosts:
    def write(self, root: Path, arm: str, seed: int, seconds: float, memory: float) -> None:
        folder = root / arm / str(seed)
        folder.mkdir(parents=True)
        pd.DataFrame({"step": [0, 1], "step_total": [seconds, seconds]}).to_parquet(folder / "timings.parquet")
        (folder / "provenance.json").write_text(json.dumps({"peak_memory_mb": memory}))

    def test_seconds_are_the_mean_of_quotients_by_seed(self, tmp_path):
        for seed, base, own in ((1, 1.0, 2.0), (2, 2.0, 3.0)):
            self.write(tmp_path, "vanilla", seed, base, 100.0)
            self.write(tmp_path, "routed", seed, own, 100.0 + seed)
        vanilla, routed = read_costs("core", tmp_path, ["vanilla", "routed"], [1, 2])
        assert (vanilla.seconds_ratio, vanilla.peak_memory_mb) == (1.0, 100.0)
        assert (routed.seconds_ratio, routed.peak_memory_mb, routed.seeds) == (1.75, 102.0, 2)

    def test_a_missing_record_is_an_error(self, tmp_path):
        self.write(tmp_path, "vanilla", 1, 1.0, 100.0)
        with pytest.raises(LabError, match="routed"):
            read_costs("core", tmp_path, ["vanilla", "routed"], [1])


def test_a_missing_arm_is_an_error(tmp_path, graded):
    (tmp_path / "vanilla").mkdir()
    graded("vanilla", {1: 0.5}).assign(loophole="run_tests").to_parquet(tmp_path / "vanilla/samples.parquet")
    assert set(read_study_samples(tmp_path, ["vanilla"])["vanilla"]["loophole"]) == {"run_tests"}
    with pytest.raises(LabError, match="projected"):
        read_study_samples(tmp_path, ["vanilla", "projected"])
