"""Errors that a person can act on: which setting, what it was, which rule it broke, what to do.

Every refusal of the lab is a `LabError`. A stage or command prints it and exits with status 1; a traceback is
for our own bugs only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any


class LabError(Exception):
    """One refusal: `setting` (dotted path or file), `value` received, `rule` broken, and the `fix`."""

    def __init__(self, *, setting: str, value: object, rule: str, fix: str) -> None:
        super().__init__(setting, value, rule, fix)
        self.setting = setting
        self.value = value
        self.rule = rule
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        """As itself from a worker process: pickle would call it with positional arguments."""
        return partial(LabError, setting=self.setting, value=self.value, rule=self.rule, fix=self.fix), ()

    def __str__(self) -> str:
        return f"{self.setting}: {_shown(self.value)}\n    rule: {self.rule}\n    fix:  {self.fix}"


class ParamsError(LabError):
    """All that is wrong with the parameters, at once. `faults` holds one `LabError` each, in file order."""

    def __init__(self, faults: Iterable[LabError]) -> None:
        self.faults = tuple(faults)
        if not self.faults:
            raise ValueError("ParamsError needs at least one fault")
        first = self.faults[0]
        super().__init__(setting=first.setting, value=first.value, rule=first.rule, fix=first.fix)

    def __reduce__(self) -> tuple[Any, ...]:
        return ParamsError, (self.faults,)

    def __str__(self) -> str:
        count = len(self.faults)
        title = "1 setting refused" if count == 1 else f"{count} settings refused"
        return "\n\n".join([f"{title}; nothing was run", *map(str, self.faults)])


ABSENT = "(not set)"  # shown as the value of a setting that the file lacks


def _shown(value: object, limit: int = 120) -> str:
    """The value as a person would recognise it: text in quotes, so that "3" and 3 differ; long ones cut."""
    if value is ABSENT:
        return ABSENT
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def exit_status(main: Callable[[], None]) -> int:
    """Run a stage: 0, or 1 after printing a refusal. Anything else that is raised is a bug and keeps its traceback."""
    try:
        main()
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
