"""Where the frozen factors of an adapted matrix live, and the plain W while W' takes its place.

    home None    beside the weight, on its device
    home "cpu"   in the host's memory (pinned where the weight is on a CUDA device)
    home "disk"  mapped from the files of the basis cache: pages come in when read, and can be dropped at any time

Away from the device, U and Vh of one matrix at a time visit it: once in each backward pass that uses the dense or the
tokenwise gradient, and once when W' is made. For a model of 4 billion parameters in bfloat16 that is 10 GB of transfer
per backward pass, and 18 GB (W as well) per optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from projected_grpo.spectral.basis import Basis, mapped_weight, svd_basis

Home = Literal["cpu", "disk"] | None


class Factors:
    """U (d_out, r), S (r,), Vh (r, d_in) of one matrix. S is float32 and stays with the weight."""

    def __init__(self, basis: Basis, home: Home = None, cache: str | Path | None = None) -> None:
        self.U, self.S, self.Vh = basis
        self.home = home
        self._cache = cache

    @classmethod
    def of(
        cls,
        weight: Tensor,
        rank: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        home: Home = None,
        cache: str | Path | None = None,
    ) -> Factors:
        """Of `weight` (d_out, d_in), from `cache` if they are there; `home` "disk" needs a cache."""
        basis = svd_basis(weight, rank, cache, dtype)
        if home is None:
            basis = Basis(*(factor.to(weight.device) for factor in basis))
        elif home == "cpu":
            basis = Basis(_resident(basis.U, weight), basis.S.to(weight.device), _resident(basis.Vh, weight))
        else:
            basis = Basis(basis.U, basis.S.to(weight.device), basis.Vh)
        return cls(basis, home, cache)

    def on(self, device: torch.device, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """U, or `rows` of it, and Vh on `device`."""
        return self.U[rows].to(device, non_blocking=True), self.Vh.to(device, non_blocking=True)

    def plain_copy(self, weight: Tensor) -> Tensor:
        """The bits of `weight` where the factors live."""
        if self.home == "disk":
            assert self._cache is not None
            return mapped_weight(weight, self._cache)
        return _resident(weight.detach().to("cpu", copy=True), weight)

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow a module that is cast or moved; factors with a home of their own stay as they are."""
        self.S = fn(self.S)
        if self.home is None:
            self.U, self.Vh = fn(self.U), fn(self.Vh)


def _resident(tensor: Tensor, weight: Tensor) -> Tensor:
    """In memory rather than mapped from a file; pinned if it will travel to a CUDA device."""
    return tensor.pin_memory() if weight.is_cuda else tensor.clone()
