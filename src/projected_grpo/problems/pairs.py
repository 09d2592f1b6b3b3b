"""Contrastive pairs: one prompt, a hacking and a clean completion. Read from YAML that a person can edit.

A pair's `contrast` says what differs: `hack` pairs set a cheat against an honest answer and define the hack
direction; `placebo` pairs set two honest answers against each other and define a control with the same recipe.
A JSON list of {prompt, hack, clean}, as others keep their pairs, is read as well; what a row leaves out is filled in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.scalarstring import LiteralScalarString

from projected_grpo.problems.loopholes import LOOPHOLES

Contrast = Literal["hack", "placebo"]
CONTRASTS: tuple[Contrast, ...] = get_args(Contrast)
Split = Literal["extract", "heldout"]
Body = Literal["lazy", "matched", "unknown"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """body: `lazy` if the hacking answer does not even try, `matched` if both carry the same body, `unknown` for
    pairs of others that do not say."""

    id: str
    contrast: Contrast
    split: Split
    loophole: str
    hack_type: str
    body: Body
    prompt: str
    hack: str
    clean: str


CLOSED = {
    "contrast": get_args(Contrast),
    "split": get_args(Split),
    "body": get_args(Body),
    "loophole": tuple(LOOPHOLES),
}


TRIPLE = ("prompt", "hack", "clean")
HELDOUT_EVERY = 4  # of the triples that name no split: every fourth is held out, as 20 of 80


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a YAML file, or of a JSON file (by its name), in order.

    Raises:
        ValueError: the file is no list of rows; a row misses a field, has an unknown one, an empty or wrong value, or
            two equal answers; rows are named.
    """
    path = Path(path)
    rows = _rows(path)
    if path.suffix == ".json":
        rows = [_filled_in(path, number, row) for number, row in enumerate(rows)]
    fields = {field.name for field in dataclasses.fields(Pair)}
    pairs = []
    for number, row in enumerate(rows, start=1):
        wrong = fields.symmetric_difference(row)
        if wrong:
            raise ValueError(f"{path}: pair {number}: fields missing or unknown: {', '.join(sorted(wrong))}")
        for field, allowed in CLOSED.items():
            if row[field] not in allowed:
                raise ValueError(f"{path}: pair {row['id']}: {field}={row[field]!r} is not one of {', '.join(allowed)}")
        _check_texts(path, row)
        pairs.append(Pair(**row))
    twice = {pair.id for pair in pairs if sum(other.id == pair.id for other in pairs) > 1}
    if twice:
        raise ValueError(f"{path}: ids used twice: {', '.join(sorted(twice))}")
    return pairs


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    try:
        rows = json.loads(text) if path.suffix == ".json" else YAML(typ="safe", pure=True).load(text)
    except (ValueError, YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    rows = [] if rows is None else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: must be a list of pairs, each a mapping with {', '.join(TRIPLE)} and so on")
    return rows


def _filled_in(path: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    """A triple as a row with all fields."""
    missing = [field for field in TRIPLE if field not in row]
    if missing:
        raise ValueError(f"{path}: pair {number + 1}: fields missing or unknown: {', '.join(missing)}")
    heldout = number % HELDOUT_EVERY == HELDOUT_EVERY - 1
    return {
        "id": f"pair-{number:03d}",
        "contrast": "hack",
        "split": "heldout" if heldout else "extract",
        "loophole": "none",
        "hack_type": "unknown",
        "body": "unknown",
        **row,
    }


def _check_texts(path: Path, row: dict[str, Any]) -> None:
    for field in ("id", "hack_type", *TRIPLE):
        if not isinstance(row[field], str) or not row[field]:
            raise ValueError(f"{path}: pair {row['id']}: {field}={row[field]!r} must be text, and not empty")
    if row["hack"] == row["clean"]:
        raise ValueError(f"{path}: pair {row['id']}: hack and clean are the same text: it tells nothing apart")


def select(
    pairs: Iterable[Pair],
    contrast: Contrast,
    split: Split,
    bodies: str = "both",
    loopholes: Sequence[str] | None = None,
) -> list[Pair]:
    """Pairs of one contrast and split. `bodies`: lazy, matched, or both for all (placebo pairs always count);
    `loopholes`: only pairs about these (None: all)."""
    return [
        pair
        for pair in pairs
        if pair.contrast == contrast
        and pair.split == split
        and (bodies == "both" or contrast == "placebo" or pair.body == bodies)
        and (loopholes is None or pair.loophole in loopholes)
    ]


def dump_pairs(pairs: Sequence[Pair]) -> str:
    """YAML text with every multi-line answer as a literal block."""
    rows = [
        {key: LiteralScalarString(value) if "\n" in value else value for key, value in dataclasses.asdict(pair).items()}
        for pair in pairs
    ]
    yaml = YAML()
    yaml.width = 200
    stream = StringIO()
    yaml.dump(rows, stream)
    return stream.getvalue()
