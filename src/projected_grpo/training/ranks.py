"""The processes of one run. Each samples, grades and differentiates its share of a step; rank 0 decides.

A step's rows lie in sampling order: rank r holds rows r n to (r + 1) n. Every rank gathers them all, so that an
intervention sees whole groups and the whole step wherever it runs. Where ranks might differ, by rounding or by a
monitor that answers twice, what rank 0 says holds for all. A run in one process is the case with nothing to send.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from projected_grpo.errors import LabError

T = TypeVar("T")

WANTED = "ACCELERATE_USE_FSDP"  # how `accelerate launch` hands on that its file says FSDP
SHARDED = "PROJECTED_GRPO_SHARDED"


def take_over_sharding() -> None:
    """Where the launcher's file says FSDP, the model is sharded here (`training.sharding`), and accelerate, which would
    deal the deltas too, is told of a model that is whole."""
    if os.environ.pop(WANTED, "false").lower() == "true":
        os.environ[SHARDED] = "true"


def process_count() -> int:
    """How many processes this run is spread over, as the launcher told each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_sharded() -> bool:
    """Whether they hold the base in parts; see `take_over_sharding`."""
    return SHARDED in os.environ and process_count() > 1


@dataclasses.dataclass(frozen=True)
class Ranks:
    """index: of this process, from 0. count: how many there are. All methods are called on every rank."""

    index: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """Those of the process group that is open; of one process if there is none."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def first(self) -> bool:
        """Rank 0: the one that writes, and whose word holds."""
        return self.index == 0

    def rows(self, share: int) -> range:
        """Which rows of the step are this rank's, of `share` on each."""
        return range(self.index * share, (self.index + 1) * share)

    def lists(self, share: Sequence[T]) -> list[T]:
        """The shares of all ranks, one after another."""
        if self.count == 1:
            return list(share)
        shares: list[Any] = [None] * self.count
        dist.all_gather_object(shares, list(share))
        return [item for part in shares for item in part]

    def gather(self, share: Tensor) -> Tensor:
        """(n, ...) of each rank to (count x n, ...), in the order of ranks."""
        if self.count == 1:
            return share
        shares = [torch.empty_like(share) for _ in range(self.count)]
        dist.all_gather(shares, share.contiguous())
        return torch.cat(shares)

    def agree(self, value: T) -> T:
        """What rank 0 passed."""
        if self.count == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def align(self, tensors: Sequence[Tensor]) -> None:
        """Write rank 0's values into every rank's tensors, in place; all of one dtype."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        dist.broadcast(flat, src=0)
        parts = flat.split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def require_same(self, name: str, value: object, fix: str) -> None:
        """Refuse to go on where a rank has another value than rank 0.

        Raises:
            LabError: on every rank.
        """
        for rank, other in enumerate(self.lists([value])):
            if other != self.agree(value):
                raise LabError(setting=f"{name} on rank {rank}", value=other, rule="must be rank 0's", fix=fix)

    def wait(self) -> None:
        """Until all ranks have come here."""
        if self.count > 1:
            dist.barrier()


ALONE = Ranks()
