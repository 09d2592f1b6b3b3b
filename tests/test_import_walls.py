"""Imports point downwards only: what each layer may load, seen in a fresh interpreter."""

import subprocess
import sys

import pytest

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
    "projected_grpo.interventions.erase": ("torch", "numpy"),
    "projected_grpo.interventions.measure": ("torch", "numpy"),
    "projected_grpo.evaluation.hypothesis": ("pandas", "numpy"),
}


@pytest.mark.parametrize("module", WALLS)
def test_layer_loads_only_what_it_may(module):
    code = f"import sys, {module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= set(WALLS[module]), f"{module} loads {loaded}"


def test_training_never_loads_labels():
    code = (
        "import sys, projected_grpo.training.run, projected_grpo.interventions.erase;"
        "print(*(name for name in sys.modules if name.startswith('projected_grpo.')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "projected_grpo.training.trainer" in loaded
    assert not [name for name in loaded if "labels" in name or name.startswith("projected_grpo.evaluation")]


def test_interventions_never_name_the_oracle():
    """An intervention sees completions, `paid` and gradients; `correct` and `hacked` are not among its arguments."""
    import inspect

    from projected_grpo.interventions.base import Intervention

    seen = {
        name
        for hook in vars(Intervention).values()
        if inspect.isfunction(hook)
        for name in inspect.signature(hook).parameters
    }
    allowed = {"completions", "paid", "rewards", "advantages", "gradients", "moments", "update"}
    assert seen == {"self", "step", "state"} | allowed
