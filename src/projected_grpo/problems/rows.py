"""JSON lines from outside: one object a line, with the fields that are needed, else a refusal naming line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from projected_grpo.errors import ABSENT, LabError

Kind = type | tuple[type, ...]


def read_rows(path: str | Path, fields: Mapping[str, Kind]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of each line that is not blank. Rows may hold more than `fields`, name -> type.

    Raises:
        LabError: no such file, not JSON, not an object, a field missing or of another type; or no row at all.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise LabError(
            setting=str(path), value=ABSENT, rule=f"must be a readable file: {why}", fix="check the path"
        ) from None
    empty = True
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON text may hold other line ends
        if not line.strip():
            continue
        empty = False
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LabError(setting=place, value=line, rule=f"must be JSON: {error}", fix="one object a line") from None
        if not isinstance(row, dict):
            raise LabError(setting=place, value=row, rule="must be a JSON object", fix="one object a line")
        for name, kind in fields.items():
            value = row.get(name, ABSENT)
            if value is ABSENT or not isinstance(value, kind) or isinstance(value, bool):
                raise LabError(
                    setting=f"{place}: {name}", value=value, rule=f"must be {_said(kind)}", fix="see docs/grading.md"
                )
        yield number, row
    if empty:
        raise LabError(setting=str(path), value="(empty)", rule="must hold at least one row", fix="check the file")


def _said(kind: Kind) -> str:
    words = {str: "text", int: "an integer", list: "a list", dict: "an object"}
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(words[item] for item in kinds)
