"""The estimate against bytes that are alive in a small model: exactly where it is arithmetic, within a margin where
autograd decides."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from projected_grpo.memory import Shape, activations, cache_per_token, estimate
from projected_grpo.policy import adapter_config
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.spectral import deltas, spectral_layers
from projected_grpo.storage import SCRATCH_VARIABLE

SIZES: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 400, "tie_word_embeddings": True,
}  # fmt: skip
GRPO = GrpoSettings(
    steps=1, prompts=2, samples=4, max_new_tokens=20, temperature=1.0, learning_rate=0.1, adam_beta1=0.9,
    adam_beta2=0.99, weight_decay=0.0, kl_beta=0.0, max_grad_norm=0.0, reward_format=0.5, reward_paid=3.0,
    save_every=1, measure_k=3, rollout_gradients=True, probe_every=0,
)  # fmt: skip


def compute(**changes: Any) -> ComputeSettings:
    where = {"device": "cpu", "dtype": "float32", "micro_batch": None, "generate_batch": None}
    stored = {"checkpointing": False, "keep_factors": False, "factors": "device"}
    return ComputeSettings(**{**where, **stored, **changes})


class Alive(TorchDispatchMode):
    """Bytes of all tensors made while entered that are alive at the worst moment."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {id(tensor.untyped_storage()) for tensor in known}
        self._keep = [tensor.untyped_storage() for tensor in known]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(id(storage))
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@contextmanager
def alive(model: torch.nn.Module) -> Iterator[Alive]:
    layers = spectral_layers(model).values()
    factors = [factor for layer in layers for factor in (layer.U, layer.S, layer.Vh)]
    with Alive([*model.parameters(), *model.buffers(), *factors]) as counter:
        yield counter


def plain(**sizes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes}))


def policy(settings: ComputeSettings, **sizes: Any) -> PreTrainedModel:
    return get_peft_model(plain(**sizes).to(getattr(torch, settings.dtype)), adapter_config(settings))


def total(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
def test_resident_parts_are_those_of_the_model(dtype: str, tied: bool) -> None:
    settings = compute(dtype=dtype)
    model = policy(settings, tie_word_embeddings=tied)
    found = estimate(
        Shape.of({**SIZES, "tie_word_embeddings": tied}), GRPO, settings, prompt_tokens=10, axes=5
    ).resident
    layers = spectral_layers(model).values()
    trained = list(deltas(model).values())
    weights = [p for p in model.parameters() if p.dim() == 2]  # norms are a thousandth of it
    assert found["weights"] == total(weights)
    assert found["factors"] == total(x for layer in layers for x in (layer.U, layer.S, layer.Vh))
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert found["folded weights"] == total(layer.folded_weight() for layer in layers)
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values() if x.dim() == 1]
    gradients = [delta.grad for delta in trained]
    assert found["deltas and optimizer"] == total([*trained, *gradients, *moments])
    assert found["directions"] == (3 + 5 + 1) * total(trained)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("home", ["cpu", "disk"])
def test_factors_elsewhere_leave_the_weights_and_s(
    dtype: str, home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W' fills the place of W; U, Vh and W are the host's, and of one matrix at a time the device's."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path))
    settings = compute(dtype=dtype, factors=home, keep_factors=True)
    model = policy(settings)
    layers = spectral_layers(model).values()
    weights = [p for p in model.parameters() if p.dim() == 2]
    before = {p.data_ptr() for p in weights}
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    assert {layer.folded_weight().data_ptr() for layer in layers} <= before, "a second copy"
    found = estimate(Shape.of(SIZES), GRPO, settings, prompt_tokens=10)
    assert found.resident["weights"] == total(weights)
    assert found.resident["factors"] == total(layer.S for layer in layers)
    assert "folded weights" not in found.resident
    at_home = [(layer.U, layer.Vh, layer.base_weight()) for layer in layers]
    assert found.host == (sum(map(total, at_home)) if home == "cpu" else 0)
    sizes = [x.numel() * x.element_size() for three in at_home for x in three]
    assert found.pinned == (sum(2 ** math.ceil(math.log2(size)) for size in sizes) if home == "cpu" else 0)
    for parts in (found.update, found.extraction):
        assert parts["a visiting W, U, Vh"] == max(map(total, at_home))
    beside = estimate(Shape.of(SIZES), GRPO, compute(dtype=dtype), prompt_tokens=10)
    assert beside.host == 0
    saved = sum(map(total, at_home)) - max(map(total, at_home))
    assert beside.peak - found.peak == saved


def test_shards_hold_a_part_of_the_weights_in_training_and_gather_blocks() -> None:
    settings = compute(factors="cpu")
    shape = Shape.of(SIZES)
    whole, dealt = (estimate(shape, GRPO, settings, 10, processes=4, shards=shards) for shards in (1, 4))
    weights = total(p for p in plain().parameters() if p.dim() == 2)
    assert dealt.resident["weights"] * 4 == whole.resident["weights"] == weights
    assert {**dealt.resident, "weights": 0} == {**whole.resident, "weights": 0}
    block = total(p for name, p in plain().named_parameters() if ".layers.0." in name and p.dim() == 2)
    embeddings = total([plain().get_input_embeddings().weight])
    gathered = max(2 * embeddings + block, embeddings + 3 * block)
    for name in ("sampling", "update"):
        assert dealt.moments[name] == {**whole.moments[name], "gathered weights": gathered}
    for name in ("extraction", "evaluation"):  # stages of one process each
        moments = [sum(found.resident.values()) + sum(found.moments[name].values()) for found in (whole, dealt)]
        assert moments[0] == moments[1]
    assert whole.host - dealt.host == 0.75 * shape.adapted * 4, "U and Vh stay whole, W is dealt"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_holds_every_token_of_the_rollouts_sampled_together(dtype: str) -> None:
    settings = compute(dtype=dtype, generate_batch=3)
    with torch.no_grad():
        cache = policy(settings)(input_ids=torch.ones(3, 30, dtype=torch.long), use_cache=True).past_key_values
    held = total(x for layer in cache.layers for x in (layer.keys, layer.values))
    found = estimate(Shape.of(SIZES), GRPO, settings, prompt_tokens=10).sampling["cache of keys and values"]
    assert found == held
    assert cache_per_token(Shape.of(SIZES)) == 2 * 3 * 2 * 24


def measured(settings: ComputeSettings, rows: int, length: int) -> int:
    """Bytes alive beside the resident ones at the worst moment of a forward and backward pass, head left out."""
    model = policy(settings)
    model.train()
    if settings.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    decoder = model.get_base_model().model
    ids = torch.ones(rows, length, dtype=torch.long)
    decoder(ids).last_hidden_state.sum().backward()  # folds the weights, makes the gradients
    with alive(model) as counter:
        before = {id(layer.folded_weight().untyped_storage()) for layer in spectral_layers(model).values()}
        counter._seen |= before
        decoder(ids, use_cache=False).last_hidden_state.sum().backward()
    return counter.peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(4, 64), (8, 128)])
def test_activations_are_near_what_is_alive(dtype: str, checkpointing: bool, rows: int, length: int) -> None:
    settings = compute(dtype=dtype, checkpointing=checkpointing)
    found = activations(Shape.of(SIZES), rows * length, settings)
    there = measured(settings, rows, length)
    assert 0.75 <= there / found <= 1.1, f"{there} bytes are alive, {found} estimated"


def test_portions_and_processes_make_the_parts_smaller() -> None:
    shape = Shape.of(SIZES)
    whole = estimate(shape, GRPO, compute(), prompt_tokens=10)
    parts = estimate(shape, GRPO, compute(micro_batch=2, generate_batch=2), prompt_tokens=10)
    spread = estimate(shape, GRPO, compute(), prompt_tokens=10, processes=4)
    assert parts.update["activations"] == whole.update["activations"] // 4 == spread.update["activations"]
    assert parts.sampling["logits of sampling"] * 4 == whole.sampling["logits of sampling"]
    assert parts.resident == whole.resident
    assert whole.peak == sum(whole.resident.values()) + max(sum(whole.sampling.values()), sum(whole.update.values()))
    paired = estimate(shape, GRPO, compute(micro_batch=2), prompt_tokens=10, pair_tokens=(3000, 1000))
    assert paired.extraction["activations of pairs"] == activations(shape, 2 * 4000, compute())
    assert paired.extraction["logits of pairs"] == 2 * 1000 * shape.vocabulary * 16
    assert paired.peak == sum(paired.resident.values()) + sum(paired.extraction.values())
    assert parts.peak < whole.peak


def test_a_config_is_read_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "head_dim": 64}))
    shape = Shape.read(tmp_path)
    assert (shape.head_dim, shape.matrices[0], shape.matrices[3]) == (64, (256, 96), (96, 256))
    with pytest.raises(KeyError):
        Shape.of({"n_embd": 3})
