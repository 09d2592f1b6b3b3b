"""The arm families by name: a family is a file of this folder that defines `Options` and `build`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from projected_grpo.errors import LabError, ParamsError
from projected_grpo.settings.arms import ArmSettings, direction_of, nested
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.loader import did_you_mean, parse
from projected_grpo.settings.section import Section


def families() -> list[str]:
    """Names of all families, found by their files: an added file is an added family."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if "\ndef build(" in path.read_text(encoding="utf-8"))


def family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
        ParamsError: there is no such family.
    """
    if name not in families():
        rule = "must name a file of src/projected_grpo/interventions/ that defines `build`"
        raise ParamsError([LabError(setting="intervention", value=name, rule=rule, fix=did_you_mean(name, families()))])
    return importlib.import_module(f"projected_grpo.interventions.{name}")


def options_of(arm: ArmSettings, path: str = "arm") -> Section:
    """The arm's `options` as its family's own settings. `path`: what errors call the arm.

    Raises:
        ParamsError: with every fault of the block.
    """
    model: type[Section] = family(arm.intervention).Options
    return parse(nested(f"{path}.options", arm.options), f"{path}.options", model)


def check_arms(arms: Mapping[str, ArmSettings], shared: DirectionSettings) -> None:
    """Every arm's family, options and axes.

    Raises:
        ParamsError: with all faults of all arms.
    """
    faults: list[LabError] = []
    for name, arm in arms.items():
        for check in (lambda a, p: _check_direction(a, p), options_of, lambda a, p: direction_of(a, shared, p)):
            try:
                check(arm, f"arms.{name}")
            except ParamsError as error:
                faults.extend(error.faults)
                break
    if faults:
        raise ParamsError(faults)


def _check_direction(arm: ArmSettings, path: str) -> None:
    """Whether the family acts on a direction is a fact of its file: NEEDS_DIRECTION, True, False or None (may)."""
    needs = family(arm.intervention).NEEDS_DIRECTION
    if needs is True and arm.direction is None:
        rule, fix = (
            f"`{arm.intervention}` needs a direction to act on",
            "set one of hack, random, placebo, permuted, flipped",
        )
        raise ParamsError([LabError(setting=f"{path}.direction", value=None, rule=rule, fix=fix)])
    if needs is False and arm.direction is not None:
        rule = f"`{arm.intervention}` acts on no direction; the setting would be ignored"
        fix = "remove it, or choose another intervention"
        raise ParamsError([LabError(setting=f"{path}.direction", value=arm.direction, rule=rule, fix=fix)])
