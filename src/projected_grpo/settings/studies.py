"""`studies.<name>`: a set of arms under one regime, i.e. the active scale with some settings changed.

    studies:
      long: {arms: [vanilla, projected], seeds: [1, 2, 3], grpo: {steps: 200}}

`read_params(study="long")` gives params.yaml with these changes made, so that a stage reads its sections as ever;
`paths_of` says where the study's files lie. Arms are those of `arms`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from projected_grpo.settings.loader import CHANGEABLE, Params
from projected_grpo.settings.section import Name, Section, Unique

OWN_DATA = {"problems", "extract"}  # what a study that changes these prepares and extracts for itself


class StudySettings(Section):
    """The arms, and any of the scale's sections with the keys that are changed."""

    arms: Unique[Name]
    """names of `arms`; the first is the one that the others are compared with"""

    seeds: Any = None
    """training seeds of all its arms; null: the scale's"""

    problems: dict[str, Any] = Field(default_factory=dict)
    """keys of the scale's `problems` that are changed"""

    extract: dict[str, Any] = Field(default_factory=dict)
    """keys of the scale's `extract` that are changed"""

    direction: dict[str, Any] = Field(default_factory=dict)
    """keys of the scale's `direction` that are changed"""

    grpo: dict[str, Any] = Field(default_factory=dict)
    """keys of the scale's `grpo` that are changed"""

    sampling: dict[str, Any] = Field(default_factory=dict)
    """keys of the scale's `sampling` that are changed"""


assert set(StudySettings.model_fields) == {"arms", *CHANGEABLE}


@dataclasses.dataclass(frozen=True)
class Paths:
    """Folders of one pipeline, relative to the repository root; runs and what follows hold one folder per arm."""

    base: Path
    problems: Path
    pairs: Path
    directions: Path
    runs: Path
    provenance: Path
    samples: Path
    graded: Path


def paths_of(params: Params, study: str | None) -> Paths:
    """Of the main pipeline (study None), or of a study: it shares the base, and all data that it does not change."""
    own = Path("data") if study is None else Path("data/study") / study
    block = params["studies"][study] if study is not None else {}
    data = own if isinstance(block, Mapping) and OWN_DATA & block.keys() else Path("data")
    return Paths(
        base=Path("data/base"),
        problems=data / "problems",
        pairs=data / "pairs",
        directions=data / "directions",
        runs=own / "runs",
        provenance=own / "provenance",
        samples=own / "samples",
        graded=own / "graded",
    )
