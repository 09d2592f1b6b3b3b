"""Where the base is loaded: the device, the precision, the factors; and the same values whichever way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from projected_grpo.errors import LabError
from projected_grpo.policy import adapter_config, device_of, load_base, load_policy, load_trained
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.spectral import deltas, spectral_layers
from projected_grpo.storage import SCRATCH_VARIABLE

BASE = Path(__file__).resolve().parents[1] / "data/shipped/micro"


def compute(**changes: Any) -> ComputeSettings:
    plain = {"device": "cpu", "dtype": "float32", "micro_batch": None, "generate_batch": None}
    stored = {"checkpointing": False, "keep_factors": False, "factors": "device"}
    return ComputeSettings(**{**plain, **stored, **changes})


@pytest.mark.parametrize(
    ("asked", "there", "given"),
    [("cpu", True, "cpu"), ("auto", True, "cuda:3"), ("auto", False, "cpu"), ("cuda", True, "cuda:3")],
)
def test_a_process_gets_the_device_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, there: bool, given: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of(compute(device=asked)) == torch.device(given)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LabError) as refusal:
        load_base(BASE, compute(device="cuda"))
    assert (refusal.value.setting, refusal.value.value) == ("compute.device", "cuda")


def test_half_precision_holds_weights_and_factors_alike() -> None:
    policy = load_policy(BASE, compute(dtype="bfloat16"))
    for layer in spectral_layers(policy).values():
        assert {layer.base_layer.weight.dtype, layer.U.dtype, layer.Vh.dtype} == {torch.bfloat16}
        assert {delta.dtype for delta in layer.spectral_delta.values()} == {torch.float32}


def test_an_adapter_says_nothing_of_this_machine_or_of_defaults(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    plain, kept = (adapter_config(compute(keep_factors=keep)) for keep in (False, True))
    away = [adapter_config(compute(keep_factors=True, factors=home)) for home in ("cpu", "disk")]
    assert plain.factors_dtype is None
    assert plain.basis_cache is None
    assert kept.basis_cache == str(tmp_path / "factors")
    assert [config.factors_device for config in (plain, kept, *away)] == [None, None, "cpu", "disk"]
    assert plain.to_dict() == kept.to_dict() == away[0].to_dict() == away[1].to_dict()


def test_kept_factors_are_those_that_would_be_computed(tmp_path: Path, monkeypatch) -> None:
    """A trained adapter, loaded with factors from the store and without: the same logits, bit for bit."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    policy = load_policy(BASE, compute())
    with torch.no_grad():
        for number, delta in enumerate(deltas(policy).values()):
            delta.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    policy.save_pretrained(tmp_path / "adapter")
    ids = AutoTokenizer.from_pretrained(BASE)("Given a list", return_tensors="pt")["input_ids"]
    settings = [compute(), compute(keep_factors=True), compute(keep_factors=True)]  # made, written, read
    settings += [compute(keep_factors=True, factors=home) for home in ("cpu", "disk")]
    with torch.no_grad():
        loaded = [load_trained(BASE, tmp_path / "adapter", each) for each in settings]
        homes = [{layer.factors.home for layer in spectral_layers(policy).values()} for policy in loaded]
        assert homes == [{None}, {None}, {None}, {"cpu"}, {"disk"}]
        first, *others = [policy(ids).logits for policy in loaded]
        assert not torch.equal(first, load_base(BASE, compute())(ids).logits)
    assert all(torch.equal(first, other) for other in others)
    stored = [path.name for path in (tmp_path / "scratch/factors").iterdir()]
    assert len([name for name in stored if not name.endswith("-weight.safetensors")]) == len(spectral_layers(policy))
