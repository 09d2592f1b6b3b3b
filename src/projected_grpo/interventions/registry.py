"""The arm families by name: a family is a file of this folder that defines `NEEDS_DIRECTION`, `Options` and `build`.

It may also declare what it reads, so that `validate` refuses what `build` could not use:
    NEEDS_ROLLOUT_GRADIENTS    True: `StepGradients.rollouts`; "unit": `StepGradients.unit` as well
    READS_AXES                 the keys of `axes` that it reads; all of them where it is not defined
    check(options, arm, direction)    raises ParamsError, with settings as paths below the arm
    modules(options)           names of modules of ours that it loads no sooner than it uses them
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, get_args

from projected_grpo.errors import ABSENT, LabError, ParamsError
from projected_grpo.settings.arms import ArmSettings, DirectionKind, direction_of, nested
from projected_grpo.settings.direction import DirectionSettings, beyond_extraction
from projected_grpo.settings.loader import did_you_mean, parse
from projected_grpo.settings.section import Section

if TYPE_CHECKING:
    from projected_grpo.settings.extract import ExtractSettings
    from projected_grpo.settings.grpo import GrpoSettings
    from projected_grpo.settings.params import LabSettings

FOLDER = "src/projected_grpo/interventions"
REQUIRED = {"NEEDS_DIRECTION": "True, False or None (may)", "Options": "a class of settings, see `Section`"}


def families() -> list[str]:
    """Names of all families, found by their files: an added file is an added family."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if "\ndef build(" in path.read_text(encoding="utf-8"))


def family(name: str, path: str = "arm") -> ModuleType:
    """The module of a family. `path`: what errors call the arm that asks.

    Raises:
        ParamsError: there is no such family, or its file lacks what every family defines.
    """
    if name not in families():
        rule, fix = f"must name a file of {FOLDER}/ that defines `build`", did_you_mean(name, families())
        raise ParamsError([LabError(setting=f"{path}.intervention", value=name, rule=rule, fix=fix)])
    module = importlib.import_module(f"projected_grpo.interventions.{name}")
    if missing := [needed for needed in REQUIRED if not hasattr(module, needed)]:
        file, fix = f"{FOLDER}/{name}.py", "see docs/adding_an_arm.md"
        rules = {needed: f"a family's file must define {needed}: {REQUIRED[needed]}" for needed in missing}
        raise ParamsError([LabError(setting=file, value=ABSENT, rule=rule, fix=fix) for rule in rules.values()])
    return module


def options_of(arm: ArmSettings, path: str = "arm") -> Section:
    """The arm's `options` as its family's own settings. `path`: what errors call the arm.

    Raises:
        ParamsError: with every fault of the block.
    """
    model: type[Section] = family(arm.intervention, path).Options
    return parse(nested(f"{path}.options", arm.options), f"{path}.options", model)


def check_lab(lab: LabSettings) -> None:
    """Every arm under each recipe that trains it: the active scale's, and that of each study that names it.

    Raises:
        ParamsError: with all faults, each told once.
    """
    roles = lab.comparison
    compared = {roles.treatment, roles.reference, roles.honest, *roles.controls}
    studied = {name for study in lab.studies.values() for name in study.arms}
    main = [name for name in lab.arms if name in compared or name not in studied]
    recipes = {f"scales.{lab.scale}": (main, lab.active)}
    recipes |= {f"studies.{name}": (list(study.arms), study.scale) for name, study in lab.studies.items()}
    faults: dict[tuple[str, str], LabError] = {}
    for path, (names, scale) in recipes.items():
        inherited = scale is not lab.active and gradients_kept(scale.grpo) == gradients_kept(lab.active.grpo)
        for name in names:
            # A study is written for one scale and must not block the main pipeline of another, which stores fewer axes
            # or keeps no gradients by rollout: such a run is refused when it starts (`training.run`).
            extract = scale.extract if name in compared else None
            grpo = None if inherited and name not in compared else scale.grpo
            for fault in _faults({name: lab.arms[name]}, scale.direction, extract, grpo, f"{path}.grpo"):
                faults.setdefault((fault.setting, fault.rule), fault)
    if faults:
        raise ParamsError(faults.values())


def check_arms(arms: Mapping[str, ArmSettings], shared: DirectionSettings) -> None:
    """Every arm's family, options and axes, whatever recipe trains it.

    Raises:
        ParamsError: with all faults of all arms.
    """
    if faults := list(_faults(arms, shared)):
        raise ParamsError(faults)


def check_needs(arm: ArmSettings, grpo: GrpoSettings, path: str = "grpo") -> None:
    """Whether the recipe gives the arm's family the gradients it needs. `path`: what errors call the block `grpo`.

    Raises:
        ParamsError: with every setting that would have to change.
    """
    need = needed_gradients(arm)
    wanted: dict[str, tuple[object, str]] = {}
    if need:
        wanted["rollout_gradients"] = (True, "it reads each completion's own gradient")
    if need == "unit":
        wanted["kl_beta"] = (0.0, "a completion's own gradient would hold its KL penalty")
    faults = [
        LabError(
            setting=f"{path}.{name}",
            value=getattr(grpo, name),
            rule=f"must be {str(value).lower()} for `{arm.intervention}`: {reason}",
            fix=f"set {str(value).lower()}, or leave the arm out",
        )
        for name, (value, reason) in wanted.items()
        if getattr(grpo, name) != value
    ]
    if faults:
        raise ParamsError(faults)


def gradients_kept(grpo: GrpoSettings) -> tuple[bool, float]:
    """What of a recipe decides which gradients by rollout there are."""
    return grpo.rollout_gradients, grpo.kl_beta


def needed_gradients(arm: ArmSettings) -> object:
    """Which gradients by rollout the arm's family needs: False, True or "unit"."""
    return getattr(family(arm.intervention), "NEEDS_ROLLOUT_GRADIENTS", False)


def unread_axes(name: str, arm: ArmSettings, path: str) -> list[LabError]:
    """The keys of the arm's `axes`, which errors call `path`, that the family of this name does not read."""
    reads = getattr(family(name, path), "READS_AXES", DirectionSettings.model_fields)
    rule = f"`{name}` does not read it; it would be ignored"
    fix = f"remove it; read are {', '.join(sorted(reads))}" if reads else "remove it"
    return [
        LabError(setting=f"{path}.{key}", value=value, rule=rule, fix=fix)
        for key, value in arm.axes.items()
        if key not in reads
    ]


def _faults(
    arms: Mapping[str, ArmSettings],
    shared: DirectionSettings,
    extract: ExtractSettings | None = None,
    grpo: GrpoSettings | None = None,
    grpo_path: str = "grpo",
) -> Iterable[LabError]:
    """Of every arm, what its first check that fails has found."""
    for name, arm in arms.items():
        path = f"arms.{name}"
        try:
            _check_direction(arm, path)
            options, direction = options_of(arm, path), direction_of(arm, shared, path)
            _check_axes(arm, direction, extract, path)
            _check_family(arm, options, direction, path)
            if grpo is not None:
                check_needs(arm, grpo, grpo_path)
        except ParamsError as error:
            yield from error.faults


def _check_direction(arm: ArmSettings, path: str) -> None:
    """Whether the family acts on a direction is a fact of its file: NEEDS_DIRECTION, True, False or None (may)."""
    needs = family(arm.intervention, path).NEEDS_DIRECTION
    if needs is True and arm.direction is None:
        rule, fix = (
            f"`{arm.intervention}` needs a direction to act on",
            f"set one of {', '.join(get_args(DirectionKind))}",
        )
        raise ParamsError([LabError(setting=f"{path}.direction", value=None, rule=rule, fix=fix)])
    if needs is False and arm.direction is not None:
        rule = f"`{arm.intervention}` acts on no direction; the setting would be ignored"
        fix = "remove it, or choose another intervention"
        raise ParamsError([LabError(setting=f"{path}.direction", value=arm.direction, rule=rule, fix=fix)])


def _check_axes(
    arm: ArmSettings, direction: DirectionSettings | None, extract: ExtractSettings | None, path: str
) -> None:
    """The keys of `axes` are read, and ask for no more than is extracted."""
    faults = unread_axes(arm.intervention, arm, f"{path}.axes")
    if direction is not None and extract is not None:
        # Only what the arm itself sets: the scale's own block is checked once, for all arms.
        beyond = beyond_extraction(direction, extract, f"{path}.axes")
        faults += [fault for fault in beyond if fault.setting.rsplit(".", 1)[1] in arm.axes]
    if faults:
        raise ParamsError(faults)


def _check_family(arm: ArmSettings, options: Section, direction: DirectionSettings | None, path: str) -> None:
    """What the family itself refuses, under the arm's place in params.yaml."""
    check = getattr(family(arm.intervention, path), "check", None)
    if check is None:
        return
    try:
        check(options, arm, direction)
    except ParamsError as error:
        raise ParamsError(
            LabError(setting=f"{path}.{fault.setting}", value=fault.value, rule=fault.rule, fix=fault.fix)
            for fault in error.faults
        ) from None
