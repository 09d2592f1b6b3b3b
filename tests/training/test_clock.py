"""Seconds by phase, on a clock that the test moves."""

from __future__ import annotations

import contextlib

import pytest

from projected_grpo.training import clock as clock_module
from projected_grpo.training.clock import PhaseClock


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, as a list of one number to be set."""
    now = [0.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])
    return now


def test_a_phase_adds_up_also_when_it_fails_and_taking_empties(hands: list[float]) -> None:
    clock = PhaseClock()
    for seconds in (2.0, 3.0):
        with clock.phase("work"):
            hands[0] += seconds
    with contextlib.suppress(ValueError), clock.phase("work"):
        hands[0] += 1.0
        raise ValueError
    clock.start("other")
    hands[0] += 4.0
    clock.stop("other")
    clock.add("other", 0.5)
    assert clock.take() == {"work": 6.0, "other": 4.5}
    assert clock.take() == {}


def test_phases_may_nest(hands: list[float]) -> None:
    clock = PhaseClock()
    with clock.phase("outer"):
        hands[0] += 1.0
        with clock.phase("inner"):
            hands[0] += 2.0
    assert clock.take() == {"outer": 3.0, "inner": 2.0}
