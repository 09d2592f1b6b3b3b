"""The two exact forward modes of an adapted layer, and its gradient in delta space: pure functions on tensors.

    folded:    y = x W'^T + b                                    W' = W + U diag(delta) Vh, made once per step
    factored:  y = x W^T + ((x Vh^T) * delta) U^T + b            nothing made, U and Vh applied to each token

dL/d delta = diag(U^T (dL/dW') Vh^T) is a sum over tokens and has two forms of equal value:

    dense:     G = gy^T x,  rowsum((U^T G) * Vh)                 T d_out d_in + r d_out d_in multiplications
    tokenwise: sum over tokens of (x Vh^T) * (gy U)              T r (d_in + d_out), a gradient per row for free

Shapes: x (rows, ..., d_in), gy = dL/dy (rows, ..., d_out), T tokens in all; W (d_out, d_in), U (d_out, r),
Vh (r, d_in).
The backward passes compute what is asked for and nothing else; neither can be differentiated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Mode = Literal["auto", "folded", "factored"]
Spans = Sequence[tuple[int, int]]  # rows from start up to stop

# Up to this share of W's multiplications, U and Vh are cheap enough to save the copy of W that folding needs.
THIN = 0.25


@dataclass(frozen=True)
class Shape:
    """What the cost of a layer depends on; costs below are in multiplications per T d_out d_in."""

    d_out: int
    d_in: int
    rank: int

    @property
    def rotation(self) -> float:
        """Applying U and Vh to every token once: 2 for a square matrix of full rank."""
        return self.rank * (self.d_out + self.d_in) / (self.d_out * self.d_in)

    def dense_is_cheaper(self, tokens: int) -> bool:
        """Which form of the gradient takes fewer multiplications."""
        return 1 + self.rank / tokens < self.rotation

    def mode(self, wanted: Mode, tokens: int, training: bool) -> Mode:
        """The forward mode of one call. "auto" takes the cheaper one, and "factored" where U and Vh are thin.

        A call for which no gradient is wanted counts as one of many on the same W': generation reads W' at every
        token. So "auto" gives such a call the folded weight unless the factors are thin.
        """
        if wanted != "auto":
            return wanted
        if self.rotation <= THIN:
            return "factored"
        folding = self.rank / max(tokens, 1)  # of W, once per step; the dense gradient pays it again
        gradient = min(1 + folding, self.rotation)
        return "factored" if training and 2 * self.rotation < folding + gradient else "folded"


class Reader(Protocol):
    """Takes the gradients of one call of one layer, as its backward pass makes them."""

    rollouts: bool
    spans: Sequence[Spans]  # per source, the rows that belong to it; empty: sources are not asked for

    def put_rows(self, gradients: Tensor) -> None:
        """(rows, r): the gradient of each row."""

    def put_sources(self, gradients: Tensor) -> None:
        """(sources, r): the gradient of each source."""


class FactorStore(Protocol):
    """Where U and Vh live; brings them to a device."""

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """U (d_out, r) and Vh (r, d_in)."""


# ---------------------------------------------------------------- the gradient


def _wide(first: torch.dtype, second: torch.dtype) -> torch.dtype:
    """At least float32: half precision holds factors of a product, not its sum."""
    return torch.promote_types(torch.promote_types(first, second), torch.float32)


def tokenwise_rows(h: Tensor, t: Tensor) -> Tensor:
    """Gradient per row (rows, r) from h = x Vh^T and t = gy U, both (rows, ..., r)."""
    product = h.to(_wide(h.dtype, t.dtype)) * t
    return product.flatten(1, -2).sum(1) if product.dim() > 2 else product


def dense_gradient(x: Tensor, gy: Tensor, U: Tensor, Vh: Tensor, spans: Spans) -> Tensor:
    """(r,) of the rows in `spans`. G (d_out, d_in) lives only here."""
    d_out, d_in = gy.shape[-1], x.shape[-1]
    G: Tensor | None = None
    for start, stop in spans:
        gy_span, x_span = gy[start:stop].reshape(-1, d_out), x[start:stop].reshape(-1, d_in)
        G = gy_span.T @ x_span if G is None else G.addmm_(gy_span.T, x_span)
    if G is None:
        return x.new_zeros(Vh.shape[0], dtype=_wide(x.dtype, U.dtype))
    dtype = torch.promote_types(G.dtype, U.dtype)
    rotated = U.to(dtype).T @ G.to(dtype)  # (r, d_in)
    return (rotated * Vh).sum(1, dtype=_wide(dtype, dtype))


def tokenwise_gradient(x: Tensor, gy: Tensor, U: Tensor, Vh: Tensor) -> Tensor:
    """Gradient per row (rows, r)."""
    dtype = x.dtype  # the tokens are many, the factors are cast to them
    return tokenwise_rows(x @ Vh.T.to(dtype), gy @ U.to(dtype))


def _sum_sources(rows: Tensor, sources: Sequence[Spans]) -> Tensor:
    """(sources, r) from (rows, r)."""
    sums = rows.new_zeros(len(sources), rows.shape[1])
    for source, spans in enumerate(sources):
        for start, stop in spans:
            sums[source] += rows[start:stop].sum(0)
    return sums


def delta_gradient(x: Tensor, gy: Tensor, U: Tensor, Vh: Tensor, reader: Reader | None) -> Tensor:
    """dL/d delta (r,); what `reader` asks for is made on the way and adds up to it."""
    shape = Shape(gy.shape[-1], x.shape[-1], Vh.shape[0])
    tokens_per_row = x.shape[:-1].numel() // max(x.shape[0], 1)
    if reader is not None and reader.rollouts:
        rows = tokenwise_gradient(x, gy, U, Vh)
        return _hand_over(rows, reader)
    sources: Sequence[Spans] = reader.spans if reader is not None and reader.spans else [[(0, x.shape[0])]]
    parts = []
    for spans in sources:
        tokens = tokens_per_row * sum(stop - start for start, stop in spans)
        if tokens == 0 or shape.dense_is_cheaper(tokens):
            parts.append(dense_gradient(x, gy, U, Vh, spans))
        else:
            pieces = [tokenwise_gradient(x[start:stop], gy[start:stop], U, Vh) for start, stop in spans]
            parts.append(torch.cat(pieces).sum(0))
    gradients = torch.stack(parts)
    if reader is not None and reader.spans:
        reader.put_sources(gradients)
    return gradients.sum(0)


def _hand_over(rows: Tensor, reader: Reader) -> Tensor:
    """Give `reader` what it asks for of (rows, r); returns their sum (r,)."""
    if reader.rollouts:
        reader.put_rows(rows)
    if reader.spans:
        reader.put_sources(_sum_sources(rows, reader.spans))
    return rows.sum(0)


# ---------------------------------------------------------------- the modes


class _Folded(torch.autograd.Function):
    """y = x W'^T + b. Saves x, and W' which lives anyway."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, factors: FactorStore, reader: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight if ctx.needs_input_grad[0] else None)
        ctx.factors, ctx.reader, ctx.dtype = factors, reader, delta.dtype
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, _, _, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(gy.device.type, enabled=False):  # on, if backward is called inside it
            gx = gy @ weight if needs_x else None
            U, Vh = ctx.factors.on(x.device)
            g_delta = delta_gradient(x, gy, U, Vh, ctx.reader).to(ctx.dtype)
        return gx, g_delta, None, gy.flatten(0, -2).sum(0) if needs_bias else None, None, None


def folded(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, factors: FactorStore, reader: Reader | None
) -> Tensor:
    """The folded mode as part of the autograd graph of `x` and `delta`; `weight` is W'."""
    return _Folded.apply(x, delta, weight, bias, factors, reader)


def _add_rotated(y: Tensor, h: Tensor, delta: Tensor, factor: Tensor) -> Tensor:
    """y + (h * delta) factor^T, into y; y (..., d), h (..., r), factor (d, r)."""
    flat = y.view(-1, y.shape[-1])
    flat.addmm_((h * delta.to(h.dtype)).view(-1, h.shape[-1]), factor.T)
    return y


class _Factored(torch.autograd.Function):
    """y = x W^T + ((x Vh^T) * delta) U^T + b. Saves h = x Vh^T, not x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, factors: FactorStore, reader: Any
    ) -> Tensor:
        U, Vh = (factor.to(x.dtype) for factor in factors.on(x.device))
        h = x @ Vh.T
        ctx.save_for_backward(h, delta, weight if ctx.needs_input_grad[0] else None)
        ctx.factors, ctx.reader = factors, reader
        return _add_rotated(F.linear(x, weight, bias), h, delta, U)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        h, delta, weight = ctx.saved_tensors
        U, Vh = (factor.to(gy.dtype) for factor in ctx.factors.on(gy.device))
        needs_x, _, _, needs_bias, *_ = ctx.needs_input_grad
        with torch.autocast(gy.device.type, enabled=False):
            t = gy @ U
            gx = _add_rotated(gy @ weight, t, delta, Vh.T) if needs_x else None
            rows = tokenwise_rows(h, t)
            g_delta = (rows.sum(0) if ctx.reader is None else _hand_over(rows, ctx.reader)).to(delta.dtype)
        return gx, g_delta, None, gy.flatten(0, -2).sum(0) if needs_bias else None, None, None


def factored(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, factors: FactorStore, reader: Reader | None
) -> Tensor:
    """The factored mode; `weight` is W."""
    return _Factored.apply(x, delta, weight, bias, factors, reader)
