"""Grading stays importable alone, and labels stay out of what training imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "pandas", "transformers", "pydantic")


def imported_by(module: str) -> set[str]:
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("part", ["sandbox", "verdict", "labels"])
def test_only_the_standard_library_is_needed(part: str) -> None:
    modules = imported_by(f"projected_grpo.grading.{part}")
    assert not modules & set(HEAVY)
    assert f"projected_grpo.grading.{part}" in modules


def test_verdicts_know_no_labels_and_the_sandbox_no_verdicts() -> None:
    assert "projected_grpo.grading.labels" not in imported_by("projected_grpo.grading.verdict")
    assert "projected_grpo.grading.verdict" not in imported_by("projected_grpo.grading.sandbox")
