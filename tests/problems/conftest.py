from __future__ import annotations

from collections.abc import Iterator

import pytest

from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import Grader

LIMITS = SandboxLimits(workers=1, cpu_seconds=1.0, wall_seconds=10.0, memory_mb=256, allow_weak=True)


@pytest.fixture(scope="session")
def grader() -> Iterator[Grader]:
    """The real grader, for what we ship: hacks must be hacks, clean answers correct."""
    with Sandbox(LIMITS) as sandbox:
        yield Grader(sandbox)
