"""One scratch lab for all tests of training, and one thread: two cost a tiny model several times the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_lab import Lab, make_lab

from projected_grpo.storage import SCRATCH_VARIABLE


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Lab:  # noqa: ARG001
    return make_lab(tmp_path_factory.mktemp("training") / "lab")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty scratch store, used by every run that the test starts in this process."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    return tmp_path / "scratch"
