"""What a direction's file says of itself, read from the header of its .safetensors without torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000  # what the safetensors format itself allows


def read_header(file: Path) -> dict[str, Any]:
    """The header of a .safetensors file (u64 length, then JSON), read without torch; empty if it is none."""
    with open(file, "rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        text = stream.read(length) if length <= MAX_HEADER_BYTES else b""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def base_hash(header: Mapping[str, Any]) -> str:
    """`base_hash` in the metadata."""
    if not header:
        return "nothing readable (not a .safetensors file)"
    return str(header.get("__metadata__", {}).get("base_hash", "no base (it carries no base_hash)"))


def axes_of(header: Mapping[str, Any]) -> int:
    """Axes of the module that has most; 0 if the file holds none."""
    return max((entry["shape"][0] for name, entry in header.items() if name.endswith("/axes")), default=0)
