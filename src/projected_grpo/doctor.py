"""`projected-grpo doctor`: what this host offers, and whether the selected scale can run on it.

No model is loaded to find out; torch is, where the scale may use a GPU. The sandbox is opened for real, since what a
kernel allows is known only by trying. What the scale needs beyond that: `readiness`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from projected_grpo import readiness
from projected_grpo.errors import LabError
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits, SandboxUnavailable
from projected_grpo.settings.loader import Params, active_scale, read_params, section
from projected_grpo.settings.params import check_read
from projected_grpo.settings.sandbox import SandboxSettings

LIBRARIES = ("torch", "transformers", "trl", "peft")
OLDEST_PYTHON = (3, 11)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found, line by line, and what must change before anything can run."""

    lines: tuple[str, ...]
    obstacles: tuple[str, ...]

    @property
    def go(self) -> bool:
        return not self.obstacles

    def __str__(self) -> str:
        verdict = "go" if self.go else f"no-go: {'; '.join(self.obstacles)}"
        return "\n".join([*self.lines, verdict])


def examine(params: str | os.PathLike[str] = "params.yaml", scale: str | None = None) -> Diagnosis:
    """Look at the host, and at `params` if that file exists; never raises for what it finds.

    scale: the block of `scales` to judge by, in place of the active one, and all that it needs of this host.
    """
    parts = [_host(), _libraries()]
    content: Params = {}
    selected, where = None, f"no {os.fspath(params)} here, so weak isolation counts as not allowed"
    obstacles = []
    if Path(params).exists():
        try:
            content = read_params(params)
            content = content if scale is None else {**content, "scale": scale}
            selected = section(content, "sandbox", SandboxSettings)
            where = f"scale {active_scale(content)}: sandbox.allow_weak is {str(selected.allow_weak).lower()}"
        except LabError as error:
            where = f"{os.fspath(params)} is not valid"
            obstacles.append(_correction(error))
    parts.append(_sandbox(selected is not None and selected.allow_weak))
    parts.append(Diagnosis((f"settings  {where}",), tuple(obstacles)))
    if scale is not None and not obstacles:
        parts.append(_scale(content, Path(params).resolve().parent) if selected else _nothing_to_judge(params))
    return Diagnosis(
        tuple(line for part in parts for line in part.lines),
        tuple(obstacle for part in parts for obstacle in part.obstacles),
    )


def _scale(params: Params, root: Path) -> Diagnosis:
    """Whether this host bears the active scale of `params`, whose files lie under `root`."""
    try:
        needs = readiness.Needs.of(params)
        start = readiness.Start.of(needs.launcher, root)
    except LabError as error:
        return Diagnosis((), (_correction(error),))
    cores, shape = readiness.cores(), readiness.shape_of(needs.base, root)
    free, whole = (int(_memory_gib(field) * readiness.GIB) for field in ("MemAvailable", "MemTotal"))
    device = readiness.device_of(needs.compute, free, whole)
    reports = [
        readiness.check_device(needs, device, shape, start),
        readiness.check_memory(needs, device, shape, cores, start),
        readiness.check_factors(needs, device, shape, cores, start, free),
        readiness.check_engine(needs),
        readiness.check_grading(needs, cores, start),
        readiness.check_disk(needs, shape, root),
        readiness.check_inputs(needs, root),
    ]
    if not any(obstacles for _, obstacles in reports):  # what is not there yet is told above, and once
        reports.append(_rules(params, root))
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)}
    beside = readiness.versions_beside(root / "requirements-training.lock", versions)
    lines = [line for found, _ in reports for line in found]
    lines.append(f"versions  {'; '.join(beside) or 'as pinned'}{': results will be others' if beside else ''}")
    return Diagnosis(tuple(lines), tuple(obstacle for _, found in reports for obstacle in found))


def _correction(error: LabError) -> str:
    return f"correct {error.setting}: {error.rule} (`projected-grpo validate` shows all faults)"


def _rules(params: Params, root: Path) -> readiness.Report:
    """What `validate` would refuse before the pipeline starts."""
    from projected_grpo.interventions.registry import check_lab  # loads every arm's family, and torch

    try:
        check_lab(check_read(params, root))
    except LabError as error:
        return [], [_correction(error)]
    return ["rules     settings and arms fit each other"], []


def _nothing_to_judge(params: str | os.PathLike[str]) -> Diagnosis:
    return Diagnosis((), (f"run where {os.fspath(params)} is: a scale is a block of it",))


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _host() -> Diagnosis:
    obstacles = []
    if sys.version_info < OLDEST_PYTHON:
        obstacles.append(f"use Python {'.'.join(map(str, OLDEST_PYTHON))} or later")
    if platform.system() != "Linux":
        return Diagnosis((f"platform  {platform.platform()}",), (*obstacles, "run on Linux"))
    lines = (
        f"python    {platform.python_version()} at {sys.executable}",
        f"platform  {platform.system()} {platform.release()} {platform.machine()}",
        f"cores     {len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        f"memory    {_memory_gib('MemAvailable'):.1f} GiB free",
        f"disk      {_free_disk_gib('.'):.1f} GiB free here, {_free_disk_gib(tempfile.gettempdir()):.1f} GiB "
        f"in {tempfile.gettempdir()}",
    )
    return Diagnosis(lines, tuple(obstacles))


def _memory_gib(field: str) -> float:
    """Of the kernel's account, GiB; MemAvailable: what can be had without swapping."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields[field].split()[0]) / 2**20


def _free_disk_gib(path: str) -> float:
    return shutil.disk_usage(path).free / 2**30


def _libraries() -> Diagnosis:
    found, absent = [], []
    for name in LIBRARIES:
        if _installed(name):
            found.append(f"{name} {importlib.metadata.version(name)}")
        else:
            absent.append(name)
    obstacles = (f"install {', '.join(absent)} (`make setup`)",) if absent else ()
    return Diagnosis((f"libraries {', '.join(found) or 'none of those that train'}",), obstacles)


def _sandbox(allow_weak: bool) -> Diagnosis:
    try:
        with Sandbox(SandboxLimits(workers=1, allow_weak=True)) as sandbox:
            layers, missing = sandbox.layers, sandbox.missing
    except (SandboxUnavailable, OSError) as error:
        return Diagnosis((f"sandbox   cannot start: {error}",), ("make the sandbox start, see above",))
    lines = [f"sandbox   active: {', '.join(layer for layer, why_not in layers.items() if not why_not)}"]
    lines += [f"          missing: {layer} ({why_not})" for layer, why_not in layers.items() if why_not]
    lines.append(f"          strong: {'no' if missing else 'yes'}{', weak allowed' if missing and allow_weak else ''}")
    if not missing or allow_weak:
        return Diagnosis(tuple(lines), ())
    change = (
        f"run on a host that offers {' and '.join(missing)}, or accept that answers may reach your files and "
        f"processes: scales.<scale>.sandbox.allow_weak: true"
    )
    return Diagnosis(tuple(lines), (change,))
