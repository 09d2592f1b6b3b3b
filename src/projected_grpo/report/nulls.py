"""What the share along a hack direction would be for a gradient without direction: the lines that curves are read by.

An isotropic gradient has sqrt(k / 2r) hack-ward along k of r axes (`directions.algebra.alignment_null`), so it goes
with the root of k. `alignment` is read with `measure_k` axes in every arm, its null is a column of steps.csv; `leak`
and `share_removed` are of the arm's own V, whose k stands in the settings that were recorded beside the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

# Beside relu(V g), which holds half of the energy along V: how much each gate takes of a gradient without direction.
GATES = {"one_sided": 1.0, "both_sides": math.sqrt(2), "reverse": 2.0}


@dataclass(frozen=True)
class Null:
    """A line at `value`: that of `arms`, whose V has `axes` axes per matrix (None: not recorded)."""

    value: float
    axes: int | None
    arms: tuple[str, ...]

    def label(self) -> str:
        return "null" if self.axes is None else f"null, k = {self.axes}"


@dataclass(frozen=True)
class Nulls:
    """The lines of each column, by rising value; none where the recorded settings do not tell."""

    alignment: tuple[Null, ...] = ()
    leak: tuple[Null, ...] = ()
    removed: tuple[Null, ...] = ()


def nulls(steps: pd.DataFrame, provenance: Mapping[str, Mapping[str, Any]]) -> Nulls:
    """The lines of the arms of `steps` (as of `curves.read_steps`); provenance: by arm, the record of a run.

    Of an arm with a noise floor no line is known: its matrices have unequal numbers of axes.
    """
    measured, leaks, removed = [], [], []
    for arm, value in steps.groupby("arm", sort=False)["alignment_null"].mean().items():
        settings = provenance.get(str(arm), {}).get("settings", {})
        axes = settings.get("grpo", {}).get("measure_k")
        measured.append(Null(float(value), axes, (str(arm),)))
        own = settings.get("direction")
        if not own or not axes or own["noise_floor"]:
            continue
        null = float(value) * math.sqrt(own["k"] / axes)
        leaks.append(Null(null, own["k"], (str(arm),)))
        arm_settings = settings["arm_settings"]
        # What a random V takes where it matches the energy is set by another direction.
        matched = arm_settings["direction"] == "random" and own["random_match"] == "energy"
        if arm_settings["intervention"] == "erase" and not own["preserve_magnitude"] and not matched:
            removed.append(Null(own["overshoot"] * GATES[own["gate"]] * null, own["k"], (str(arm),)))
    return Nulls(_joined(measured), _joined(leaks), _joined(removed))


def of_arms(lines: Sequence[Null], arms: Sequence[str]) -> dict[str, float]:
    """Label -> value of the lines that concern `arms`; one that is not all of theirs names its own."""
    found = {}
    for line in lines:
        own = [arm for arm in line.arms if arm in arms]
        if own:
            found[line.label() + ("" if len(own) == len(arms) else f" ({', '.join(own)})")] = line.value
    return found


def _joined(lines: Sequence[Null]) -> tuple[Null, ...]:
    """Equal lines as one."""
    arms: dict[tuple[float, int | None], list[str]] = {}
    for line in lines:
        arms.setdefault((round(line.value, 6), line.axes), []).extend(line.arms)
    return tuple(
        Null(value, axes, tuple(names)) for (value, axes), names in sorted(arms.items(), key=lambda at: at[0][0])
    )
