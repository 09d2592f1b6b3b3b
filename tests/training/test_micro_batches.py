"""A step in portions: four passes of three completions train what one pass of twelve does. And with factors that live
elsewhere the same, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from same_run import BOTH, FILES, GRPO, STRICT, assert_same_run, replay, sampled
from training_lab import Lab, silent
from trl import GRPOTrainer

from projected_grpo.directions.extract import pad_right
from projected_grpo.spectral import spectral_layers
from projected_grpo.storage import SCRATCH_VARIABLE
from projected_grpo.training import run as run_module
from projected_grpo.training.spec import RunSpec

ARMS = [("vanilla", None, FILES), ("projected", None, FILES), ("guarded", STRICT, FILES), ("routed", None, BOTH)]


def in_portions(spec: RunSpec, **compute: Any) -> RunSpec:
    return dataclasses.replace(spec, compute=spec.compute.model_copy(update=compute))


def result(spec: RunSpec) -> Path:
    return run_module.train_run(spec, silent) / "run"


@pytest.mark.parametrize(("arm", "block", "adapters"), ARMS)
def test_four_passes_train_what_one_does(
    lab: Lab,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    arm: str,
    block: dict[str, Any] | None,
    adapters: Sequence[str],
) -> None:
    """The clip binds, so that a norm taken per pass would show; the guard's rows count, so their order and scale do."""
    assert scratch
    spec = lab.spec(arm, block=block, **GRPO, max_grad_norm=1e-3)
    one = result(spec)
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", replay(sampled(one)))
    four = result(in_portions(spec, micro_batch=3))
    assert four != one
    assert_same_run(one, four, adapters)
    steps = pd.read_csv(one / "steps.csv")
    assert (steps["grad_norm_after"] <= 1e-3 + 1e-9).all()
    assert (steps["grad_norm_before"] > 1e-3).all(), "the clip had nothing to do"
    assert (steps["share_removed"] > 0).all() == (arm != "vanilla")


def test_recomputed_activations_give_the_same_gradients(
    lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scratch
    spec = lab.spec("own", block=STRICT, **GRPO)
    one = result(spec)
    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", replay(sampled(one)))
    assert_same_run(one, result(in_portions(spec, checkpointing=True, micro_batch=6)), FILES)


def test_pairs_are_read_in_portions_during_a_run_too(lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scratch
    sizes: list[int] = []

    def pad(encoded: Sequence[Any], token: int) -> Any:
        sizes.append(len(encoded))
        return pad_right(encoded, token)

    monkeypatch.setattr("projected_grpo.directions.extract.pad_right", pad)
    result(in_portions(lab.spec("guarded", block=STRICT, **GRPO), micro_batch=3))
    assert max(sizes) == 3


def test_rollouts_sampled_in_portions_fill_the_step(lab: Lab, scratch: Path) -> None:
    """Five, five and two: in the order of the prompts, each in its place."""
    assert scratch
    run = result(in_portions(lab.spec("vanilla", **GRPO), generate_batch=5))
    whole = result(lab.spec("vanilla", **GRPO))
    rows, expected = (pd.read_parquet(folder / "rollouts.parquet") for folder in (run, whole))
    first, wanted = rows[rows["step"] == 0], expected[expected["step"] == 0]
    for column in ("problem_id", "group", "sample", "prompt"):
        assert first[column].tolist() == wanted[column].tolist()
    assert all(len(ids) > 0 for ids in rows["token_ids"])
    assert [list(ids) for ids in first["token_ids"]] != [list(ids) for ids in wanted["token_ids"]]


def test_half_precision_trains_float32_deltas(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    run = result(in_portions(lab.spec("projected", **GRPO), dtype="bfloat16", keep_factors=True))
    trained = load_file(run / "adapter/adapter_model.safetensors")
    assert {str(delta.dtype) for delta in trained.values()} == {"torch.float32"}
    assert max(float(delta.abs().max()) for delta in trained.values()) > 1e-2
    kept = list((tmp_path / "factors").glob("*.safetensors"))
    assert len(kept) == len(trained)
    assert {str(load_file(path)["U"].dtype) for path in kept} == {"torch.bfloat16"}


@pytest.mark.parametrize(
    ("factors", "arm", "adapters", "grpo"),
    [
        ("cpu", "projected", FILES, {"kl_beta": 0.05}),  # W' is made for its reference, another adapter, and again
        ("disk", "projected", FILES, {"kl_beta": 0.05}),
        ("cpu", "routed", BOTH, {}),
    ],
)
def test_factors_away_from_the_device_train_the_same_adapter(
    lab: Lab,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    factors: str,
    arm: str,
    adapters: Sequence[str],
    grpo: dict[str, Any],
) -> None:
    """Nothing is replayed: what W' samples in W's place is the same as well."""
    spec = lab.spec(arm, **GRPO, **grpo)
    here = result(spec)
    homes: set[str | None] = set()
    build = run_module.build_trainer

    def watched(*given: Any, **named: Any) -> Any:
        trainer = build(*given, **named)
        homes.update(layer.factors.home for layer in spectral_layers(trainer.model).values())
        return trainer

    monkeypatch.setattr(run_module, "build_trainer", watched)
    away = result(in_portions(spec, factors=factors, keep_factors=True))
    assert away != here
    assert homes == {factors}
    for name in adapters:
        expected, got = (load_file(run / "adapter" / name) for run in (here, away))
        assert expected.keys() == got.keys()
        assert all(torch.equal(got[module], delta) for module, delta in expected.items())
        assert any(delta.abs().max() > 1e-2 for delta in expected.values()), "nothing was learned"
    steps, steps_away = (pd.read_csv(run / "steps.csv") for run in (here, away))
    pd.testing.assert_frame_equal(steps_away, steps, check_exact=True)
    assert (steps["kl"] > 0).any() == bool(grpo)
    stored = list((scratch / "factors").glob("*-weight.safetensors"))
    assert bool(stored) == (factors == "disk")


def test_portions_belong_to_a_runs_key_and_where_factors_lie_does_not(lab: Lab) -> None:
    spec = lab.spec("vanilla")
    changes: list[dict[str, Any]] = [{}, {"micro_batch": 4}, {"generate_batch": 4}, {"dtype": "bfloat16"}]
    keys = {run_module.run_key(in_portions(spec, **change)) for change in changes}
    assert len(keys) == len(changes)
    assert run_module.run_key(in_portions(spec, keep_factors=True)) in keys
    # Away from the device they are never applied to a few tokens one by one, which rounds differently.
    cpu, disk = (run_module.run_key(in_portions(spec, factors=home, keep_factors=True)) for home in ("cpu", "disk"))
    assert cpu == disk
    assert cpu not in keys
