"""When the probe is read during a run, over which steps, and that it reads what it should."""

from __future__ import annotations

import torch
from torch import Tensor

from projected_grpo.directions.algebra import Frames
from projected_grpo.training.probing import ProbeLog

N = 60  # rollouts a step
NONE = {"probe_before": -1.0, "probe_after": -1.0, "probe_leace": -1.0}


def told_by_the_first_axis(hacked: list[bool], seed: int) -> dict[str, Tensor]:
    """Gradients (N, 12) whose first coordinate is large where hacked; the others are noise."""
    rows = 0.2 * torch.randn(N, 12, generator=torch.Generator().manual_seed(seed))
    rows[:, 0] += 3.0 * torch.tensor(hacked)
    return {"m": rows}


def test_pools_so_many_steps_and_reads_once() -> None:
    log = ProbeLog(2, Frames({"m": torch.eye(1, 12)}))
    hacked = [index % 2 == 0 for index in range(N)]
    readings = [log.read(step, told_by_the_first_axis(hacked, step), hacked, [1.0] * N, None) for step in range(4)]
    assert readings[0] == readings[2] == NONE
    for reading in (readings[1], readings[3]):
        assert reading["probe_before"] > 0.95
        assert reading["probe_after"] < 0.75  # the axis that told them apart is the one that was erased
    assert readings[1] != readings[3]  # each from its own two steps


def test_an_arms_own_v_is_what_is_asked_about() -> None:
    """V along an axis that tells nothing takes nothing away."""
    hacked = [index % 2 == 0 for index in range(N)]
    log = ProbeLog(1, Frames({"m": torch.eye(1, 12)}))
    reading = log.read(0, told_by_the_first_axis(hacked, 0), hacked, [1.0] * N, {"m": torch.eye(12)[11:]})
    assert reading["probe_after"] > 0.95


def test_every_zero_never_reads() -> None:
    log = ProbeLog(0, Frames({"m": torch.eye(1, 12)}))
    assert log.read(0, {}, [], [], None) == NONE
