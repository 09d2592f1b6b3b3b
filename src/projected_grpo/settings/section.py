"""The base of every settings section: frozen, strictly typed, no unknown keys, no defaults hidden in code.

Strict: an integer is accepted where a number is asked for, text never is. Each field carries its meaning and
unit as the docstring below it, which error messages quote. Rules across fields of one section are
`model_validator(mode="after")` methods that raise `broken_rule(...)`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

BROKEN_RULE = "broken_rule"  # error type by which the loader knows our own messages

Item = TypeVar("Item", bound=Hashable)


class Section(BaseModel):
    """A block of params.yaml as an immutable record; equal content compares and hashes equal."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def broken_rule(field: str, value: object, rule: str, fix: str) -> PydanticCustomError:
    """A refusal to raise inside a validator. `field` is relative to the section; "" is the value itself."""
    return PydanticCustomError(BROKEN_RULE, "{rule}", {"field": field, "value": value, "rule": rule, "fix": fix})


def _some_and_unique(items: tuple[Item, ...]) -> tuple[Item, ...]:
    if not items:  # not `min_length`, which would also complain where the only entry is a wrong one
        raise broken_rule("", [], "must not be empty", "add at least one entry")
    twice = sorted({item for item in items if items.count(item) > 1}, key=str)
    if twice:
        named = ", ".join(map(str, twice))
        raise broken_rule("", list(items), f"no entry may appear twice; {named} does", "remove the repetition")
    return items


# Lists in the file become tuples here: lax about the container only, its items stay strict.
Unique = Annotated[tuple[Item, ...], Field(strict=False), AfterValidator(_some_and_unique)]

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Rate = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Name = Annotated[str, Field(min_length=1)]
