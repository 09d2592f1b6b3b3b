"""The whole of params.yaml: every section, the rules across them, and the files they name.

Imported by `validate` and the command line only. The active scale is checked to the last file; the other
scales are checked for shape and rules, so that a typo cannot wait in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from projected_grpo.errors import ABSENT, LabError, ParamsError
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.base import BaseSettings
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.direction import DirectionSettings, beyond_extraction
from projected_grpo.settings.direction_header import axes_of, base_hash, read_header
from projected_grpo.settings.engine import EngineSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.launcher import Launcher
from projected_grpo.settings.loader import (
    Params,
    active_scale,
    did_you_mean,
    in_study,
    parse,
    read_params,
    unknown_name,
)
from projected_grpo.settings.problems import ProblemsSettings
from projected_grpo.settings.sampling import SamplingSettings
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.seeds import Seeds
from projected_grpo.settings.studies import StudySettings
from projected_grpo.storage import sha256_file

BASE_ARM = "base"  # the untrained model: sampled and graded like an arm, never trained
TOP_LEVEL = ("scale", "method", "arms", "comparison", "studies", "scales")
ARM_NAME = r"[a-z][a-z0-9_]*"  # it becomes a folder name and a stage name
INPUT_FOLDER = "data/shipped"  # a dependency of `validate`: an input elsewhere could change unseen

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class ScaleSettings:
    """One block of `scales`."""

    seeds: Seeds
    base: BaseSettings
    problems: ProblemsSettings
    extract: ExtractSettings
    direction: DirectionSettings
    grpo: GrpoSettings
    engine: EngineSettings
    compute: ComputeSettings
    launcher: Launcher
    sampling: SamplingSettings
    sandbox: SandboxSettings


SECTIONS: dict[str, type[BaseModel]] = {
    "seeds": Seeds,
    "base": BaseSettings,
    "problems": ProblemsSettings,
    "extract": ExtractSettings,
    "direction": DirectionSettings,
    "grpo": GrpoSettings,
    "engine": EngineSettings,
    "compute": ComputeSettings,
    "launcher": Launcher,
    "sampling": SamplingSettings,
    "sandbox": SandboxSettings,
}


@dataclass(frozen=True)
class Study:
    """One block of `studies`: its arms, and the active scale as it changes it."""

    arms: tuple[str, ...]
    scale: ScaleSettings


@dataclass(frozen=True)
class LabSettings:
    """params.yaml, all of it, checked; what the arms' families refuse is `interventions.registry.check_lab`'s."""

    scale: str
    method: str
    arms: Mapping[str, ArmSettings]
    comparison: ComparisonSettings
    scales: Mapping[str, ScaleSettings]
    studies: Mapping[str, Study]

    @property
    def active(self) -> ScaleSettings:
        """The block of `scales` in use."""
        return self.scales[self.scale]


def check(path: str | Path = "params.yaml") -> LabSettings:
    """Read and check everything; file names count from the folder of `path`. Raises as `check_read`."""
    return check_read(read_params(path), Path(path).parent)


def check_read(params: Params, root: Path) -> LabSettings:
    """Check everything; file names count from `root`.

    Raises:
        ParamsError: with all faults, in the order of the file.
    """
    faults: list[LabError] = []
    _only_known(params, TOP_LEVEL, "", faults)

    scale = _scale(params, faults)
    names, arms = _arms(params, faults)
    method = params.get("method", ABSENT)
    if method not in (*names, BASE_ARM):
        rule = f"must name an arm, or `{BASE_ARM}` for the untrained model"
        faults.append(unknown_name("method", method, [*names, BASE_ARM], rule))
    comparison = _collect(params, "comparison", ComparisonSettings, faults)
    if comparison is not None:
        _check_comparison(comparison, names, faults)
        _check_roles(comparison, arms, faults)

    blocks = params.get("scales")
    scales = {}
    for name in blocks if isinstance(blocks, Mapping) else ():
        found = _sections(params, str(name), faults)
        _check_scale(f"scales.{name}", found, faults)
        if name == scale:
            _check_files(f"scales.{name}", found, root, faults)
        if len(found) == len(SECTIONS):
            scales[str(name)] = ScaleSettings(**found)

    studies = _studies(params, scale, names, root, faults) if scale is not None and not faults else {}

    if faults:
        raise ParamsError(faults)
    assert scale is not None
    assert comparison is not None
    return LabSettings(scale, method, arms, comparison, scales, studies)


# ---------------------------------------------------------------- shape


def _collect(params: Params, path: str, model: type[Model], faults: list[LabError]) -> Model | None:
    """`parse`, with the faults put on the list instead of raised."""
    try:
        return parse(params, path, model)
    except ParamsError as error:
        faults.extend(error.faults)
        return None


def _scale(params: Params, faults: list[LabError]) -> str | None:
    try:
        return active_scale(params)
    except ParamsError as error:
        faults.extend(error.faults)
        return None


def _arms(params: Params, faults: list[LabError]) -> tuple[list[str], dict[str, ArmSettings]]:
    """The names of all arms, and the valid ones by name (others may refer to a wrong one, too)."""
    block = params.get("arms", ABSENT)
    if not isinstance(block, Mapping) or not block:
        faults.append(LabError(setting="arms", value=block, rule="must be a block of arms", fix="add one"))
        return [], {}
    names, arms = [], {}
    for name in block:
        if not re.fullmatch(ARM_NAME, str(name)) or name == BASE_ARM:
            rule = f"an arm's name is lower-case letters, digits and _, and not `{BASE_ARM}`"
            faults.append(LabError(setting=f"arms.{name}", value=name, rule=rule, fix="rename it"))
            continue
        names.append(name)
        arm = _collect(params, f"arms.{name}", ArmSettings, faults)
        if arm is not None:
            arms[name] = arm
    return names, arms


def _sections(params: Params, scale: str, faults: list[LabError]) -> dict[str, Any]:
    """The valid sections of one scale by name."""
    path, block = f"scales.{scale}", params["scales"][scale]
    if not isinstance(block, Mapping):
        rule = f"must be a block with {', '.join(SECTIONS)}"
        faults.append(LabError(setting=path, value=block, rule=rule, fix="copy the block of `micro`"))
        return {}
    _only_known(block, tuple(SECTIONS), path, faults)
    found = {name: _collect(params, f"{path}.{name}", model, faults) for name, model in SECTIONS.items()}
    return {name: value for name, value in found.items() if value is not None}


def _studies(params: Params, scale: str, arms: list[str], root: Path, faults: list[LabError]) -> dict[str, Study]:
    """Every study as a changed scale, checked: shape, arms, rules across sections, files."""
    studies: dict[str, Study] = {}
    blocks = params.get("studies", {})
    if not isinstance(blocks, Mapping):
        rule = "must be a block of studies"
        faults.append(LabError(setting="studies", value=blocks, rule=rule, fix="restore it from Git"))
        return studies
    for name in blocks:
        setting = f"studies.{name}"
        if not re.fullmatch(ARM_NAME, str(name)):
            rule = "a study's name is lower-case letters, digits and _: it becomes a folder"
            faults.append(LabError(setting=setting, value=name, rule=rule, fix="rename it"))
            continue
        study = _collect(params, setting, StudySettings, faults)
        if study is None:
            continue
        for arm in study.arms:
            if arm not in arms:
                faults.append(unknown_name(f"{setting}.arms", arm, arms, "must name an arm"))
        try:
            changed = in_study(params, str(name))
        except ParamsError as error:
            faults.extend(error.faults)
            continue
        own: list[LabError] = []
        found = _sections(changed, scale, own)
        _check_scale(setting, found, own)
        _check_files(setting, found, root, own)
        for fault in (_owned(fault, params, scale, str(name)) for fault in own):
            if fault.setting not in [known.setting for known in faults]:  # said of what the study starts from
                faults.append(fault)
        if len(found) == len(SECTIONS):
            studies[name] = Study(study.arms, ScaleSettings(**found))
    return studies


def _owned(fault: LabError, params: Params, scale: str, study: str) -> LabError:
    """The fault with the place where its setting stands: in the study, in what that starts from, or in the scale."""
    rest = fault.setting.removeprefix(f"scales.{scale}.").removeprefix(f"studies.{study}.")
    section, _, key = rest.partition(".")
    for source in (study, params["studies"][study].get("of")):
        block = params["studies"][source].get(section) if source is not None else None
        if key.partition(".")[0] in block if isinstance(block, Mapping) else block is not None:
            return LabError(setting=f"studies.{source}.{rest}", value=fault.value, rule=fault.rule, fix=fault.fix)
    return LabError(setting=f"scales.{scale}.{rest}", value=fault.value, rule=fault.rule, fix=fault.fix)


def _only_known(block: Mapping[str, Any], known: tuple[str, ...], path: str, faults: list[LabError]) -> None:
    for key, value in block.items():
        if key not in known:
            setting = f"{path}.{key}" if path else str(key)
            fix = did_you_mean(key, list(known))
            faults.append(LabError(setting=setting, value=value, rule="no such setting", fix=fix))


# ---------------------------------------------------------------- rules across sections


def _check_comparison(comparison: ComparisonSettings, arms: list[str], faults: list[LabError]) -> None:
    roles = [(role, getattr(comparison, role)) for role in ("treatment", "reference", "honest")]
    roles += [(f"controls[{index}]", name) for index, name in enumerate(comparison.controls)]
    for role, name in roles:
        if name not in arms:
            faults.append(unknown_name(f"comparison.{role}", name, arms, "must name an arm"))
    for role, name in roles[1:]:
        if name == comparison.treatment:
            rule = "must not be the treatment itself"
            faults.append(LabError(setting=f"comparison.{role}", value=name, rule=rule, fix="name another arm"))


# What an arm must be to play its role: a control that acts on nothing would make every treatment look specific.
_ROLES = {
    "treatment": ("an arm that acts on the hack direction", lambda arm: arm.direction == "hack"),
    "reference": ("an arm that acts on nothing", lambda arm: arm.idle and arm.grader == "loophole"),
    "controls": (
        "an arm that acts on a direction other than hack",
        lambda arm: arm.direction in ("random", "placebo", "permuted", "flipped"),
    ),
    "honest": ("an arm with the honest grader", lambda arm: arm.idle and arm.grader == "honest"),
}


def _check_roles(comparison: ComparisonSettings, arms: Mapping[str, ArmSettings], faults: list[LabError]) -> None:
    for role, (wanted, fits) in _ROLES.items():
        named = getattr(comparison, role)
        for name in named if isinstance(named, tuple) else (named,):
            repeated = role != "treatment" and name == comparison.treatment  # refused above
            if (
                name in arms
                and not repeated
                and not (fits(arms[name]) and (role == "honest" or arms[name].grader == "loophole"))
            ):
                fix = f"name another arm, or mend arms.{name}"
                faults.append(LabError(setting=f"comparison.{role}", value=name, rule=f"must be {wanted}", fix=fix))


def _check_scale(path: str, found: Mapping[str, Any], faults: list[LabError]) -> None:
    extract: ExtractSettings | None = found.get("extract")
    direction: DirectionSettings | None = found.get("direction")
    grpo: GrpoSettings | None = found.get("grpo")
    base: BaseSettings | None = found.get("base")
    engine: EngineSettings | None = found.get("engine")
    seeds, launcher = found.get("seeds"), found.get("launcher")
    compute: ComputeSettings | None = found.get("compute")

    def refuse(setting: str, value: object, rule: str, fix: str) -> None:
        faults.append(LabError(setting=f"{path}.{setting}", value=value, rule=rule, fix=fix))

    if engine and engine.kind == "vllm" and seeds and len(seeds.root) > 1 and launcher and launcher.root is None:
        rule = "must be transformers where several seeds run side by side: one vLLM holds the weights of one run"
        fix = "name a launcher, which runs them one after another, or a single seed"
        refuse("engine.kind", engine.kind, rule, fix)
    if engine and engine.kind == "vllm" and compute and compute.generate_batch:
        rule = "must be null with vllm, which schedules what it samples together by itself"
        refuse("compute.generate_batch", compute.generate_batch, rule, "set null")
    if grpo and compute and compute.micro_batch and (whole := grpo.prompts * grpo.samples) % compute.micro_batch:
        rule = f"must divide grpo.prompts x grpo.samples ({whole}): every pass weighs the same"
        refuse("compute.micro_batch", compute.micro_batch, rule, "set a divisor, or null")
    if extract and direction:
        faults.extend(beyond_extraction(direction, extract, f"{path}.direction"))
    if extract and grpo and grpo.measure_k > extract.k_max:
        rule = f"must not exceed extract.k_max ({extract.k_max})"
        refuse("grpo.measure_k", grpo.measure_k, rule, "lower measure_k, or raise k_max (which extracts anew)")
    if extract and extract.direction_file is not None and base and (base.rebuild or base.source != "shipped"):
        rule = (
            "must be null where base.rebuild is true or base.source is not shipped: it belongs to the shipped weights"
        )
        refuse("extract.direction_file", extract.direction_file, rule, "set null, or base.rebuild: false")


# ---------------------------------------------------------------- files


def _check_files(path: str, found: Mapping[str, Any], root: Path, faults: list[LabError]) -> None:
    """The files that the active scale names, relative to `root`."""
    base: BaseSettings | None = found.get("base")
    extract: ExtractSettings | None = found.get("extract")
    direction: DirectionSettings | None = found.get("direction")
    problems: ProblemsSettings | None = found.get("problems")
    launcher: Launcher | None = found.get("launcher")

    def refuse(setting: str, value: object, rule: str, fix: str) -> None:
        faults.append(LabError(setting=f"{path}.{setting}", value=value, rule=rule, fix=fix))

    shipped = base is not None and base.source == "shipped" and not base.rebuild
    if base and shipped:
        weights = root / base.path / "model.safetensors"
        if not weights.is_file():
            rule = f"{base.path}/model.safetensors must exist"
            refuse("base.path", base.path, rule, "restore it from Git, or set base.rebuild: true")
        elif (actual := sha256_file(weights)) != base.sha256:
            rule = f"must be the sha256 of {base.path}/model.safetensors, which is {actual}"
            refuse("base.sha256", base.sha256, rule, "restore the file from Git, or take over this hash")
    # What lies elsewhere is not watched: it is pinned by its hash or revision, which are.
    inputs = {"base.path": base.path if base and shipped else None}
    if extract:
        inputs |= {"extract.pairs": extract.pairs, "extract.direction_file": extract.direction_file}
    if problems:
        inputs["problems.path"] = problems.path
        if problems.path is not None and not (root / problems.path).is_file():
            fix = "name an existing file; `projected-grpo fetch leetcode` gets one"
            refuse("problems.path", problems.path, "the file must exist", fix)
    if launcher and launcher.root is not None and not (root / launcher.root).is_file():
        fix = "name one of configs/accelerate, or null for one process per seed"
        refuse("launcher", launcher.root, "the file must exist", fix)
    for setting, file in inputs.items():
        if file is not None and not (root / file).resolve().is_relative_to((root / INPUT_FOLDER).resolve()):
            rule = f"must lie in {INPUT_FOLDER}/, the folder of inputs that is watched for changes"
            refuse(setting, file, rule, f"copy it to {INPUT_FOLDER}/")
    if extract and not (root / extract.pairs).is_file():
        refuse("extract.pairs", extract.pairs, "the file must exist", "restore it from Git, or name another")
    if extract and extract.direction_file is not None:
        given = root / extract.direction_file
        header = read_header(given) if given.is_file() else {}
        if not given.is_file():
            fix = "name an existing direction, or null to extract one"
            refuse("extract.direction_file", extract.direction_file, "the file must exist", fix)
        elif base and (owner := base_hash(header)) != base.sha256:
            rule = f"must belong to the base with base.sha256 {base.sha256}; it belongs to {owner}"
            fix = "use a direction of this base, or null to extract one"
            refuse("extract.direction_file", extract.direction_file, rule, fix)
        elif direction and 0 < (axes := axes_of(header)) < direction.k:
            rule = f"must not exceed the axes that extract.direction_file stores ({axes})"
            refuse("direction.k", direction.k, rule, "lower k, or use a direction with more axes")
