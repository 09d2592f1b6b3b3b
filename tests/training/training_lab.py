"""What the tests of training share: a scratch lab at scale `smoke`, and ways to build and run a spec in it."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from projected_grpo.directions.algebra import Bases
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.interventions.base import (
    Intervention,
    Parts,
    Rollouts,
    StepGradients,
    Vectors,
    Workbench,
)
from projected_grpo.parallel import SINGLE_THREADED
from projected_grpo.problems.pairs import dump_pairs, read_pairs
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.loader import parse, read_params
from projected_grpo.settings.studies import paths_of
from projected_grpo.spectral import deltas, spectral_layers
from projected_grpo.storage import SCRATCH_VARIABLE
from projected_grpo.training import run as run_module
from projected_grpo.training.spec import RunSpec
from projected_grpo.training.trainer import HookedTrainer

ROOT = Path(__file__).resolve().parents[2]
FEW_PAIRS = {"extract": 10, "heldout": 2}  # of each contrast: a refresh in a fraction of a second


@dataclasses.dataclass(frozen=True)
class Lab:
    """A working tree at scale `smoke` in which validate, prepare, base_model and extract have run."""

    root: Path

    def spec(self, arm: str, seed: int = 1, block: Mapping[str, Any] | None = None, **grpo: Any) -> RunSpec:
        """The run that `stages/grpo.py` would start, with absolute paths; `grpo` changes settings of that block.

        block: the arm's settings, in place of those in params.yaml.
        """
        with chdir(self.root):
            params = read_params()
            settings = parse(params, f"arms.{arm}", ArmSettings) if block is None else ArmSettings.model_validate(block)
            made = runpy.run_path("stages/grpo.py", run_name="stage")["spec"]
            spec: RunSpec = made(params, arm, settings, seed, paths_of(params, None))
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
    del params["studies"]  # they name files of their own
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
            with mock.patch.object(sys, "argv", [f"{stage}.py"]):
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

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        return [reward + len(text) / 64 for text, reward in zip(rollouts.completions, rewards, strict=True)]

    def gradient(self, gradients: StepGradients) -> Parts:
        self.gradients.append({module: vector.clone() for module, vector in gradients.total.items()})
        return super().gradient(gradients)


class Watcher(LengthBonus):
    """Notes, before each step samples: the weights' deltas, the model's logits, the state of the random generator."""

    def __init__(self, probe: Tensor) -> None:
        super().__init__()
        self.probe = probe
        self.trainer: HookedTrainer | None = None
        self.deltas: list[Vectors] = []
        self.logits: list[Tensor] = []
        self.random_states: list[Tensor] = []

    def start_step(self, step: int) -> None:  # noqa: ARG002
        assert self.trainer is not None
        model = self.trainer.model
        self.deltas.append({name: delta.detach().clone() for name, delta in deltas(model).items()})
        with torch.no_grad():
            self.logits.append(model(self.probe).logits)
        self.random_states.append(torch.get_rng_state())


@dataclasses.dataclass(frozen=True)
class Watched:
    """A run of three steps and what it is compared with: `dense(step)` is the policy of that step, folded by hand."""

    spec: RunSpec
    watcher: Watcher
    trainer: HookedTrainer
    folder: Path

    def rows(self, step: int) -> list[dict[str, Any]]:
        return [row for row in rollouts(self.folder) if row["step"] == step]

    def dense(self, step: int) -> PreTrainedModel:
        """The base read anew from disk, with W + U diag(delta) Vh in place of every adapted W."""
        model = AutoModelForCausalLM.from_pretrained(self.spec.base, dtype=torch.float32)
        layers = spectral_layers(self.trainer.model)
        with torch.no_grad():
            for name, delta in self.watcher.deltas[step].items():
                weight = model.get_submodule(name).weight
                u, vh = layers[name].U.double(), layers[name].Vh.double()
                weight.copy_((weight.double() + u @ torch.diag(delta.double()) @ vh).float())
        return model


def dense_weights(policy: PreTrainedModel, base: Path, adapters: Sequence[str]) -> Vectors:
    """Parameters of the base read anew from disk, with W + U diag(sum of the adapters' deltas) Vh for adapted ones."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    layers = spectral_layers(policy)
    with torch.no_grad():
        for name, layer in layers.items():
            weight = model.get_submodule(name).weight
            delta = sum(deltas(policy, adapter)[name].double() for adapter in adapters)
            weight.copy_((weight.double() + layer.U.double() @ torch.diag(delta) @ layer.Vh.double()).float())
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def watch(spec: RunSpec, watcher: Watcher, folder: Path, teacher: Any = None) -> Watched:
    """Train with a watcher."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        trainer = train_with(spec, watcher, folder, monkeypatch, teacher)
    return Watched(spec, watcher, trainer, folder)


def encoded(watched: Watched, rows: Sequence[dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded (ids, mask, completion mask) of logged rollouts: prompt as text, completion as sampled ids."""
    prompts = [watched.trainer.processing_class(row["prompt"])["input_ids"] for row in rows]
    width = max(len(p) + len(row["token_ids"]) for p, row in zip(prompts, rows, strict=True))
    ids, mask, sampled = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        text = torch.tensor(prompt + row["token_ids"])
        ids[i, : len(text)] = text
        mask[i, : len(text)] = 1
        sampled[i, len(prompt) : len(text)] = 1
    return ids, mask, sampled


def policy_gradient(watched: Watched, step: int, rows: Sequence[dict[str, Any]]) -> Vectors:
    """What `rows` add to the gradient of a step: loss = -sum(advantage x logp) / (batch x max_new_tokens)."""
    model = watched.dense(step)
    ids, mask, sampled = encoded(watched, rows)
    logp = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    logp = logp.gather(2, ids[:, 1:, None]).squeeze(2) * sampled[:, 1:]
    advantage = torch.tensor([row["advantage"] for row in rows])
    grpo = watched.spec.grpo
    (-(advantage[:, None] * logp).sum() / (grpo.prompts * grpo.samples * grpo.max_new_tokens)).backward()
    layers = spectral_layers(watched.trainer.model)
    return {
        name: dense_gradient(model.get_submodule(name).weight.grad, layer.U, layer.Vh) for name, layer in layers.items()
    }


def dense_gradient(weight_gradient: Tensor, u: Tensor, vh: Tensor) -> Tensor:
    """diag(U^T (dL/dW) Vh^T): what the gradient in W (d_out, d_in) is in delta, (r,)."""
    return (u.T @ weight_gradient @ vh.T).diagonal()


def silent(step: int, figures: dict[str, float]) -> None:
    """An on_step that hears nothing."""


def use(intervention: Intervention | Callable[[Workbench], Intervention], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever family an arm names, build this one: itself, or what it makes of the workbench."""

    def build(options: Any, workbench: Workbench) -> Intervention:
        del options
        return intervention if isinstance(intervention, Intervention) else intervention(workbench)

    monkeypatch.setattr(run_module, "family", lambda *_: SimpleNamespace(build=build))
    if isinstance(intervention, Intervention) and intervention.unit_rollouts:
        monkeypatch.setattr(run_module, "needed_gradients", lambda *_: "unit")  # as its family's file would declare


def train_with(
    spec: RunSpec, intervention: Intervention, folder: Path, monkeypatch: pytest.MonkeyPatch, teacher: Any = None
) -> HookedTrainer:
    """Train in this process with an intervention, and perhaps a teacher, of the test's own."""
    use(intervention, monkeypatch)
    monkeypatch.setattr(run_module, "build_teacher", lambda *_: teacher)
    with Sandbox(SandboxLimits(**spec.sandbox.model_dump())) as sandbox:
        trainer = run_module.build_trainer(spec, folder, sandbox, silent)
        if isinstance(intervention, Watcher):
            intervention.trainer = trainer
        trainer.train()
    return trainer


def rollouts(folder: Path) -> list[dict[str, Any]]:
    """Rows of all steps, in order, from a run's parts."""
    return [row for path in sorted((folder / "rollouts").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
