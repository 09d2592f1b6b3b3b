from __future__ import annotations

import torch
from transformers import Qwen3ForCausalLM

from projected_grpo.models.micro import micro_config, untrained_micro


def parameter_count(model: Qwen3ForCausalLM) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_architecture_is_one_that_inference_engines_serve(tokenizer) -> None:
    config = micro_config(tokenizer)
    assert config.model_type == "qwen3"
    assert config.head_dim == 32  # the smallest that vLLM's kernels take
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert config.tie_word_embeddings is True
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert config.dtype == torch.float32


def test_parameter_count(tokenizer) -> None:
    """Per layer: q, o of 128 x 128; k, v of 64 x 128; three of 128 x 384; four norms. Embeddings count once."""
    model = untrained_micro(tokenizer)
    layer = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 128 * 384 + 2 * 128 + 2 * 32
    assert parameter_count(model) == 4 * layer + 128 + 128 * len(tokenizer)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_longest_text_of_the_lab_fits(tokenizer) -> None:
    assert micro_config(tokenizer).max_position_embeddings >= 256


def test_initial_weights_are_torchs_seed(tokenizer) -> None:
    models = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        models.append(untrained_micro(tokenizer).model.layers[0].mlp.up_proj.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])
