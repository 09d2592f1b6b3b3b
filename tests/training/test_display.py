"""The lines of a training run: what stands where, and when."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from projected_grpo.training.display import COLUMNS, EVERY, Display, live_line

FIGURES = {
    "paid": 0.5, "hacked": 0.25, "correct": 0.25, "attempted": 0.375, "format_ok": 1.0, "alignment_signed": 0.125,
    "share_removed": 0.0, "leak": 0.0, "seconds_step_total": 3.44, "seconds_generate": 1.2, "seconds_grade": 0.3,
    "seconds_forward_backward": 1.7, "seconds_projection": 0.1, "seconds_refresh": 0.0,
}  # fmt: skip


def shown(steps: int, *, terminal: bool = False) -> list[str]:
    specs: Any = [SimpleNamespace(arm="vanilla", seed=3, grpo=SimpleNamespace(steps=steps))]
    stream = io.StringIO()
    with Display(specs, Console(file=stream, width=120, force_terminal=terminal)) as display:
        for step in range(steps):
            display.step(3, step, FIGURES)
        display.finish(3)
    return stream.getvalue().splitlines()


def test_the_live_line_has_the_rates_and_where_the_seconds_went():
    assert live_line(FIGURES) == "paid 0.50 hack 0.25 pass 0.25 align +0.12 | 3.4 s: sample 1.2, grade 0.3, train 1.8"


def test_a_table_grows_by_a_row_every_few_steps_and_at_the_end():
    head, *rows = shown(2 * EVERY + 1)
    assert [row.split(":")[0] for row in rows] == [
        f"vanilla seed 3 step {step}/{2 * EVERY + 1}" for step in (EVERY, 2 * EVERY, 2 * EVERY + 1)
    ]
    assert head.split()[-len(COLUMNS) :] == list(COLUMNS)
    assert "projected-grpo columns" in head
    assert rows[0].split()[-len(COLUMNS) :] == ["0.50", "0.25", "0.25", "0.38", "1.00", "+0.12", "0.00", "0.00", "3.44"]
    assert len(rows[0]) <= 110


def test_a_step_without_a_gradient_has_no_alignment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FIGURES, "alignment_signed", math.nan)
    assert "-" in shown(1)[1].split()


def test_on_a_terminal_the_rows_stand_above_the_live_line():
    lines = "\n".join(shown(EVERY, terminal=True))
    assert "sample 1.2" in lines
    assert f"vanilla seed 3 step {EVERY}/{EVERY}:" in lines
