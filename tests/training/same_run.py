"""Two runs on the same completions, compared: what one said is put into the mouth of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file

from projected_grpo.training.trainer import HookedTrainer

Completions = dict[int, list[list[int]]]  # step -> token ids of its rows

GRPO = {"steps": 2, "prompts": 3, "samples": 4, "save_every": 2, "reward_format": 1.0}
FILES = ("adapter_model.safetensors",)
BOTH = (*FILES, "quarantine/adapter_model.safetensors")
STRICT = {"intervention": "guarded", "direction": "hack", "options": {"threshold": -9.0}}  # leaves out all it may


def replay(completions: Completions) -> Callable[..., Any]:
    """In place of TRL's sampling: what the rows of this rank that no teacher has written are to say."""

    def generate(trainer: HookedTrainer, asked: list[list[int]], *_: Any, **__: Any) -> Any:
        cached = trainer._cached
        mine = trainer.ranks.rows(len(asked) + len(cached))
        said = completions[trainer.state.global_step]
        return [said[row] for place, row in enumerate(mine) if place not in cached], None

    return generate


def sampled(run: Path) -> Completions:
    rows = pd.read_parquet(run / "rollouts.parquet")
    return {int(step): [list(ids) for ids in group["token_ids"]] for step, group in rows.groupby("step")}


def assert_same_run(one: Path, spread: Path, adapters: Sequence[str]) -> None:
    """Adapters to 1e-5, and every figure and every rollout: Adam forgives a gradient of twice the size."""
    for name in adapters:
        expected, got = (load_file(run / "adapter" / name) for run in (one, spread))
        assert expected.keys() == got.keys()
        for module, delta in expected.items():
            torch.testing.assert_close(got[module], delta, rtol=0, atol=1e-5)
        assert any(delta.abs().max() > 1e-2 for delta in expected.values()), "nothing was learned"
    steps, steps_spread = (pd.read_csv(run / "steps.csv") for run in (one, spread))
    assert (steps["grad_norm_before"] > 0).all()
    pd.testing.assert_frame_equal(steps_spread, steps, rtol=1e-3, atol=1e-5)
    rows, rows_spread = (pd.read_parquet(run / "rollouts.parquet") for run in (one, spread))
    assert rows["advantage"].any()
    pd.testing.assert_frame_equal(rows_spread, rows, rtol=1e-3, atol=1e-5)
