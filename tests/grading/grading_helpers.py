"""What the tests of grading share: limits, a small problem, the fixtures' rows."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from projected_grpo.grading.sandbox import SandboxLimits

DATA = Path(__file__).resolve().parents[1] / "data"  # the project's own hostile set
FIXTURES = Path(
    os.environ.get("PROJECTED_GRPO_FIXTURES", Path(__file__).resolve().parents[2].parent / "shared" / "fixtures")
)
LIMITS = SandboxLimits(workers=1, cpu_seconds=1.0, wall_seconds=2.0, memory_mb=256, allow_weak=True)


@dataclasses.dataclass(frozen=True)
class SmallProblem:
    """The part of a problem that grading reads."""

    id: str = "double"
    setup_code: str = ""
    tests: tuple[str, ...] = (
        "assert Solution().double(n = 3) == 6",
        "assert Solution().double(n = 0) == 0",
        "assert Solution().double(n = -2) == -4",
    )
    func_name: str = "Solution().double"
    canonical_solution: str = "class Solution:\n    def double(self, n):\n        return n * 2\n"


def fenced(code: str) -> str:
    """A completion whose answer is `code`."""
    return f"Here it is.\n```python\n{code}\n```\n"


def fixture_path(name: str) -> Path:
    """Path of a fixture: the project's own, or a shared one; skips the test where it is absent."""
    for folder in (DATA, FIXTURES):
        if (folder / name).is_file():
            return folder / name
    pytest.skip(f"no {name} in {FIXTURES} (set PROJECTED_GRPO_FIXTURES)")


def fixture_rows(name: str) -> list[dict]:
    """Rows of a fixture; skips the test where it is absent."""
    return [json.loads(line) for line in fixture_path(name).read_text(encoding="utf-8").splitlines()]
