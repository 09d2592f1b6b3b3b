"""The records that go into the sandbox and come out of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

Outcome = Literal["ok", "compile", "exception", "timeout", "memory", "killed", "protocol"]


@dataclasses.dataclass(frozen=True)
class Job:
    """One execution: set-up, then the answer's code, then expressions whose values come back.

    An expression sees the set-up's names and, of the answer's, only `exports`: an answer that redefines a
    helper of the set-up changes nothing but its own calls.
    """

    setup_code: str
    code: str
    expressions: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("Solution",)
    stdout: bool = False  # capture what is printed, up to `output_kb`
    files: tuple[str, ...] = ()  # names in the working folder whose first 4 KiB come back if regular files

    def __post_init__(self) -> None:
        for name in self.files:
            if not name or "/" in name or "\0" in name or name in (".", ".."):
                raise ValueError(f"files: {name!r} is not a bare file name")


@dataclasses.dataclass(frozen=True)
class JobResult:
    """What an execution did. With `machinery_error` set, nothing else means anything: the fault is ours."""

    outcome: Outcome
    reason: str = ""  # short text for people; "" when ok
    values: tuple[object, ...] = ()  # of the expressions that were reached, in order
    stdout: str = ""
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)  # only those that exist and are regular
    cpu_seconds: float = 0.0
    machinery_error: str | None = None
