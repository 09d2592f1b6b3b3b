"""One instrument for all arms: how much of a gradient points along the hack direction of the untrained base.

It reads the static extracted direction whatever the arm does, so that curves of different arms can be compared. A
control's own V, or a refreshed one, would be another ruler for every curve.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from projected_grpo.directions.algebra import (
    Frames,
    Vectors,
    alignment,
    alignment_null,
    alignment_rows,
    cosine,
    cosine_rows,
)
from projected_grpo.directions.store import Direction


@dataclasses.dataclass(frozen=True)
class Gauge:
    """bases: the first axes of the hack direction per module; means: the mean pair difference per module."""

    bases: Frames
    means: Vectors

    @classmethod
    def of(cls, direction: Direction, axes: int, device: torch.device | str = "cpu") -> Gauge:
        """Read with the first `axes` axes of `direction`, gradients on `device`."""
        means = {module: mean.to(device) for module, mean in direction.means().items()}
        return cls(Frames(direction.bases(axes)).on(torch.device(device)), means)

    def read(self, gradients: Vectors) -> dict[str, float]:
        """Signed cosine with the mean pair difference, unsigned share, and the share's null value."""
        return {
            "alignment_signed": cosine(gradients, self.means),
            "alignment": alignment(gradients, self.bases),
            "alignment_null": alignment_null(self.bases),
        }

    def read_rows(self, rows: Vectors) -> dict[str, Tensor]:
        """The same two readings of each row of (n, r) per module, (n,)."""
        return {"alignment_signed": cosine_rows(rows, self.means), "alignment": alignment_rows(rows, self.bases)}
