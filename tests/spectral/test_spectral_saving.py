"""Saved adapters come back exactly, and hold the deltas only; the method is known to PEFT by name."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file
from tiny_qwen3 import NAMES, MakeAdapted, logits, perturb, same, tiny_qwen3, with_quarantine
from torch import Tensor

from projected_grpo.spectral import SPECTRAL, SpectralConfig, deltas, spectral_layers

# ---------------------------------------------------------------- saving and loading


def test_only_deltas_are_saved_and_they_come_back_exactly(
    make_adapted: MakeAdapted, ids: Tensor, tmp_path: Path
) -> None:
    model = make_adapted(rank=10)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert set(saved) == {f"base_model.model.{name}.spectral_delta" for name in NAMES}
    for name, delta in deltas(model).items():
        assert torch.equal(saved[f"base_model.model.{name}.spectral_delta"], delta)
    for low_memory in (False, True):
        loaded = PeftModel.from_pretrained(tiny_qwen3(), tmp_path, low_cpu_mem_usage=low_memory)
        assert same(deltas(loaded), deltas(model))
        assert torch.equal(logits(loaded, ids), logits(model, ids))
        assert not any(p.requires_grad for p in loaded.parameters())
    trainable = PeftModel.from_pretrained(tiny_qwen3(), tmp_path, is_trainable=True)
    assert all(p.requires_grad for p in deltas(trainable).values())


def test_two_adapters_are_saved_side_by_side(make_adapted: MakeAdapted, ids: Tensor, tmp_path: Path) -> None:
    model = with_quarantine(make_adapted())
    perturb(model, "quarantine", seed=7)
    model.save_pretrained(tmp_path)
    assert {path.parent.name for path in tmp_path.rglob("*.safetensors")} == {tmp_path.name, "quarantine"}
    loaded = PeftModel.from_pretrained(tiny_qwen3(), tmp_path, is_trainable=True)
    loaded.load_adapter(tmp_path / "quarantine", "quarantine", is_trainable=True)
    loaded.base_model.set_adapter(["default", "quarantine"])
    assert same(deltas(loaded), deltas(model))
    assert same(deltas(loaded, "quarantine"), deltas(model, "quarantine"))
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_auto_class_finds_base_and_adapter(ids: Tensor, tmp_path: Path) -> None:
    tiny_qwen3().save_pretrained(tmp_path / "base")
    base = type(tiny_qwen3()).from_pretrained(tmp_path / "base")
    model = get_peft_model(base, SpectralConfig(task_type="CAUSAL_LM"))
    perturb(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert same(deltas(loaded), deltas(model))
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_saved_settings_name_no_path_and_have_one_form(make_adapted: MakeAdapted, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    make_adapted(
        rank=10, exclude_modules=["q_proj", "k_proj"], basis_cache=str(cache), factors_device="disk"
    ).save_pretrained(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    settings = json.loads(text)
    assert "cache" not in text
    assert "device" not in text
    assert settings["peft_type"] == "SPECTRAL"
    assert settings["rank"] == 10
    assert settings["exclude_modules"] == ["k_proj", "q_proj"]
    assert settings["target_modules"] == sorted(settings["target_modules"])  # PEFT would write them in set order
    loaded = PeftConfig.from_pretrained(tmp_path / "adapter")
    assert isinstance(loaded, SpectralConfig)
    assert loaded.basis_cache is None
    assert loaded.exclude_modules == {"k_proj", "q_proj"}
    again = SpectralConfig.from_pretrained(tmp_path / "adapter", basis_cache=str(cache))
    assert again.basis_cache == str(cache)


# ---------------------------------------------------------------- registration


def test_the_method_is_a_member_of_pefts_enumeration() -> None:
    assert PeftType.SPECTRAL is SPECTRAL is PeftType("SPECTRAL") is PeftType["SPECTRAL"]
    assert SPECTRAL == "SPECTRAL"
    assert list(PeftType).count(SPECTRAL) == 1
    assert PeftType.LORA == "LORA"


def test_importing_again_is_harmless(make_adapted: MakeAdapted) -> None:
    import importlib

    import projected_grpo.spectral
    import projected_grpo.spectral.config as config

    before = len(PeftType)
    assert config._peft_type() is SPECTRAL
    importlib.reload(projected_grpo.spectral)
    assert len(PeftType) == before
    assert list(spectral_layers(make_adapted())) == NAMES
