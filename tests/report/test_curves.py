"""Curves over training: reading the logs, averaging over seeds, refusing what does not compare."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from projected_grpo.errors import LabError
from projected_grpo.report.curves import alignment_table, band, check_budget, read_steps, smoothed, training_table

COLUMNS = ("step", "hacked", "correct", "alignment_signed", "alignment", "alignment_null", "share_removed")


def write_log(root: Path, arm: str, seed: int, rows: list[tuple[float | None, ...]], columns=COLUMNS) -> None:
    folder = root / arm / str(seed)
    folder.mkdir(parents=True)
    pd.DataFrame(rows, columns=list(columns)).to_csv(folder / "steps.csv", index=False)


@pytest.fixture
def two_runs(tmp_path: Path) -> pd.DataFrame:
    nothing = (None, None, 0.2, None)  # a step whose groups all had equal rewards: no gradient
    write_log(tmp_path, "a", 1, [(1, 0.0, 0.5, 0.1, 0.4, 0.2, 0.0), (2, 0.25, 0.5, *nothing)])
    write_log(tmp_path, "a", 2, [(1, 0.5, 0.25, 0.3, 0.6, 0.2, 0.5), (2, 0.75, 0.0, *nothing)])
    return read_steps(tmp_path, {"a": [1, 2]})


def test_training_table_has_mean_and_range_over_seeds(two_runs):
    table = training_table(two_runs)
    assert table.to_dict("list") == {
        "arm": ["a", "a"],
        "step": [1, 2],
        "hack_rate": [0.25, 0.5],
        "hack_rate_low": [0.0, 0.25],
        "hack_rate_high": [0.5, 0.75],
        "pass_rate": [0.375, 0.25],
        "pass_rate_low": [0.25, 0.0],
        "pass_rate_high": [0.5, 0.5],
    }


def test_alignment_table_leaves_out_a_step_without_gradient(two_runs):
    table = alignment_table(two_runs)
    assert table["step"].tolist() == [1]
    assert table[["alignment_signed", "alignment", "alignment_null", "share_removed"]].iloc[0].tolist() == [
        0.2,
        0.5,
        0.2,
        0.25,
    ]
    assert (table["alignment_signed_low"].item(), table["alignment_signed_high"].item()) == (0.1, 0.3)


def test_nothing_was_removed_from_a_step_without_gradient(two_runs):
    assert two_runs["share_removed"].tolist() == [0.0, 0.0, 0.5, 0.0]


def test_arms_keep_the_order_in_which_they_were_named(tmp_path: Path):
    for arm in ("zeta", "alpha"):
        write_log(tmp_path, arm, 1, [(1, 0.0, 0.5, 0.1, 0.4, 0.2, 0.0)])
    steps = read_steps(tmp_path, {"zeta": [1], "alpha": [1]})
    assert training_table(steps)["arm"].tolist() == ["zeta", "alpha"]


def test_smoothing_is_a_centred_mean_within_each_run(tmp_path: Path):
    for seed, offset in ((1, 0.0), (2, 0.5)):
        rows = [(step, offset + step / 10, 0.0, 0.0, 0.0, 0.0, 0.0) for step in range(4)]
        write_log(tmp_path, "a", seed, rows)
    curve = smoothed(read_steps(tmp_path, {"a": [1, 2]}), ["hacked"], window=3)
    assert curve["hacked"].tolist() == pytest.approx([0.05, 0.1, 0.2, 0.25, 0.55, 0.6, 0.7, 0.75])


def test_smoothing_over_one_step_changes_nothing(two_runs):
    assert band(smoothed(two_runs, ["hacked"], 1), "hacked")["mean"].tolist() == [0.25, 0.5]


def test_a_missing_run_a_missing_column_and_unequal_steps_are_refused(tmp_path: Path):
    row = (1, 0.0, 0.5, 0.1, 0.4, 0.2, 0.0)
    write_log(tmp_path, "a", 1, [row])
    write_log(tmp_path, "short", 1, [row[:6]], columns=COLUMNS[:6])
    write_log(tmp_path, "long", 1, [row, (2, *row[1:])])
    with pytest.raises(LabError, match=r"a/2/steps\.csv: 'no such file'"):
        read_steps(tmp_path, {"a": [1, 2]})
    with pytest.raises(LabError, match="needs also: share_removed"):
        read_steps(tmp_path, {"short": [1]})
    with pytest.raises(LabError, match="2 steps, the last is 2"):
        read_steps(tmp_path, {"a": [1], "long": [1]})
    with pytest.raises(LabError, match="no run"):
        read_steps(tmp_path, {})


def test_arms_that_had_unequal_numbers_of_completions_are_not_compared(tmp_path: Path):
    for arm, counts in {"vanilla": (48, 48), "projected": (48, 47)}.items():
        for seed, count in enumerate(counts, start=1):
            (tmp_path / arm / str(seed)).mkdir(parents=True)
            pd.DataFrame({"step": range(count)}).to_parquet(tmp_path / arm / str(seed) / "rollouts.parquet")
    check_budget(tmp_path, {"vanilla": [1, 2], "projected": [1]})
    with pytest.raises(LabError, match="47 completions") as refusal:
        check_budget(tmp_path, {"vanilla": [1], "projected": [1, 2]})
    assert refusal.value.setting == str(tmp_path / "projected/2/rollouts.parquet")
    assert "vanilla/1/rollouts.parquet: 48" in refusal.value.rule
    with pytest.raises(LabError, match="no such file"):
        check_budget(tmp_path, {"random": [1]})
