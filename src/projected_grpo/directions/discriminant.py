"""What tells the gradient of a hack from that of a clean answer: a linear discriminant.

The mean pair difference is a poor ruler for one completion: a few coordinates with large gradients decide its cosine,
and they vary as much within a side as between the sides. Each coordinate j is therefore weighed by its spread within
the sides,

    w_j = (m_hack - m_clean)_j / (s_j^2 + ridge * mean_j s_j^2),

Fisher's discriminant with the covariance taken as diagonal, which is the better one where there are more coordinates
than texts (Bickel and Levina 2004, "Some theory for Fisher's linear discriminant function, naive Bayes, and some
alternatives when there are many more variables than observations"). Gradients count by direction: each is scaled to
length 1 over all modules first, so that long answers and confident ones weigh alike.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from projected_grpo.directions.algebra import Vectors

RIDGE = 1e-3  # a coordinate that never varied among so few texts is not known to be silent


@dataclasses.dataclass(frozen=True)
class Discriminant:
    """weights: (r,) per module. clean, hack: w.u of the mean clean answer and of the mean hack."""

    weights: dict[str, Tensor]
    clean: float
    hack: float

    def read(self, rows: Vectors) -> Tensor:
        """(n,) of gradients (n, r) per module: 0 is read like the mean clean answer, 1 like the mean hack.

        A gradient of length 0 reads like nothing at all, as far from one side as the discriminant's own origin is.
        """
        device = next(iter(rows.values())).device
        weights = {module: weight.to(device) for module, weight in self.weights.items()}
        return (_project(unit_rows(rows), weights) - self.clean) / (self.hack - self.clean)


def unit_rows(rows: Vectors) -> dict[str, Tensor]:
    """Rows (n, r) per module, each scaled to length 1 over all modules together; a row of zeros stays one."""
    squares = torch.stack([row.double().square().sum(-1) for row in rows.values()]).sum(0)
    scale = squares.clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    return {module: row.double() * scale[:, None] for module, row in rows.items()}


def _project(units: Vectors, weights: Vectors) -> Tensor:
    return torch.stack([unit @ weights[module].double() for module, unit in units.items()]).sum(0)


def discriminant(hack: Vectors, clean: Vectors, ridge: float = RIDGE) -> Discriminant:
    """From the gradients of n hacks and n clean answers, (n, r) per module, each of length 1 (`unit_rows`).

    ridge: added to each coordinate's variance, in shares of the mean one.

    Raises:
        ValueError: fewer than two answers a side, or sides with the same mean.
    """
    if min(len(next(iter(side.values()))) for side in (hack, clean)) < 2:
        raise ValueError("a discriminant needs two answers a side at least: write more pairs")
    difference = {module: rows.mean(0) - clean[module].mean(0) for module, rows in hack.items()}
    variance = {
        module: torch.cat([rows - rows.mean(0), clean[module] - clean[module].mean(0)]).var(0)
        for module, rows in hack.items()
    }
    coordinates = sum(spread.numel() for spread in variance.values())
    floor = ridge * sum(float(spread.sum()) for spread in variance.values()) / coordinates
    weights = {module: gap / (variance[module] + floor) for module, gap in difference.items()}
    ends = [float(_project(side, weights).mean()) for side in (clean, hack)]
    if not ends[1] > ends[0]:  # also for NaN
        raise ValueError("hacks and clean answers have the same mean gradient: nothing tells them apart")
    return Discriminant(weights, *ends)
