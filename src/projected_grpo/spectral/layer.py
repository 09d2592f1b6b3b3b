"""A linear layer whose weight moves along its own singular directions.

    W' = W + U diag(delta) Vh,   y = x W'^T + b,   W (d_out, d_in), U (d_out, r), Vh (r, d_in), delta (r,)

delta is the sum over the active adapters; U and Vh are frozen and shared by all of them. W' is folded once
per optimizer step and serves every forward pass until the next, with or without gradients; a token costs
what it costs in the plain model. The gradient is dL/d delta = diag(U^T (dL/dW') Vh^T).
Not promised: a write to a delta through `.data`, with no optimizer step before the next forward pass, goes
unseen (autograd does not count it); write under `torch.no_grad()`, or call `forget()` afterwards.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from projected_grpo.spectral.basis import svd_basis

_optimizer_steps = 0


def _count_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused and 8-bit optimizers write parameters without raising their version counters, so steps are counted.
register_optimizer_step_post_hook(_count_step)


class _DeltaOfWeight(torch.autograd.Function):
    """Hands the folded weight on and sends its gradient to delta. Keeps U and Vh, which live anyway."""

    @staticmethod
    def forward(delta: Tensor, folded: Tensor, U: Tensor, Vh: Tensor) -> Tensor:  # noqa: ARG004
        return folded.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG004
        delta, _, U, Vh = inputs
        ctx.save_for_backward(U, Vh)
        ctx.dtype = delta.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        U, Vh = ctx.saved_tensors
        dtype = torch.promote_types(gradient.dtype, U.dtype)
        with torch.autocast(gradient.device.type, enabled=False):
            rotated = U.to(dtype).T @ gradient.to(dtype)  # (r, d_in)
        return (rotated * Vh).sum(1).to(ctx.dtype), None, None, None


@dataclass(frozen=True)
class _Folded:
    """A folded weight, and what it was folded from: W and the deltas, held so that no id is used twice."""

    weight: Tensor
    sources: tuple[Tensor, ...]
    state: tuple[object, ...]

    @staticmethod
    def state_of(sources: tuple[Tensor, ...]) -> tuple[object, ...]:
        return _optimizer_steps, *((id(x), x.data_ptr(), x._version) for x in sources)


def _total(deltas: tuple[Tensor, ...]) -> Tensor:
    return sum(deltas[1:], deltas[0])


class SpectralLayer(nn.Module, BaseTunerLayer):
    """One adapted module: its frozen basis U (d_out, r), S (r,), Vh (r, d_in); a delta (r,) per adapter."""

    adapter_layer_names = ("spectral_delta",)
    other_param_names = ()  # U, S, Vh stay out: PEFT would move and cast whatever is named here

    base_layer: nn.Linear
    active_adapters: list[str]
    U: Tensor
    S: Tensor
    Vh: Tensor
    plain_weight: Tensor | None  # W, while the base layer holds a merged weight

    def __init__(self, base_layer: nn.Linear, rank: int | None, basis_cache: str | None = None) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.spectral_delta = nn.ParameterDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        for name, factor in svd_basis(base_layer.weight, rank, basis_cache)._asdict().items():
            self.register_buffer(name, factor.to(base_layer.weight.device), persistent=False)
        self.register_buffer("plain_weight", None, persistent=False)
        self._folded: _Folded | None = None

    @property
    def rank(self) -> int:
        """r: entries of a delta."""
        return self.S.numel()

    @property
    def active_deltas(self) -> tuple[nn.Parameter, ...]:
        """Deltas that take part in the forward pass, in the order of activation."""
        return tuple(self.spectral_delta[x] for x in self.active_adapters if x in self.spectral_delta)

    def update_layer(self, adapter_name: str) -> None:
        """Add an adapter, at zero. Activating it is up to `set_adapter`."""
        self.spectral_delta[adapter_name] = nn.Parameter(torch.zeros_like(self.S))

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off. PEFT's own version unfreezes all active adapters on the way back."""
        self._disable_adapters = not enabled

    def forget(self) -> None:
        """Drop the folded weight; the next forward pass folds anew."""
        self._folded = None

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """U diag(delta) Vh of one adapter, (d_out, d_in), in the dtype of the factors."""
        return (self.U * self.spectral_delta[adapter_name]) @ self.Vh

    def base_weight(self) -> Tensor:
        """W (d_out, d_in), also while merged."""
        return self.base_layer.weight if self.plain_weight is None else self.plain_weight

    def fold(self, deltas: tuple[Tensor, ...]) -> Tensor:
        """W + U diag(sum of deltas) Vh (d_out, d_in) in the dtype of W, computed in the wider, detached."""
        weight = self.base_weight()
        dtype = torch.promote_types(weight.dtype, self.U.dtype)
        # A folded weight made while generating must still be usable in training, and autocast would round it.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            scaled = self.U.to(dtype) * _total(deltas).to(dtype)
            folded = torch.addmm(weight.to(dtype), scaled, self.Vh.to(dtype))
            return folded.to(weight.dtype)

    def folded_weight(self) -> Tensor:
        """W' of the active adapters, part of the autograd graph if one of their deltas is to be trained."""
        deltas = self.active_deltas
        if not deltas:
            return self.base_weight()
        sources = (self.base_weight(), *deltas)
        state = _Folded.state_of(sources)
        if self._folded is None or self._folded.state != state:
            self._folded = _Folded(self.fold(deltas), sources, state)
        weight = self._folded.weight
        if torch.is_grad_enabled() and any(delta.requires_grad for delta in deltas):
            return _DeltaOfWeight.apply(_total(deltas), weight, self.U, self.Vh)
        return weight

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put W' of the named adapters (default: the active ones) into the base layer, keeping W aside.

        Raises:
            ValueError: `safe_merge` and the result is not finite; nothing has changed then.
        """
        wanted = [x for x in check_adapters_to_merge(self, adapter_names) if x in self.spectral_delta]
        if not wanted:
            return
        merged = [*self.merged_adapters, *wanted]
        weight = self.fold(tuple(self.spectral_delta[x] for x in merged))
        if safe_merge and not torch.isfinite(weight).all():
            raise ValueError(f"merging {wanted} gives non-finite weights: the adapter is broken")
        self.plain_weight = self.base_weight().detach()
        self.base_layer.weight.data = weight
        self.merged_adapters = merged

    def unmerge(self) -> None:
        """Put W back, bit for bit."""
        if self.plain_weight is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.base_layer.weight.data = self.plain_weight
        self.plain_weight = None
        self.merged_adapters = []

    def _apply(self, fn: Any, recurse: bool = True) -> SpectralLayer:
        self.forget()  # or a model moved off a device leaves its folded weights there
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


class SpectralLinear(SpectralLayer):
    """An adapted `nn.Linear`. By "Linear" in the name, PEFT's "all-linear" finds it for a further adapter."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (..., d_out)."""
        if self._disable_adapters:
            weight = self.base_weight()
        elif self.merged_adapters:
            weight = self.base_layer.weight
        else:
            weight = self.folded_weight()
        return F.linear(x, weight, self.base_layer.bias)
