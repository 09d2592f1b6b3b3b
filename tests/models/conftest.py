from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The checkpoint that comes with the repository."""
    return ROOT / "data" / "shipped" / "micro"


@pytest.fixture(scope="session")
def tokenizer(shipped: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shipped)
