"""Bytes for plain values: None, bool, int, float, str, bytes, list, tuple, dict, set, and nothing else.

Used between the lab and its fork servers, and by the child that runs an answer to hand its values back. A
reply may have been forged by the answer, so `decode` trusts nothing: any malformed input raises `Malformed`,
decoding builds plain built-in values only, and nesting is bounded. No pickle, no marshal, no eval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
LARGEST_KEY = (1 << 61) - 2  # integers beyond it can share one hash, and a set of them takes quadratic time
_CONTAINERS = {b"l": list, b"t": tuple, b"z": set}


class Malformed(ValueError):
    """Bytes that `encode` cannot have written."""


class TooLarge(ValueError):
    """A value whose encoding exceeds the limit."""


@dataclasses.dataclass(frozen=True)
class Opaque:
    """Stands for a value that is not carried: its type's name, or why it was left out."""

    type_name: str


class _Writer:
    """Collects the parts of an encoding and stops when they exceed `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.parts: list[bytes] = []
        self.left = limit

    def put(self, tag: bytes, body: bytes) -> None:
        self.left -= len(body) + 1
        if self.left < 0:
            raise TooLarge
        self.parts.append(tag + b"%d:" % len(body) + body)

    def count(self, tag: bytes, number: int) -> None:
        self.left -= 2
        if self.left < 0:
            raise TooLarge
        self.parts.append(tag + b"%d:" % number)

    def write(self, value: Any, depth: int) -> None:
        # Subclasses travel as the plain value they hold, read through the base class: a subclass's own
        # __eq__, __iter__ or __repr__ has no say.
        kind = type(value)
        if value is None:
            self.count(b"N", 0)
        elif kind is bool:
            self.count(b"B", int(value))
        elif issubclass(kind, int):
            self.put(b"i", b"%x" % int.__index__(value))
        elif issubclass(kind, float):
            self.put(b"f", float.hex(value).encode())
        elif issubclass(kind, str):
            self.put(b"s", str.encode(value, "utf-8", "surrogatepass"))
        elif issubclass(kind, bytes):
            self.put(b"b", bytes.__getitem__(value, slice(None)))
        elif depth >= MAX_DEPTH:
            self.put(b"o", b"too deeply nested")
        elif issubclass(kind, dict):
            self.count(b"d", dict.__len__(value))
            for key, item in dict.items(value):
                self.write(key, depth + 1)
                self.write(item, depth + 1)
        else:
            self._write_items(kind, value, depth)

    def _write_items(self, kind: type, value: Any, depth: int) -> None:
        for tag, base in _CONTAINERS.items():
            if issubclass(kind, base):
                self.count(tag, base.__len__(value))
                for item in base.__iter__(value):
                    self.write(item, depth + 1)
                return
        self.put(b"o", type.__dict__["__name__"].__get__(kind).encode("utf-8", "replace")[:100])


def encode(value: object, limit: int = 1 << 30) -> bytes:
    """The bytes of `value`. Raises `TooLarge` when they exceed about `limit`."""
    writer = _Writer(limit)
    writer.write(value, 0)
    return b"".join(writer.parts)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.hashed = 0  # sets and keys that we are inside of

    def header(self) -> tuple[bytes, int]:
        end = self.data.find(b":", self.at, self.at + 20)
        digits = self.data[self.at + 1 : end]
        if end < 0 or not digits.isdigit():
            raise Malformed("no header")
        tag, number = self.data[self.at : self.at + 1], int(digits)
        self.at = end + 1
        if number > len(self.data):
            raise Malformed("length exceeds the data")
        return tag, number

    def body(self, size: int) -> bytes:
        body = self.data[self.at : self.at + size]
        if len(body) != size:
            raise Malformed("cut short")
        self.at += size
        return body

    def key(self, depth: int) -> Any:
        """A member of a set or a key of a dict."""
        self.hashed += 1
        value = self.read(depth + 1)
        self.hashed -= 1
        return value

    def read(self, depth: int) -> Any:
        if depth > MAX_DEPTH + 1:
            raise Malformed("too deeply nested")
        tag, number = self.header()
        if tag == b"N":
            return None
        if tag == b"B":
            return number != 0
        if tag == b"z":
            return {self.key(depth) for _ in range(number)}
        if tag in _CONTAINERS:
            return _CONTAINERS[tag](self.read(depth + 1) for _ in range(number))
        if tag == b"d":
            return {self.key(depth): self.read(depth + 1) for _ in range(number)}
        body = self.body(number)
        if tag == b"i":
            value = int(body, 16)
            if self.hashed and abs(value) > LARGEST_KEY:
                raise Malformed("integer too large for a set or a key")
            return value
        if tag == b"f":
            return float.fromhex(body.decode("ascii"))
        if tag == b"s":
            return body.decode("utf-8", "surrogatepass")
        if tag == b"b":
            return body
        if tag == b"o":
            return Opaque(body.decode("utf-8", "replace"))
        raise Malformed(f"unknown tag {tag!r}")


def decode(data: bytes) -> Any:
    """The value that `encode` wrote. Raises `Malformed` for anything else."""
    reader = _Reader(data)
    try:
        value = reader.read(0)
    except (ValueError, TypeError, OverflowError) as error:  # TypeError: an unhashable set member or key
        raise error if isinstance(error, Malformed) else Malformed(str(error)) from error
    if reader.at != len(data):
        raise Malformed("bytes left over")
    return value


def frame(value: object) -> bytes:
    """`value` as a message between the lab and a fork server: its length, then its encoding."""
    data = encode(value)
    return len(data).to_bytes(4, "big") + data


def receive(read: Callable[[int], bytes]) -> bytes:
    """The encoding in the next message; `read` gives up to so many bytes. Raises EOFError if it gives none."""
    return _exactly(read, int.from_bytes(_exactly(read, 4), "big"))


def _exactly(read: Callable[[int], bytes], size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = read(min(size - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
