from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tiny_policy import adapted, move, shipped_tokenizer, tiny_base
from transformers import PreTrainedTokenizerBase


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return shipped_tokenizer()


@pytest.fixture
def policy(tokenizer: PreTrainedTokenizerBase) -> PeftModel:
    """A tiny policy in mid-training: its deltas are off zero."""
    return move(adapted(tiny_base(tokenizer)))
