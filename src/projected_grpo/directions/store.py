"""A direction as a record and as a file: safetensors with the hashes of what it was made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from projected_grpo.storage import write_bytes


@dataclasses.dataclass(frozen=True)
class ModuleDirection:
    """One matrix: axes (k, r) orthonormal and oriented hack-ward, singular values (k,), mean pair difference (r,),
    and votes (k,), the share of pairs that agree with each axis's orientation."""

    axes: Tensor
    singular_values: Tensor
    mean: Tensor
    votes: Tensor


@dataclasses.dataclass(frozen=True)
class Direction:
    """A hack direction (or a control) of one base model.

    base_hash and pairs_hash bind it to what it was extracted from; pairs_hash is "" for directions made of no pairs.
    heldout_accuracy: share of held-out pairs whose difference points the way of the mean difference; -1 if none.
    """

    name: str
    base_hash: str
    pairs_hash: str
    heldout_accuracy: float
    modules: dict[str, ModuleDirection]

    @property
    def k_max(self) -> int:
        return min(module.axes.shape[0] for module in self.modules.values())

    def bases(self, k: int) -> dict[str, Tensor]:
        """The k strongest axes of every module. Raises ValueError if fewer are stored."""
        if k > self.k_max:
            raise ValueError(f"direction {self.name!r} stores {self.k_max} axes, k={k} were asked for")
        return {name: module.axes[:k] for name, module in self.modules.items()}

    def means(self) -> dict[str, Tensor]:
        """Mean pair difference of every module."""
        return {name: module.mean for name, module in self.modules.items()}

    def check_base(self, base_hash: str) -> None:
        """Raise ValueError if this direction belongs to another base model (its coordinates would be meaningless)."""
        if self.base_hash != base_hash:
            raise ValueError(
                f"direction {self.name!r} was extracted from base {self.base_hash[:12]}, not {base_hash[:12]}: "
                "run `dvc repro extract`"
            )


FIELDS = tuple(field.name for field in dataclasses.fields(ModuleDirection))


def save_direction(path: Path, direction: Direction) -> None:
    """Write atomically; equal directions give equal bytes."""
    tensors = {
        f"{name}/{field}": getattr(module, field).contiguous()
        for name, module in direction.modules.items()
        for field in FIELDS
    }
    about = {key: getattr(direction, key) for key in ("name", "base_hash", "pairs_hash", "heldout_accuracy")}
    content = save(tensors, {"direction": json.dumps(about), "base_hash": direction.base_hash})
    write_bytes(path, _in_order(content))


def _in_order(content: bytes) -> bytes:
    """The same file with a sorted header: safetensors writes metadata in an order that changes from call to call."""
    start = 8 + int.from_bytes(content[:8], "little")  # u64 length, JSON header, data
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data stay aligned
    return len(header).to_bytes(8, "little") + header + content[start:]


def load_direction(path: Path) -> Direction:
    """Read what `save_direction` wrote."""
    with safe_open(str(path), framework="pt") as file:
        about = json.loads(file.metadata()["direction"])
        names = sorted({key.rsplit("/", 1)[0] for key in file.keys()})  # noqa: SIM118 (not a dict)
        modules = {
            name: ModuleDirection(**{field: file.get_tensor(f"{name}/{field}") for field in FIELDS}) for name in names
        }
    return Direction(modules=modules, **about)
