"""What a run is made of. Light: a stage builds it without importing the training stack."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from projected_grpo.problems.pairs import read_pairs
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.engine import TRANSFORMERS, EngineSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.storage import sha256_tree

INPUTS = ("base", "problems", "gauge", "own_direction", "pairs", "pool")


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """Everything a run depends on: resolved settings and the folders of its inputs. Seeds and paths included."""

    arm: str
    seed: int
    settings: ArmSettings
    grpo: GrpoSettings
    compute: ComputeSettings
    sandbox: SandboxSettings
    direction: DirectionSettings | None  # with the arm's own `axes`; None for arms that act on no direction
    base: Path
    problems: Path
    gauge: Path  # the hack direction that every arm is measured with
    own_direction: Path | None
    pairs: Path | None
    pool: Path | None = None  # the teacher's cached completions
    engine: EngineSettings = TRANSFORMERS

    def inputs(self) -> dict[str, str]:
        """Content hash of every input."""
        paths = {name: getattr(self, name) for name in INPUTS}
        return {name: sha256_tree(path) for name, path in paths.items() if path is not None}

    def resolved(self) -> dict[str, Any]:
        """All settings that can change a result, without paths (inputs count by content)."""
        sections = {
            "arm_settings": self.settings,
            "grpo": self.grpo,
            "compute": self.compute,
            "sandbox": self.sandbox,
        }
        resolved = {name: section.model_dump(mode="json") for name, section in sections.items()}
        resolved["grpo"].pop("save_every")
        resolved["compute"].pop("keep_factors")
        # Away from the device they are always folded, on it not in passes of few tokens: another rounding.
        if resolved["compute"].pop("factors") != "device":
            resolved["compute"]["always_folded"] = True
        if resolved["arm_settings"]["teacher"]:
            resolved["arm_settings"]["teacher"].pop("pool")
        for name in ("workers", "max_error_share", "allow_weak"):  # how fast and how patiently, not what is decided
            resolved["sandbox"].pop(name)
        direction = self.direction.model_dump(mode="json") if self.direction else None
        if self.engine.kind != TRANSFORMERS.kind:  # the default is left out: its runs keep their keys
            resolved["engine"] = self.engine.model_dump(mode="json", include={"kind", "mode", "dtype"})
        return {"arm": self.arm, "seed": self.seed, "direction": direction, **resolved}


def with_named_loopholes(arm: ArmSettings, pairs: Path) -> ArmSettings:
    """The arm with the loopholes named that its teacher's `known_only` allows, those that V is extracted from; any
    other arm as it is."""
    if arm.teacher is None or not arm.teacher.known_only:
        return arm
    known = tuple(sorted({pair.loophole for pair in read_pairs(pairs) if pair.split == "extract"}))
    teacher = arm.teacher.model_copy(update={"loopholes": known})
    return arm.model_copy(update={"teacher": teacher})
