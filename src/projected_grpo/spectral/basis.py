"""The frozen basis of an adapted matrix: its singular vectors, with a fixed sign, optionally kept on disk.

The decomposition runs in float64 on the CPU, so it depends on the bytes of the weight and not on the device.
Not promised: the same basis from another BLAS or thread count where singular values coincide. Processes that
must agree to the last bit share a cache directory.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor

from projected_grpo.storage import atomic_file

_CONVENTION = "svd-1"  # part of the cache key: a new sign rule or precision must not meet old files


class Basis(NamedTuple):
    """W ~ U diag(S) Vh: U (d_out, r) of orthonormal columns, S (r,) descending, Vh (r, d_in) of such rows."""

    U: Tensor
    S: Tensor
    Vh: Tensor


def svd_basis(
    weight: Tensor, rank: int | None = None, cache: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> Basis:
    """The `rank` largest singular triplets of `weight` (d_out, d_in), all min(d_out, d_in) of them for None.

    On the CPU, whatever the weight's dtype and device: S in float32, U and Vh rounded to `dtype`. The largest entry of
    each column of U is positive. `cache` is a directory for results, keyed by the content of the weight, the rank and
    `dtype`; what comes from there is mapped from its file, not read.

    Raises:
        ValueError: `weight` is not a finite, floating-point matrix, or `rank` is not positive.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"an SVD needs a floating-point matrix, got {weight.dtype} {tuple(weight.shape)}")
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None for the full rank; got {rank}")
    r = min(*weight.shape, rank or max(weight.shape))
    if cache is None:
        return _decompose(weight, r, dtype)
    precision = "" if dtype == torch.float32 else f"-{str(dtype).removeprefix('torch.')}"
    path = Path(cache) / f"{_fingerprint(weight)}-{r}{precision}.safetensors"
    if not path.exists():
        basis = _decompose(weight, r, dtype)
        with atomic_file(path) as temporary:
            save_file(basis._asdict(), temporary)
    return Basis(**load_file(path))


def mapped_weight(weight: Tensor, cache: str | Path) -> Tensor:
    """The bits of `weight`, mapped from a file in `cache`, which is written if it is not there."""
    path = Path(cache) / f"{_fingerprint(weight)}-weight.safetensors"
    if not path.exists():
        with atomic_file(path) as temporary:
            save_file({"weight": weight.detach().cpu().contiguous()}, temporary)
    return load_file(path)["weight"]


@contextmanager
def svd_progress(total: int, after: float = 2.0) -> Iterator[Callable[[], None]]:
    """Yields what to call after each of `total` decompositions: a bar on stderr once they have taken `after` seconds.

    Nothing is printed for those that come from a cache in less.
    """
    started, done, shown = time.monotonic(), 0, False
    bar = Progress(
        TextColumn("singular values"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True),
    )  # fmt: skip
    task = bar.add_task("svd", total=total)

    def advance() -> None:
        nonlocal done, shown
        done += 1
        bar.update(task, completed=done)
        if not shown and done < total and time.monotonic() - started > after:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


def _decompose(weight: Tensor, r: int, dtype: torch.dtype) -> Basis:
    matrix = weight.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise ValueError(f"the weight {tuple(weight.shape)} has non-finite entries: it has no SVD")
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, s, vh = u[:, :r], s[:r], vh[:r]
    largest = u.gather(0, u.abs().argmax(0, keepdim=True)).squeeze(0)
    sign = torch.where(largest < 0, -1.0, 1.0).to(u)
    return Basis((u * sign).to(dtype).contiguous(), s.float(), (sign[:, None] * vh).to(dtype).contiguous())


def _fingerprint(weight: Tensor) -> str:
    raw = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{_CONVENTION} {weight.dtype} {tuple(weight.shape)}\n".encode())
    digest.update(raw.data)
    return digest.hexdigest()
