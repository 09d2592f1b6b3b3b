"""Parts per step while a run runs, joined at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from projected_grpo.columns import ROLLOUTS as EXPLAINED
from projected_grpo.storage import sha256_file
from projected_grpo.training.runlog import KINDS, ROLLOUTS, RunLog


def row(step: int, sample: int = 0, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        **dict.fromkeys(("arm", "problem_id", "loophole", "token", "source", "prompt", "finish_reason"), "x"),
        **dict.fromkeys(("format_ok", "paid", "correct", "hacked", "attempted"), False),
        **dict.fromkeys(("reward", "reward_format", "reward_paid", "advantage", "weight"), 0.5),
        **dict.fromkeys(("alignment_signed", "alignment"), 0.25),
        "completion": "naïve\n",
        "token_ids": [1, 2],
        "seed": 1,
        "step": step,
        "group": 0,
        "sample": sample,
        "score": None,
        "grader_error": None,
    }
    return {**values, **changes}


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path)


def test_a_part_per_step_and_kind(log: RunLog, tmp_path: Path) -> None:
    log.write_rollouts(3, [row(3)])
    log.write_figures("steps", 3, {"loss": 0.25})
    log.write_figures("sampler", 3, {"sampler_gap": 0.5})
    log.write_figures("timings", 3, {"step_total": 1.5})
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"rollouts/000003.parquet", *(f"{kind}/000003.json" for kind in ("steps", "sampler", "timings"))}
    assert json.loads((tmp_path / "steps/000003.json").read_text()) == {"step": 3, "loss": 0.25}


def test_times_are_not_among_the_figures(log: RunLog) -> None:
    log.write_figures("steps", 0, {"loss": 1.0})
    log.write_figures("timings", 0, {"step_total": 1.0})
    assert list(log.figures("steps")) == ["step", "loss"]
    assert list(log.figures("timings")) == ["step", "step_total"]


def test_figures_come_in_the_order_of_steps(log: RunLog) -> None:
    for step in (10, 2, 100):
        log.write_figures("steps", step, {"loss": float(step)})
    expected = pd.DataFrame({"step": [2, 10, 100], "loss": [2.0, 10.0, 100.0]})
    pd.testing.assert_frame_equal(log.figures("steps"), expected)


def test_drop_from_forgets_that_step_and_later_of_every_kind(log: RunLog) -> None:
    for step in range(4):
        log.write_rollouts(step, [row(step)])
        log.write_figures("steps", step, {})
        log.write_figures("sampler", step, {})
        log.write_figures("timings", step, {})
    log.drop_from(2)
    assert {kind: [path.stem for path in log.parts(kind)] for kind in KINDS} == {
        kind: ["000000", "000001"] for kind in ("rollouts", "steps", "sampler", "timings")
    }


def test_join_keeps_rows_in_order_one_row_group_per_step(log: RunLog, tmp_path: Path) -> None:
    for step in (1, 0, 2):
        log.write_rollouts(step, [row(step, sample) for sample in range(step + 1)])
    log.join_rollouts(tmp_path / "all.parquet")
    file = pq.ParquetFile(tmp_path / "all.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [1, 2, 3]
    joined = [(r["step"], r["sample"]) for r in file.read().to_pylist()]
    assert joined == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]


def test_rows_come_back_as_they_were_written(log: RunLog, tmp_path: Path) -> None:
    rows = [row(0), row(0, 1, reward=None, grader_error="no memory", token_ids=[])]
    log.write_rollouts(0, rows)
    log.join_rollouts(tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.schema.equals(ROLLOUTS)
    assert table.to_pylist() == [{name: r[name] for name in ROLLOUTS.names} for r in rows]


def test_a_column_that_the_schema_lacks_is_refused_not_dropped(log: RunLog) -> None:
    with pytest.raises(ValueError, match="no column rewrad"):
        log.write_rollouts(0, [row(0), row(0, 1, rewrad=1.0)])
    assert not list(log.parts("rollouts"))


def test_equal_rows_join_to_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        log = RunLog(tmp_path / name)
        log.write_rollouts(0, [row(0)])
        log.join_rollouts(tmp_path / f"{name}.parquet")
    assert sha256_file(tmp_path / "a.parquet") == sha256_file(tmp_path / "b.parquet")


def test_a_half_written_part_does_not_count(log: RunLog, tmp_path: Path) -> None:
    """What a killed process leaves of an atomic write: a hidden temporary file."""
    log.write_figures("steps", 0, {"loss": 1.0})
    (tmp_path / "steps" / ".000001.json.abc.tmp").write_text('{"step": 1, "lo')
    assert log.figures("steps")["step"].tolist() == [0]


def test_every_column_is_explained() -> None:
    assert {column.name for column in EXPLAINED} == set(ROLLOUTS.names)
