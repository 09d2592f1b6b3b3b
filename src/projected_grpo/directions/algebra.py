"""Projection of gradients in the SVD basis: pure functions on tensors, no model.

Shapes: per adapted module a gradient g of shape (r,) and a basis V of shape (k, r) with orthonormal rows.
Sign: +V is the *gradient* of an update that rewards hacking, so a descent step along a gradient with V g > 0 makes
hacking likelier, and removing the positive part of V g stops exactly that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Gate = Literal["one_sided", "both_sides", "reverse"]
Vectors = Mapping[str, Tensor]  # module -> (r,)
Bases = Mapping[str, Tensor]  # module -> (k, r), rows orthonormal


def hackward_coefficients(gradient: Tensor, basis: Tensor, gate: Gate) -> Tensor:
    """Coefficients (k,) that the gate takes out of `gradient` along `basis`.

    one_sided: relu(V g), only what points hack-ward. both_sides: V g, the whole component.
    reverse: 2 relu(V g), the hack-ward part is reflected.
    """
    coefficients = basis @ gradient
    if gate == "both_sides":
        return coefficients
    return coefficients.clamp_min(0) * (2 if gate == "reverse" else 1)


def erase(gradient: Tensor, basis: Tensor, gate: Gate) -> Tensor:
    """g - V^T c with c from `hackward_coefficients`; shape (r,)."""
    return gradient - basis.T @ hackward_coefficients(gradient, basis, gate)


def erase_all(gradients: Vectors, bases: Bases, gate: Gate) -> dict[str, Tensor]:
    """`erase` for every module. Raises KeyError if a module has no basis: a skipped module is never silent."""
    return {module: erase(gradient, bases[module], gate) for module, gradient in gradients.items()}


def total_norm(vectors: Vectors) -> float:
    """Euclidean norm over all modules together."""
    return math.sqrt(sum(float(vector.double().square().sum()) for vector in vectors.values()))


def alignment(vectors: Vectors, bases: Bases) -> float:
    """||relu(V g)|| / ||g|| over all modules: the share of a gradient that points hack-ward, in [0, 1]."""
    norm = total_norm(vectors)
    hackward = {module: (bases[module] @ vector).clamp_min(0) for module, vector in vectors.items()}
    return total_norm(hackward) / norm if norm > 0 else 0.0


def alignment_null(bases: Bases) -> float:
    """What `alignment` is for an isotropic gradient: sqrt(sum k / (2 sum r)), each relu keeping half the energy."""
    axes = sum(basis.shape[0] for basis in bases.values())
    dimensions = sum(basis.shape[1] for basis in bases.values())
    return math.sqrt(axes / (2 * dimensions))


def cosine(left: Vectors, right: Vectors) -> float:
    """Cosine between two sets of vectors over all modules of `left`."""
    product = sum(float(vector.double() @ right[module].double()) for module, vector in left.items())
    norms = total_norm(left) * total_norm({module: right[module] for module in left})
    return product / norms if norms > 0 else 0.0


def removed_share(before: Vectors, after: Vectors) -> float:
    """||g - g'|| / ||g||: how much of the gradient an intervention took away or added."""
    norm = total_norm(before)
    difference = {module: vector - after[module] for module, vector in before.items()}
    return total_norm(difference) / norm if norm > 0 else 0.0


def haar_basis(k: int, r: int, generator: torch.Generator) -> Tensor:
    """k orthonormal rows in r dimensions, uniform over all such frames. Raises ValueError if k > r."""
    if k > r:
        raise ValueError(f"k={k} axes do not fit in r={r} dimensions")
    q, triangle = torch.linalg.qr(torch.randn(r, k, generator=generator, dtype=torch.float64))
    return (q * triangle.diagonal().sign()).T.float().contiguous()  # signs of R make QR's Q Haar-distributed
