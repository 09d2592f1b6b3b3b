"""`studies.<name>`: a set of arms under one regime, i.e. the active scale with some settings changed.

    studies:
      long: {arms: [vanilla, projected], seeds: [1, 2, 3], grpo: {steps: 200}}

`read_params(study="long")` gives params.yaml with these changes made, so that a stage reads its sections as ever;
`paths_of` says where the study's files lie. Arms are those of `arms`. A study may start from another one (`of`): it has
that one's changes, base and data where it says nothing else.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import Field

from projected_grpo.settings.loader import CHANGEABLE, Params
from projected_grpo.settings.section import Name, Section, Unique

OWN_DATA = {"base", "problems", "extract"}  # what a study that changes these prepares and extracts for itself


class StudySettings(Section):
    """The arms, and any of the scale's sections with the keys that are changed."""

    arms: Unique[Name]
    """names of `arms`; the first is the one that the others are compared with, but in a fold (docs/study.md)"""

    of: Name | None = None
    """a study that this one starts from, which itself starts from none; null: the active scale"""

    seeds: Any = None
    """training seeds of all its arms; null: the scale's"""

    base: dict[str, Any] = Field(default_factory=dict)
    """keys of the scale's `base` that are changed"""

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


assert set(StudySettings.model_fields) == {"arms", "of", *CHANGEABLE}


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
    """Of the main pipeline (study None), or of a study: base and data are those of what it starts from, unless it
    changes them. As `read_params`, which refuses a chain of studies, has read them."""
    own = Path("data") if study is None else Path("data/study") / study
    block = params["studies"][study] if study is not None else {}
    mine = Paths(
        base=own / "base",
        problems=own / "problems",
        pairs=own / "pairs",
        directions=own / "directions",
        runs=own / "runs",
        provenance=own / "provenance",
        samples=own / "samples",
        graded=own / "graded",
    )
    if study is None:
        return mine
    start = paths_of(params, block.get("of"))
    base = mine.base if "base" in block else start.base
    if OWN_DATA & block.keys():
        return dataclasses.replace(mine, base=base)
    return dataclasses.replace(mine, base=base, problems=start.problems, pairs=start.pairs, directions=start.directions)
