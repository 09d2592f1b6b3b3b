"""The exported LoRA is the same model in plain PEFT."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny_qwen3 import NAMES, MakeAdapted, logits, tiny_qwen3
from torch import Tensor
from typer.testing import CliRunner

from projected_grpo.cli import app
from projected_grpo.errors import LabError
from projected_grpo.export import export_lora, kept_directions
from projected_grpo.spectral import deltas


@pytest.fixture
def saved(make_adapted: MakeAdapted, tmp_path: Path) -> PeftModel:
    """An adapter under tmp_path/adapter whose base lies in tmp_path/base; k_proj was not trained at all."""
    tiny_qwen3().save_pretrained(tmp_path / "base")
    model = make_adapted()
    with torch.no_grad():
        for name, delta in deltas(model).items():
            delta[::3] = 0
            if name.endswith("k_proj"):
                delta.zero_()
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    return model


PLAIN_PEFT = """
import sys, torch
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert not any(name.startswith("projected_grpo") for name in sys.modules)
with torch.no_grad():
    torch.save(model(input_ids=torch.load(sys.argv[2])).logits, sys.argv[3])
"""


def test_plain_peft_gives_the_same_logits(saved: PeftModel, ids: Tensor, tmp_path: Path) -> None:
    done = export_lora(tmp_path / "adapter", tmp_path / "lora")
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [str(tmp_path / name) for name in ("lora", "ids.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", PLAIN_PEFT, *arguments], check=True, capture_output=True, timeout=120)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(saved, ids), atol=1e-5, rtol=0)
    assert (logits(saved, ids) - logits(tiny_qwen3(), ids)).abs().max() > 0.01

    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["r"] == config["lora_alpha"] == done.rank == 21  # two thirds of 32
    assert (done.modules, done.lost) == (14, 0.0)
    assert done.directions == done.trained == sum(int((delta != 0).sum()) for delta in deltas(saved).values())
    tensors = load_file(tmp_path / "lora/adapter_model.safetensors")
    assert len(tensors) == 2 * len(NAMES)
    assert tensors[f"base_model.model.{NAMES[0]}.lora_A.weight"].shape == (21, 32)


def test_truncation_keeps_the_energy_and_says_what_it_lost(saved: PeftModel, ids: Tensor, tmp_path: Path) -> None:
    done = export_lora(tmp_path / "adapter", tmp_path / "lora", energy=0.9)
    assert done.directions < done.trained
    cut = PeftModel.from_pretrained(tiny_qwen3(), tmp_path / "lora")
    lost = change = 0.0
    for name in NAMES:
        layer = cut.get_submodule(f"base_model.model.{name}")
        exact = saved.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
        error = (exact - layer.get_delta_weight("default")).square().sum().item()
        assert error <= 0.1001 * exact.square().sum().item()
        lost, change = lost + error, change + exact.square().sum().item()
    assert done.lost == pytest.approx((lost / change) ** 0.5, rel=1e-3)
    assert 0.1 < done.lost <= done.worst[1] <= 0.1**0.5
    assert (logits(cut, ids) - logits(saved, ids)).abs().max() > 1e-4


def test_the_fewest_directions_are_kept() -> None:
    delta = torch.tensor([0.0, 3.0, -4.0, 0.0, 1.0])
    assert kept_directions(delta, None).tolist() == [1, 2, 4]
    assert kept_directions(delta, 1.0).tolist() == [1, 2, 4]
    assert kept_directions(delta, 25 / 26).tolist() == [1, 2]
    assert kept_directions(delta, 0.6).tolist() == [2]
    assert kept_directions(torch.zeros(3), 0.5).tolist() == []


@pytest.mark.usefixtures("saved")
def test_the_command_tells_what_it_wrote(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["export-lora", str(tmp_path / "adapter"), str(tmp_path / "lora"), "--energy", "0.5"]
    )
    assert result.exit_code == 0
    assert "on 14 matrices" in result.output
    assert "lost" in result.output
    assert "most in model.layers." in result.output


def test_what_cannot_be_exported_is_refused(saved: PeftModel, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "lora"
    cases = {
        "must be a new folder": (adapter, adapter, None),
        "must hold adapter_config.json": (tmp_path / "base", out, None),
        "at most 1": (adapter, out, 1.5),
    }
    for message, (source, target, energy) in cases.items():
        with pytest.raises(LabError, match=message):
            export_lora(source, target, energy=energy)
    with torch.no_grad():
        for delta in deltas(saved).values():
            delta.zero_()
    saved.save_pretrained(adapter)
    with pytest.raises(LabError, match="an export needs a trained adapter"):
        export_lora(adapter, out)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(LabError, match="names no base model"):
        export_lora(adapter, out)
    with pytest.raises(LabError, match="an export needs"):
        export_lora(adapter, out, base=str(tmp_path / "base"))
    assert not out.exists()
    saved_lora = tmp_path / "other"
    saved_lora.mkdir()
    (saved_lora / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')
    with pytest.raises(LabError, match="must be a spectral adapter"):
        export_lora(saved_lora, out)
