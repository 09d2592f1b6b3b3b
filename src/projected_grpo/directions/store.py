"""A direction as a record and as a file: safetensors with the hashes of what it was made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from projected_grpo.directions.options import ExtractionOptions
from projected_grpo.storage import write_bytes


@dataclasses.dataclass(frozen=True)
class ModuleDirection:
    """One matrix, n pairs.

    axes: (k, r) orthonormal, strongest first, oriented hack-ward. singular_values: (k,). mean: (r,), mean pair
    difference. votes: (k,), share of pairs that agree with each axis's orientation. coordinates: (n, k), each pair
    along each axis; (0, k) for axes made of no pairs.
    """

    axes: Tensor
    singular_values: Tensor
    mean: Tensor
    votes: Tensor
    coordinates: Tensor


@dataclasses.dataclass(frozen=True)
class Direction:
    """A hack direction (or a control) of one base model.

    base_hash and pairs_hash bind it to what it was extracted from; pairs_hash is "" for directions made of no pairs.
    heldout_accuracy: share of held-out pairs whose difference points the way of the mean difference; -1 if none.
    options: the recipe, None where it is unknown or there is none: such a direction cannot be refreshed.
    """

    name: str
    base_hash: str
    pairs_hash: str
    heldout_accuracy: float
    modules: dict[str, ModuleDirection]
    options: ExtractionOptions | None = None

    @property
    def k_max(self) -> int:
        """Axes of the module that has most; small matrices, and weak axes cut by tau_axis, leave others with fewer."""
        return max(module.axes.shape[0] for module in self.modules.values())

    def bases(self, k: int, noise_floor: float = 0.0, mean_diff: bool = False) -> dict[str, Tensor]:
        """V per module, (at most k, r): the strongest axes.

        noise_floor: axes whose singular value lies under this quantile of all modules' singular values are left
        out; a module may be left with none, (0, r). mean_diff: instead of axes, the one unit vector along the mean
        pair difference (none where that is 0); k must be 1.

        Raises:
            ValueError: more axes are asked for than any module stores, or mean_diff with k > 1.
        """
        if mean_diff:
            if k != 1:
                raise ValueError(f"the mean difference is one axis, k={k} were asked for")
            return {name: _unit(module.mean) for name, module in self.modules.items()}
        if k > self.k_max:
            raise ValueError(f"direction {self.name!r} stores {self.k_max} axes, k={k} were asked for")
        floor = self._floor(noise_floor)
        return {name: module.axes[:k][module.singular_values[:k] >= floor] for name, module in self.modules.items()}

    def _floor(self, quantile: float) -> float:
        if quantile == 0:
            return 0.0
        strengths = torch.cat([module.singular_values for module in self.modules.values()]).sort().values
        # Not torch.quantile, which refuses more than 16 million values.
        return float(strengths[min(int(quantile * len(strengths)), len(strengths) - 1)])

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


def _unit(vector: Tensor) -> Tensor:
    length = vector.norm()
    return (vector / length)[None] if length > 0 else vector.new_zeros(0, vector.numel())


FIELDS = tuple(field.name for field in dataclasses.fields(ModuleDirection))
ABOUT = ("name", "base_hash", "pairs_hash", "heldout_accuracy")


def save_direction(path: Path, direction: Direction) -> None:
    """Write atomically; equal directions give equal bytes."""
    tensors = {
        f"{name}/{field}": getattr(module, field).contiguous()
        for name, module in direction.modules.items()
        for field in FIELDS
    }
    about = {key: getattr(direction, key) for key in ABOUT}
    about["options"] = dataclasses.asdict(direction.options) if direction.options else None
    content = save(tensors, {"direction": json.dumps(about), "base_hash": direction.base_hash})
    write_bytes(path, _in_order(content))


def _in_order(content: bytes) -> bytes:
    """The same file with a sorted header: safetensors writes metadata in an order that changes from call to call."""
    start = 8 + int.from_bytes(content[:8], "little")  # u64 length, JSON header, data
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the data stay aligned
    return len(header).to_bytes(8, "little") + header + content[start:]


def load_direction(path: Path) -> Direction:
    """Read what `save_direction` wrote.

    Raises:
        ValueError: the file is no direction, or one of another layout; it is named, and what it lacks.
    """
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
        metadata = file.metadata() or {}
        names = sorted({key.rsplit("/", 1)[0] for key in keys})
        lacking = [key for name in names for field in FIELDS if (key := f"{name}/{field}") not in keys]
        if "direction" not in metadata or not names or lacking:
            missing = lacking[0] if lacking else "the record `direction` in its metadata"
            raise ValueError(f"{path} is not a direction as this version writes it: {missing} is missing")
        about = json.loads(metadata["direction"])
        modules = {
            name: ModuleDirection(**{field: file.get_tensor(f"{name}/{field}") for field in FIELDS}) for name in names
        }
    options = ExtractionOptions(**about["options"]) if about.get("options") else None
    return Direction(**{key: about[key] for key in ABOUT}, modules=modules, options=options)
