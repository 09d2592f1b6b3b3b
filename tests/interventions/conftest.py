"""What the tests of several families share."""

from __future__ import annotations

import pytest
from peft import PeftModel, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from projected_grpo.interventions.base import DEFAULT, QUARANTINE
from projected_grpo.spectral import SpectralConfig, activate


@pytest.fixture
def policy() -> PeftModel:
    """A one-layer model with a quarantine beside its default adapter, both active."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8, "vocab_size": 32}
    base = Qwen3ForCausalLM(Qwen3Config(num_attention_heads=2, num_key_value_heads=1, **sizes))
    config = SpectralConfig(target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.add_adapter(QUARANTINE, config)
    activate(model, DEFAULT, QUARANTINE)
    return model
