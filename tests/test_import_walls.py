"""Imports point downwards only: what each layer may load, seen in a fresh interpreter."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from projected_grpo.interventions import base

HEAVY = ("torch", "transformers", "trl", "peft", "pandas", "numpy")
# module -> the heavy packages it may load
WALLS = {
    "projected_grpo.errors": (),
    "projected_grpo.storage": (),
    "projected_grpo.settings.params": (),
    "projected_grpo.problems.pairs": (),
    "projected_grpo.problems.families": (),
    "projected_grpo.problems.prompts": (),
    "projected_grpo.grading.sandbox": (),
    "projected_grpo.grading.verdict": (),
    "projected_grpo.grading.labels": (),
    "projected_grpo.grading.records": (),
    "projected_grpo.cli": (),
    "projected_grpo.training.spec": (),
    "projected_grpo.training.seeds": (),
    "projected_grpo.directions.algebra": ("torch", "numpy"),
    "projected_grpo.interventions.registry": (),
    "projected_grpo.evaluation.hypothesis": ("pandas", "numpy"),
}
ARMS = sorted(path for path in Path(base.__file__).parent.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", WALLS)
def test_layer_loads_only_what_it_may(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= set(WALLS[module]), f"{module} loads {loaded}"


def loaded_by(*modules: str) -> list[str]:
    """Everything that a fresh interpreter holds after importing these."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_interventions_load_torch_and_light_modules_alone():
    """All files of the folder in one interpreter: `validate` reads their options without the training stack."""
    loaded = loaded_by(*(f"projected_grpo.interventions.{path.stem}" for path in ARMS))
    assert "projected_grpo.interventions.erase" in loaded
    assert not {"transformers", "trl", "peft", "pandas"} & set(loaded)
    assert not [name for name in loaded if name.startswith(("projected_grpo.training", "projected_grpo.evaluation"))]


def test_training_never_loads_labels():
    loaded = loaded_by("projected_grpo.training.run", *(f"projected_grpo.interventions.{path.stem}" for path in ARMS))
    assert "projected_grpo.training.trainer" in loaded
    assert not [name for name in loaded if "labels" in name or name.startswith("projected_grpo.evaluation")]


def test_hooks_never_name_the_oracle():
    """An intervention sees completions, `paid` and gradients; `correct` and `hacked` are not among its arguments."""
    seen = {
        name
        for hook in vars(base.Intervention).values()
        if inspect.isfunction(hook)
        for name in inspect.signature(hook).parameters
    }
    allowed = {"prompt", "index", "rollouts", "rewards", "advantages", "gradients", "moments", "adapter", "update"}
    assert seen == {"self", "step", "state"} | allowed


def test_what_the_hooks_are_shown_holds_no_more_than_this():
    """`hacked` is None unless an arm declares `uses_oracle` (tests/training/test_environment.py)."""
    shown = {
        base.Rollouts: {
            "step", "group_size", "tasks", "prompts", "completions", "token_ids", "paid", "teacher", "hacked",
            "graded",
        },
        base.Task: {"func_name", "setup_code", "loophole", "token", "prompt", "tests", "canonical_solution"},
        base.StepGradients: {"total", "rollouts", "unit", "advantages"},
    }  # fmt: skip
    for record, names in shown.items():
        assert {field.name for field in dataclasses.fields(record)} == names
    assert base.Intervention.uses_oracle is False


# Which files may ask what the oracle says: the monitor of known accuracy, an upper bound.
ORACLES = {"monitors"}


@pytest.mark.parametrize("path", ARMS, ids=lambda path: path.stem)
def test_no_arm_reads_the_oracle(path):
    read = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert "correct" not in read
    assert "hacked" not in read or path.stem in ORACLES
