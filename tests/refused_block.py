"""What is wrong with one block of settings, for the tests of each."""

from __future__ import annotations

from typing import Any

import pytest

from projected_grpo.errors import LabError, ParamsError
from projected_grpo.settings.loader import parse
from projected_grpo.settings.section import Section


def block_fault(name: str, kind: type[Section], block: dict[str, Any]) -> LabError:
    """The only fault of `block`, read as the settings `kind` under `name`."""
    with pytest.raises(ParamsError) as refusal:
        parse({name: block}, name, kind)
    [fault] = refusal.value.faults
    return fault
