"""What the tests of training share: a scratch lab at scale `smoke`, and ways to build and run a spec in it."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from torch import Tensor

from projected_grpo.directions.algebra import Bases
from projected_grpo.interventions.base import Intervention, Vectors
from projected_grpo.parallel import SINGLE_THREADED
from projected_grpo.problems.pairs import dump_pairs, read_pairs
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.loader import parse, read_params
from projected_grpo.storage import SCRATCH_VARIABLE
from projected_grpo.training.spec import RunSpec

ROOT = Path(__file__).resolve().parents[2]
FEW_PAIRS = {"extract": 10, "heldout": 2}  # of each contrast: a refresh in a fraction of a second


@dataclasses.dataclass(frozen=True)
class Lab:
    """A working tree at scale `smoke` in which validate, prepare, base_model and extract have run."""

    root: Path

    def spec(self, arm: str, seed: int = 1, **grpo: Any) -> RunSpec:
        """The run that `stages/grpo.py` would start, with absolute paths; `grpo` changes settings of that block."""
        with chdir(self.root):
            params = read_params()
            settings = parse(params, f"arms.{arm}", ArmSettings)
            spec: RunSpec = runpy.run_path("stages/grpo.py", run_name="stage")["spec"](params, arm, settings, seed)
        paths = {
            field.name: self.root / getattr(spec, field.name)
            for field in dataclasses.fields(spec)
            if isinstance(getattr(spec, field.name), Path)
        }
        return dataclasses.replace(spec, grpo=spec.grpo.model_copy(update=grpo), **paths)

    def copy(self, target: Path, blocks: Mapping[str, Mapping[str, Any]]) -> Lab:
        """A second tree with other values in blocks of the scale."""
        shutil.copytree(self.root, target, symlinks=True, ignore=shutil.ignore_patterns("runs", "provenance"))
        path = target / "params.yaml"
        params = json.loads(path.read_text())
        for name, values in blocks.items():
            params["scales"]["smoke"][name].update(values)
        path.write_text(json.dumps(params))
        return Lab(target)

    def command(self, arm: str) -> list[str]:
        """How the stage is started, in `root`."""
        return [sys.executable, "stages/grpo.py", "--arm", arm]


def environment(scratch: Path) -> dict[str, str]:
    """Of a stage's process: this tree's code, its own scratch store."""
    return {**os.environ, **SINGLE_THREADED, "PYTHONPATH": "src", SCRATCH_VARIABLE: str(scratch)}


def make_lab(root: Path) -> Lab:
    """Copy what a working tree is made of, and run the stages before training in this process."""
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    params["scale"] = "smoke"
    inputs = params["scales"]["smoke"]
    pairs, model = inputs["extract"]["pairs"], inputs["base"]["path"]
    shutil.copytree(ROOT / model, root / model)
    for name in ("src", "stages"):
        (root / name).symlink_to(ROOT / name)
    few = [
        pair
        for contrast in ("hack", "placebo")
        for split, count in FEW_PAIRS.items()
        for pair in [p for p in read_pairs(ROOT / pairs) if (p.contrast, p.split) == (contrast, split)][:count]
    ]
    (root / pairs).write_text(dump_pairs(few))
    (root / "params.yaml").write_text(json.dumps(params))  # JSON is YAML 1.2
    shutil.copy(ROOT / "hypotheses.yaml", root)
    with chdir(root):
        for stage in ("validate", "prepare", "base_model", "extract"):
            failed = runpy.run_path(f"stages/{stage}.py", run_name="stage")["main"]()
            assert not failed, f"stage {stage} refused"
    return Lab(root)


class FixedSource:
    """A direction source whose V never changes."""

    def __init__(self, bases: Bases) -> None:
        self.basis = bases

    def initial(self) -> Bases:
        return self.basis

    def refreshed(self, step: int) -> Bases:
        raise AssertionError(f"refreshed at step {step}")


class LengthBonus(Intervention):
    """Pays for length as well, so that every group has a gradient whatever the weights; keeps what it saw."""

    def __init__(self) -> None:
        self.gradients: list[Vectors] = []

    def reward(
        self,
        completions: Sequence[str],
        paid: Sequence[bool],  # noqa: ARG002
        rewards: list[float],
    ) -> list[float | None]:
        return [reward + len(text) / 64 for text, reward in zip(completions, rewards, strict=True)]

    def gradient(self, gradients: Vectors) -> Vectors:
        self.gradients.append({module: vector.clone() for module, vector in gradients.items()})
        return gradients


def dense_gradient(weight_gradient: Tensor, u: Tensor, vh: Tensor) -> Tensor:
    """diag(U^T (dL/dW) Vh^T): what the gradient in W (d_out, d_in) is in delta, (r,)."""
    return (u.T @ weight_gradient @ vh.T).diagonal()
