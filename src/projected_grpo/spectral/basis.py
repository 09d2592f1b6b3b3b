"""The frozen basis of an adapted matrix: its singular vectors, with a fixed sign, optionally kept on disk.

The decomposition runs in float64 on the CPU, so it depends on the bytes of the weight and not on the device.
Not promised: the same basis from another BLAS or thread count where singular values coincide. Processes that
must agree to the last bit share a cache directory.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from projected_grpo.storage import atomic_file

_CONVENTION = "svd-1"  # part of the cache key: a new sign rule or precision must not meet old files


class Basis(NamedTuple):
    """W ~ U diag(S) Vh: U (d_out, r) of orthonormal columns, S (r,) descending, Vh (r, d_in) of such rows."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd_basis(weight: Tensor, rank: int | None = None, cache: str | Path | None = None) -> Basis:
    """The `rank` largest singular triplets of `weight` (d_out, d_in), all min(d_out, d_in) of them for None.

    float32 on the CPU, whatever the weight's dtype and device. The largest entry of each column of U is
    positive. `cache` is a directory for results, keyed by the content of the weight and the rank.

    Raises:
        ValueError: `weight` is not a finite, floating-point matrix, or `rank` is not positive.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"an SVD needs a floating-point matrix, got {weight.dtype} {tuple(weight.shape)}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None for the full rank; got {rank}")
    r = min(*weight.shape, rank or max(weight.shape))
    if cache is None:
        return _decompose(weight, r)
    path = Path(cache) / f"{_fingerprint(weight)}-{r}.safetensors"
    if not path.exists():
        basis = _decompose(weight, r)
        with atomic_file(path) as temporary:
            save_file(basis._asdict(), temporary)
    return Basis(**load_file(path))


def _decompose(weight: Tensor, r: int) -> Basis:
    matrix = weight.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise ValueError(f"the weight {tuple(weight.shape)} has non-finite entries: it has no SVD")
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, s, vh = u[:, :r], s[:r], vh[:r]
    largest = u.gather(0, u.abs().argmax(0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0, -1.0, 1.0).to(u)
    return Basis((u * sign).float().contiguous(), s.float(), (sign[:, None] * vh).float().contiguous())


def _fingerprint(weight: Tensor) -> str:
    raw = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{_CONVENTION} {weight.dtype} {tuple(weight.shape)}\n".encode())
    digest.update(raw.data)
    return digest.hexdigest()
