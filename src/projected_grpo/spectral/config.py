"""Settings of the spectral adapter, and the name by which PEFT knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, PeftType


def _peft_type() -> Any:
    """`PeftType.SPECTRAL`, added to the enumeration if it is not there: PEFT looks methods up by member."""
    name = "SPECTRAL"
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = member._value_ = name
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType.__members__)
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    return PeftType.__members__[name]


SPECTRAL = _peft_type()


@dataclass
class SpectralConfig(PeftConfig):
    """Which matrices get a delta, and along how many of their singular directions.

    Raises:
        ValueError: a setting has a wrong type or value; the message says what was received.
    """

    rank: int | None = field(
        default=None,
        metadata={"help": "Singular directions in use, largest first; None, or more than there are: all."},
    )
    target_modules: list[str] | str | None = field(
        default="all-linear",
        metadata={"help": "Names (last parts count), a regular expression of whole names, or 'all-linear'."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names, or a regular expression of whole names, to leave alone."}
    )
    basis_cache: str | None = field(
        default=None,
        metadata={"help": "Directory for SVDs, keyed by weight. Belongs to this machine: never saved."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = SPECTRAL
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise ValueError(f"rank must be an integer of at least 1, or None for all; got {self.rank!r}")
        self.target_modules = _names("target_modules", self.target_modules)
        if self.exclude_modules is not None:
            self.exclude_modules = _names("exclude_modules", self.exclude_modules)
        if self.basis_cache is not None and not isinstance(self.basis_cache, str):
            raise ValueError(f"basis_cache must be a directory name or None; got {self.basis_cache!r}")

    def to_dict(self) -> dict[str, Any]:
        """What is saved beside the weights: the same bytes in every process, and no path of this machine."""
        settings = super().to_dict()
        del settings["basis_cache"]
        return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def _names(setting: str, value: Any) -> Any:
    """A pattern as it is; names as a set, the form in which PEFT keeps them."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple | set) and value and all(isinstance(x, str) and x for x in value):
        return set(value)
    raise ValueError(f"{setting} must be module names, a regular expression or 'all-linear'; got {value!r}")
