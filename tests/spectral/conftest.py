from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_qwen3 import perturb, tiny_qwen3
from torch import Tensor
from transformers import Qwen3ForCausalLM

from projected_grpo.spectral import SpectralConfig


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def base() -> Qwen3ForCausalLM:
    return tiny_qwen3()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, 63, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_adapted() -> Callable[..., PeftModel]:
    """A tiny model adapted with the given settings, its deltas moved off zero."""

    def make(**settings: object) -> PeftModel:
        model = get_peft_model(tiny_qwen3(), SpectralConfig(task_type="CAUSAL_LM", **settings))
        perturb(model)
        return model

    return make
