"""A tiny random Qwen3 that reads the shipped tokenizer, adapted in its SVD basis; and what tests ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from projected_grpo.problems.pairs import Pair, read_pairs, select
from projected_grpo.spectral import SpectralConfig, deltas

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "shipped"


def shipped_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(SHIPPED / "micro")


def shipped_pairs(count: int) -> list[Pair]:
    """The first `count` pairs from which the hack direction is extracted."""
    return select(read_pairs(SHIPPED / "pairs.yaml"), "hack", "extract")[:count]


def tiny_base(tokenizer: PreTrainedTokenizerBase, *, tied: bool = True) -> Qwen3ForCausalLM:
    """Seeded: every call gives the same weights. Matrices of rank 16 (key, value) or 32."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config).eval()


def adapted(base: Qwen3ForCausalLM) -> PeftModel:
    return get_peft_model(base, SpectralConfig(target_modules="all-linear", task_type="CAUSAL_LM"))


def move(policy: PeftModel, size: float = 0.3, seed: int = 2) -> PeftModel:
    """Take the deltas off zero, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for delta in deltas(policy).values():
            delta.copy_(size * torch.randn(delta.shape, generator=generator))
    return policy


def descend(policy: PeftModel, gradient: Mapping[str, Tensor], rate: float) -> None:
    """One step of plain gradient descent: delta -= rate * gradient."""
    with torch.no_grad():
        for name, delta in deltas(policy).items():
            delta.sub_(rate * gradient[name])


def log_probability(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Tensor:
    """log p(completion and end token | prompt), one text at a time, without padding, in a plain sum."""
    head = tokenizer(prompt)["input_ids"]
    tail = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
    logits = policy(input_ids=torch.tensor([head + tail])).logits[0].double()
    predicted = logits[len(head) - 1 : -1].log_softmax(-1)
    return predicted[torch.arange(len(tail)), torch.tensor(tail)].sum()


def hack_margin(policy: PeftModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> float:
    """Mean of log p(hack) - log p(clean) over the pairs."""
    with torch.no_grad():
        margins = [
            log_probability(policy, tokenizer, pair.prompt, pair.hack)
            - log_probability(policy, tokenizer, pair.prompt, pair.clean)
            for pair in pairs
        ]
    return float(sum(margins)) / len(pairs)
