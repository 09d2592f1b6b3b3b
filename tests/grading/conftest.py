"""One sandbox for all tests of grading: starting one per test would take longer than the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grading_helpers import LIMITS

from projected_grpo.grading.sandbox import Sandbox
from projected_grpo.grading.verdict import Grader


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(LIMITS) as opened:
        yield opened


@pytest.fixture
def grader(sandbox: Sandbox) -> Grader:
    return Grader(sandbox)
