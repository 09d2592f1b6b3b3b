"""A Qwen3 of 18 thousand parameters, made at random, with tied embeddings; and what tests do with it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from projected_grpo.spectral import SpectralConfig, deltas

MakeAdapted = Callable[..., PeftModel]
NAMES = [
    f"model.layers.{layer}.{name}"
    for layer in range(2)
    for name in [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
]


def tiny_qwen3() -> Qwen3ForCausalLM:
    """Seeded: every call gives the same weights."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=63,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).eval()


def perturb(model: PeftModel, adapter: str = "default", size: float = 0.1, seed: int = 2) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for delta in deltas(model, adapter).values():
            delta.copy_(size * torch.randn(delta.shape, generator=generator))


def with_quarantine(model: PeftModel, **settings: object) -> PeftModel:
    model.add_adapter("quarantine", SpectralConfig(task_type="CAUSAL_LM", **settings))
    model.base_model.set_adapter(["default", "quarantine"])
    return model


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def same(first: dict[str, nn.Parameter], second: dict[str, nn.Parameter]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)
