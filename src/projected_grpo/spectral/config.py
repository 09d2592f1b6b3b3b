"""Settings of the spectral adapter, and the name by which PEFT knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig, PeftType

from projected_grpo.spectral.kernels import Mode


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
FACTOR_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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
    mode: str = field(
        default="auto",
        metadata={"help": "'folded', 'factored', or 'auto': by rank and tokens of a call (`kernels.Shape.mode`)."},
    )
    factors_dtype: str | None = field(
        default=None, metadata={"help": "Type of the frozen U and Vh, such as 'bfloat16'; None: float32."}
    )
    factors_device: str | None = field(
        default=None,
        metadata={
            "help": "Where the frozen U and Vh live: None: with the weight; 'cpu'; 'disk': mapped from basis_cache. "
            "Then W' takes the place of W on the device, and W stays with them. Belongs to this machine: never saved."
        },
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
        _one_of("mode", self.mode, ("auto", "folded", "factored"))
        _one_of("factors_dtype", self.factors_dtype, (None, *FACTOR_DTYPES))
        _one_of("factors_device", self.factors_device, (None, "cpu", "disk"))
        if self.factors_device == "disk" and self.basis_cache is None:
            raise ValueError("factors_device='disk' maps the factors from basis_cache: name a directory there")
        if self.factors_device is not None and self.mode == "factored":
            raise ValueError(
                "mode='factored' applies U and Vh to every token: "
                f"leave factors_device=None; got {self.factors_device!r}"
            )

    @property
    def forward_mode(self) -> Mode:
        """`mode`, less what it cannot be: factors that live elsewhere are never applied to each token."""
        return cast(Mode, "folded" if self.factors_device is not None else self.mode)

    @property
    def shared(self) -> dict[str, Any]:
        """Settings that belong to a basis, and so to all adapters of a model."""
        names = ("rank", "mode", "factors_dtype")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """What is saved beside the weights: the same bytes in every process, and no path of this machine."""
        settings = super().to_dict()
        del settings["basis_cache"], settings["factors_device"]
        return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


def _names(setting: str, value: Any) -> Any:
    """A pattern as it is; names as a set, the form in which PEFT keeps them."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list | tuple | set) and value and all(isinstance(x, str) and x for x in value):
        return set(value)
    raise ValueError(f"{setting} must be module names, a regular expression or 'all-linear'; got {value!r}")


def _one_of(setting: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{setting} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
