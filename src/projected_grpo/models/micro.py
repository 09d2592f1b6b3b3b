"""Architecture of the micro model: Qwen3 at 0.9 M parameters, with a head_dim that inference engines accept."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


def micro_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Hidden 128, MLP 384, 4 layers, 4 heads over 2 key/value heads of dimension 32, tied embeddings, fp32."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )


def untrained_micro(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Randomly initialised; seed torch before the call."""
    return Qwen3ForCausalLM(micro_config(tokenizer))
