"""Was what a projection removed all there was? A linear probe on per-rollout gradients, before and after.

A direction can be orthogonal to every gradient and hacking still be readable from what is left. So a probe is trained
to tell hacked rollouts from others by their gradients, and judged by AUROC on rollouts that it has not seen: .5 is
chance. Beside the projection stands LEACE, which removes all that a linear probe can read on the rollouts that it is
fitted to: what an erasure with these rollouts' labels at hand would have left on others. Fitted to fewer rollouts
than a few times their coordinates it erases those rollouts rather than the concept; pool steps before reading it.

Gradients have far more coordinates than there are rollouts, so everything is done through the matrix of their inner
products, (n, n): the probe is a ridge regression in its dual form, whatever the size of the model.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from projected_grpo.directions.algebra import Bases, Gate, Vectors, erase_all

RIDGE = 0.1  # of the mean inner product of a row with itself
FEWEST = 4  # rollouts of either kind in each third: under that an AUROC is noise


@dataclasses.dataclass(frozen=True)
class ProbeReading:
    """AUROC on held-out rollouts; -1 each where there are too few rollouts of one kind to tell.

    before: raw gradients. after: projected ones. leace: raw ones, erased by LEACE. n: rollouts it is judged on.
    """

    before: float
    after: float
    leace: float
    n: int


def probe_rows(
    rows: Vectors,
    hacked: Tensor,
    bases: Bases,
    gate: Gate,
    overshoot: float = 1.0,
    seed: int = 0,
    advantages: Tensor | None = None,
) -> ProbeReading:
    """Read one batch: rows (n, r) per module, one gradient per rollout; hacked (n,), 0 or 1; advantages (n,).

    A rollout's gradient is its advantage times that of its own log-probability, and hacks are what is rewarded: the
    sign alone would tell them. So rows are projected as they are and then divided by their advantage's sign, if given,
    and by the length that they had (all modules together): a probe reads where the answer itself points, not how it
    was rewarded. Rollouts without a gradient are left out. Of three random thirds, alike in both kinds,
    LEACE is fitted to the first, the probe trained on the second and judged on the third.
    """
    before = inner_products(rows)
    alive = before.diagonal() > 0
    after = inner_products(erase_all(rows, bases, gate, overshoot))
    scale = before.diagonal().clamp_min(torch.finfo(before.dtype).tiny).rsqrt()  # the same for both
    if advantages is not None:
        scale = scale * advantages.to(scale).sign()
    labels = hacked.to(before)
    fit, train, test = _thirds(labels, alive, seed)
    if any(int((labels[part] == kind).sum()) < FEWEST for part in (fit, train, test) for kind in (0, 1)):
        return ProbeReading(-1.0, -1.0, -1.0, len(test))

    def read(products: Tensor, erased: bool = False) -> float:
        products = products * scale[:, None] * scale
        products = leace(products, labels, fit) if erased else products
        return auroc(ridge_scores(products, labels, train, test), labels[test])

    return ProbeReading(read(before), read(after), read(before, erased=True), len(test))


def inner_products(rows: Vectors) -> Tensor:
    """<g_i, g_j> over all modules, (n, n), double precision."""
    return torch.stack([(row.double() @ row.double().T) for row in rows.values()]).sum(0)


def _thirds(labels: Tensor, alive: Tensor, seed: int) -> tuple[Tensor, ...]:
    """Indices of three parts, each with a third of either kind."""
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], [], []]
    for kind in (0, 1):
        members = ((labels == kind) & alive).nonzero().flatten().cpu()
        members = members[torch.randperm(len(members), generator=generator)]
        for part, chosen in zip(parts, members.tensor_split(3), strict=True):
            part.append(chosen)
    return tuple(torch.cat(part).to(labels.device) for part in parts)


def ridge_scores(products: Tensor, labels: Tensor, train: Tensor, test: Tensor) -> Tensor:
    """Scores (test,) of the ridge regression of the labels on the training rows, in the dual:
    w = X^T (X X^T + c I)^-1 y with X centred by the training mean."""
    centred = _centred(products, train)
    kernel = centred[train][:, train]
    target = labels[train] - labels[train].mean()
    ridge = RIDGE * kernel.diagonal().mean().clamp_min(torch.finfo(kernel.dtype).tiny)
    weights = torch.linalg.solve(kernel + ridge * torch.eye(len(train)).to(kernel), target)
    return centred[test][:, train] @ weights


def _centred(products: Tensor, train: Tensor) -> Tensor:
    """Inner products of rows less the mean of the training rows."""
    mean = products[:, train].mean(1)
    return products - mean[:, None] - mean + products[train][:, train].mean()


def leace(products: Tensor, labels: Tensor, train: Tensor) -> Tensor:
    """Inner products after LEACE (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3), fitted to the training rows.

    For one binary label: x' = x - s (s^T S^+ (x - mean)) / (s^T S^+ s), with S the covariance of the rows and s their
    covariance with the label. In the dual, x - mean = sum_j over training rows, s = X^T y: all that is needed of x
    are its products with them. S^+ keeps what carries a share of the energy above rounding.
    """
    centred = _centred(products, train)
    kernel = centred[train][:, train]  # X X^T; eigenvectors Q and values e give S^+ = X^T Q e^-2 Q^T X
    y = labels[train] - labels[train].mean()
    values, vectors = torch.linalg.eigh(kernel)
    inverse = torch.where(values > 1e-10 * values[-1], values.clamp_min(1e-300).reciprocal(), torch.zeros_like(values))
    along_s = centred[:, train] @ y  # <x - mean, s>
    whitened = centred[:, train] @ (vectors @ (inverse * (vectors.T @ y)))  # s^T S^+ (x - mean)
    coefficient = whitened / (y @ (vectors @ ((inverse > 0) * (vectors.T @ y))))  # / s^T S^+ s
    length = y @ kernel @ y  # <s, s>
    crossed = torch.outer(coefficient, along_s)
    return centred - crossed - crossed.T + length * torch.outer(coefficient, coefficient)


def auroc(scores: Tensor, labels: Tensor) -> float:
    """P(score of a positive > score of a negative), ties counting half: (n,), (n,) of 0 and 1."""
    positive, negative = scores[labels == 1], scores[labels == 0]
    difference = positive[:, None] - negative
    return float(((difference > 0).double() + 0.5 * (difference == 0).double()).mean())
