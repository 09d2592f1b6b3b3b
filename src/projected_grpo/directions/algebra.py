"""Projection of gradients in the SVD basis: pure functions on tensors, no model.

Shapes: per adapted module a gradient g of shape (r,) and a basis V of shape (k, r) with orthonormal rows; k may
differ from module to module, and may be 0. Wherever a module's gradient is taken, rows (n, r) of gradients are too:
by source, or by rollout.
Sign: +V is the *gradient* of an update that rewards hacking, so a descent step along a gradient with V g > 0 makes
hacking likelier, and removing the positive part of V g stops exactly that.
Not promised: bit-equal results for other groupings of modules; equal shapes are computed together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

Gate = Literal["one_sided", "both_sides", "reverse"]
Vectors = Mapping[str, Tensor]  # module -> (r,), or (n, r) where rows are allowed
Bases = Mapping[str, Tensor]  # module -> (k, r), rows orthonormal


class Frames(Mapping[str, Tensor]):
    """Bases by module, with those of equal shape stacked once: a step then costs a few products, not a few hundred.

    `stacks` holds (modules, V (modules, k, r)); a basis got by name is a view of its stack.
    """

    def __init__(self, bases: Bases) -> None:
        alike: dict[tuple[object, ...], list[str]] = {}
        for module, basis in sorted(bases.items()):  # so that sums over modules do not depend on the order of `bases`
            alike.setdefault((basis.shape, basis.dtype, basis.device), []).append(module)
        self.stacks = [(tuple(names), torch.stack([bases[name] for name in names])) for names in alike.values()]
        views = {name: view for names, stack in self.stacks for name, view in zip(names, stack, strict=True)}
        self._views = {module: views[module] for module in bases}

    def __getitem__(self, module: str) -> Tensor:
        return self._views[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def on(self, device: torch.device) -> Frames:
        """The same bases on a device: itself if they are there."""
        if all(stack.device == device for _, stack in self.stacks):
            return self
        return Frames({module: basis.to(device) for module, basis in self.items()})


def beside(bases: Bases, vectors: Vectors) -> Frames:
    """The bases as frames on the vectors' device."""
    frames = bases if isinstance(bases, Frames) else Frames(bases)
    return frames.on(next(iter(vectors.values())).device)


def _stacked(vectors: Vectors, bases: Bases) -> Iterator[tuple[tuple[str, ...], Tensor, Tensor]]:
    """(modules, rows (modules, n, r), V (modules, k, r)) per group of bases of equal shape; n is 1 for vectors.

    Raises:
        KeyError: a module has no basis. It may have an empty one; a skipped module is never silent.
    """
    ready = isinstance(bases, Frames) and bases.keys() == vectors.keys()
    frames = bases if ready else Frames({module: bases[module] for module in vectors})
    assert isinstance(frames, Frames)
    for names, stack in frames.stacks:
        rows = torch.stack([vectors[name] for name in names]).to(stack.dtype)
        yield names, rows.unsqueeze(1) if rows.dim() == 2 else rows, stack


def hackward_coefficients(gradient: Tensor, basis: Tensor, gate: Gate) -> Tensor:
    """Coefficients (..., k) that the gate takes out of `gradient` (..., r) along `basis` (..., k, r).

    one_sided: relu(V g), only what points hack-ward. both_sides: V g, the whole component.
    reverse: 2 relu(V g), the hack-ward part is reflected.

    Raises:
        ValueError: there is no such gate.
    """
    coefficients = gradient @ basis.mT
    if gate == "both_sides":
        return coefficients
    if gate == "one_sided":
        return coefficients.clamp_min(0)
    if gate == "reverse":
        return coefficients.clamp_min(0) * 2
    raise ValueError(f"there is no gate {gate!r}")


def erase(
    gradient: Tensor, basis: Tensor, gate: Gate, overshoot: float = 1.0, preserve_magnitude: bool = False
) -> Tensor:
    """g - overshoot V^T c with c from `hackward_coefficients`; shape of `gradient`, (..., r).

    overshoot 1 removes, 1.1 leaves a tenth of it pointing the other way, 2 reflects. preserve_magnitude scales what
    is left to the length that g had; rounding's remainder of a gradient that lies in the span is nothing, and stays so.
    """
    left = gradient - overshoot * (hackward_coefficients(gradient, basis, gate) @ basis)
    if not preserve_magnitude:
        return left
    length, before = left.norm(dim=-1, keepdim=True), gradient.norm(dim=-1, keepdim=True)
    something = length > 100 * torch.finfo(gradient.dtype).eps * before
    return left * torch.where(something, before / length, torch.zeros_like(length))


def keep(gradient: Tensor, basis: Tensor) -> Tensor:
    """V^T V g: only what lies in the span, the mirror image of `erase` for a basis of trusted updates; (..., r)."""
    return gradient @ basis.mT @ basis


def erase_all(
    gradients: Vectors, bases: Bases, gate: Gate, overshoot: float = 1.0, preserve_magnitude: bool = False
) -> dict[str, Tensor]:
    """`erase` for every module, rows or vectors. Raises KeyError if a module has no basis."""
    erased: dict[str, Tensor] = {}
    for names, rows, stack in _stacked(gradients, bases):
        erased |= zip(names, erase(rows, stack, gate, overshoot, preserve_magnitude), strict=True)
    return {module: erased[module].view_as(g).to(g.dtype) for module, g in gradients.items()}


def keep_all(gradients: Vectors, bases: Bases) -> dict[str, Tensor]:
    """`keep` for every module, rows or vectors. Raises KeyError if a module has no basis."""
    kept: dict[str, Tensor] = {}
    for names, rows, stack in _stacked(gradients, bases):
        kept |= zip(names, keep(rows, stack), strict=True)
    return {module: kept[module].view_as(g).to(g.dtype) for module, g in gradients.items()}


# ---------------------------------------------------------------- readings; one number leaves the device at a time


def _flat(vectors: Vectors) -> Tensor:
    """All modules end to end, (sum r,); in double precision, so that the order of summation does not show."""
    return torch.cat([vector.detach().flatten() for vector in vectors.values()]).double()


def _row_norms(rows: Vectors) -> Tensor:
    """Euclidean norm (n,) of each row over all modules together."""
    return torch.stack([vector.double().square().sum(-1) for vector in rows.values()]).sum(0).sqrt()


def _taken(vectors: Vectors, bases: Bases, gate: Gate) -> Tensor:
    """Euclidean norm (n,) over all modules of what the gate takes out of each row: that of its coefficients."""
    squares = [
        hackward_coefficients(rows, stack, gate).double().square().sum((0, 2))
        for _, rows, stack in _stacked(vectors, bases)
    ]
    return torch.stack(squares).sum(0).sqrt()


def total_norm(vectors: Vectors) -> float:
    """Euclidean norm over all modules together."""
    return float(_flat(vectors).norm()) if vectors else 0.0


def alignment_rows(rows: Vectors, bases: Bases) -> Tensor:
    """||relu(V g_i)|| / ||g_i|| over all modules, (n,), for rows (n, r) per module: by rollout or by source."""
    norms = _row_norms(rows)
    return torch.where(norms > 0, _taken(rows, bases, "one_sided") / norms, torch.zeros_like(norms))


def alignment(vectors: Vectors, bases: Bases) -> float:
    """||relu(V g)|| / ||g|| over all modules: the share of a gradient that points hack-ward, in [0, 1]."""
    norm = total_norm(vectors)
    return float(_taken(vectors, bases, "one_sided")) / norm if norm > 0 else 0.0


def alignment_null(bases: Bases) -> float:
    """What `alignment` is for an isotropic gradient: sqrt(sum k / (2 sum r)), each relu keeping half the energy."""
    axes = sum(basis.shape[0] for basis in bases.values())
    dimensions = sum(basis.shape[1] for basis in bases.values())
    return math.sqrt(axes / (2 * dimensions))


def alignment_deviation(bases: Bases) -> float:
    """Standard deviation of `alignment` for an isotropic gradient: sqrt(5 / 8r - k / 4r^2), k and r summed over all.

    With X what the gate keeps of the squared length G, sums over axes of standard normal z: var X = 5k/4, as relu(z)^2
    has the moments 1/2 and 3/2; var G = 2r; their covariance is k. To first order X / G has the variance
    (5k/4 - k^2 / 2r) / r^2, and its root that over 4 X / G, with k / 2r for X / G.
    """
    axes = sum(basis.shape[0] for basis in bases.values())
    dimensions = sum(basis.shape[1] for basis in bases.values())
    return math.sqrt(5 / (8 * dimensions) - axes / (4 * dimensions**2))


def cosine_rows(rows: Vectors, direction: Vectors) -> Tensor:
    """Cosine (n,) over all modules between each row (n, r) and one direction (r,) per module."""
    products = torch.stack([rows[m].double() @ direction[m].double() for m in rows]).sum(0)
    norms = _row_norms(rows) * total_norm({module: direction[module] for module in rows})
    return torch.where(norms > 0, products / norms, torch.zeros_like(norms))


def cosine(left: Vectors, right: Vectors) -> float:
    """Cosine between two sets of vectors over all modules of `left`."""
    a, b = _flat(left), _flat({module: right[module] for module in left})
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms > 0 else 0.0


def removed_share(before: Vectors, after: Vectors) -> float:
    """||g - g'|| / ||g||: how much of the gradient an intervention took away or added."""
    norm = total_norm(before)
    difference = _flat(before) - _flat({module: after[module] for module in before})
    return float(difference.norm()) / norm if norm > 0 else 0.0


def modules_touched(before: Vectors, after: Vectors) -> int:
    """Modules whose gradient is not the same as before, bit for bit."""
    return int(torch.stack([(vector != after[module]).any() for module, vector in before.items()]).sum())


def matched_overshoot(gradients: Vectors, bases: Bases, reference: Bases, gate: Gate) -> float:
    """The overshoot at which `bases` take as much out of this gradient as `reference` would (norm over all modules).

    What makes a control of equal rank one of equal energy, too. 1 where `bases` take nothing.
    """
    own = float(_taken(gradients, bases, gate))
    return float(_taken(gradients, reference, gate)) / own if own > 0 else 1.0


# ---------------------------------------------------------------- frames


def basis_overlap(old: Bases, new: Bases) -> float:
    """Mean squared cosine of the principal angles between two spans, over all modules; 1 the same, 0 orthogonal.

    ||V_old V_new^T||_F^2 / min(k_old, k_new) is that mean in one module (Bjorck and Golub 1973); modules count by
    min(k_old, k_new). Two random spans have k / r. 1 if no module has axes on both sides.
    """
    # Summed exactly: a resumed run has its modules in another order.
    shared = math.fsum(float(shared_energy(basis, new[module])) for module, basis in old.items())
    angles = sum(min(basis.shape[0], new[module].shape[0]) for module, basis in old.items())
    return shared / angles if angles else 1.0


def shared_energy(old: Tensor, new: Tensor) -> Tensor:
    """||V_old V_new^T||_F^2 in one module, (), where V_old is: a fresh V comes from the CPU."""
    return (old.double() @ new.to(old.device).double().mT).square().sum()


def haar_basis(k: int, r: int, generator: torch.Generator) -> Tensor:
    """k orthonormal rows in r dimensions, uniform over all such frames. Raises ValueError if k > r."""
    if k > r:
        raise ValueError(f"k={k} axes do not fit in r={r} dimensions")
    q, triangle = torch.linalg.qr(torch.randn(r, k, generator=generator, dtype=torch.float64))
    return (q * triangle.diagonal().sign()).T.float().contiguous()  # signs of R make QR's Q Haar-distributed
