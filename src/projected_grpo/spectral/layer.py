"""A linear layer whose weight moves along its own singular directions.

    W' = W + U diag(delta) Vh,   y = x W'^T + b,   W (d_out, d_in), U (d_out, r), Vh (r, d_in), delta (r,)

delta is the sum over the active adapters; U and Vh are frozen and shared by all of them. Two exact ways to compute y,
and the gradient of delta: `kernels`. In the folded mode W' is made once per optimizer step and serves every forward
pass until the next, with or without gradients; a token costs what it costs in the plain model.

With factors that live elsewhere (`factors.Factors.home`), W' takes the place of W in the base layer, and W stays with
the factors, bit for bit. It comes back when something asks for the plain model: `disable_adapter`, `unmerge`, `unload`,
`state_dict`. Each such switch and the next folded pass cost a transfer of W and of the factors.

Where the base is dealt over processes (`training.sharding`), the base layer's weight is a DTensor of which a process
holds some rows. They are folded like a whole matrix, as row i of W' needs no other row of W and of U; `settle` does it
before a forward pass gathers the whole.

Not promised: a write to a delta through `.data`, with no optimizer step before the next forward pass, goes unseen
(autograd does not count it); write under `torch.no_grad()`, or call `forget()` afterwards. A write to the base layer's
weight while W' stands in its place is lost; `load_state_dict` is safe.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from projected_grpo.spectral import kernels
from projected_grpo.spectral.factors import Factors

_optimizer_steps = 0


def _count_step(*_: object) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused and 8-bit optimizers write parameters without raising their version counters, so steps are counted.
register_optimizer_step_post_hook(_count_step)


class Collector(Protocol):
    """Whoever wants gradients by row or by source from the backward passes of a layer."""

    def reader(self, layer: SpectralLayer, rows: int) -> kernels.Reader:
        """Called by each forward pass that is to be differentiated, with the length of its first dimension."""


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


def _restore(layer: SpectralLayer, *_: object) -> None:
    layer.restore()


class SpectralLayer(nn.Module, BaseTunerLayer):
    """One adapted module: its frozen basis U (d_out, r), S (r,), Vh (r, d_in); a delta (r,) per adapter."""

    adapter_layer_names = ("spectral_delta",)
    other_param_names = ()

    base_layer: nn.Linear
    active_adapters: list[str]
    collector: Collector | None = None  # set and taken away by `gradients`

    def __init__(self, base_layer: nn.Linear, factors: Factors, mode: kernels.Mode = "auto") -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.spectral_delta = nn.ParameterDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        # No buffers: DDP would send them to all ranks before each pass, and `.to()` would move what lives elsewhere.
        self.factors = factors
        self.mode: kernels.Mode = mode
        self.shape = kernels.Shape(self.out_features, self.in_features, factors.S.numel())
        self._folded: _Folded | None = None
        self._plain: Tensor | None = None  # W, while the base layer's weight holds another
        self._plain_copy: tuple[tuple[object, ...], Tensor] | None = None  # kept, so that W travels home only once
        self.register_state_dict_pre_hook(_restore)
        self.register_load_state_dict_pre_hook(_restore)

    # ------------------------------------------------------------ the basis and the deltas

    @property
    def U(self) -> Tensor:
        """(d_out, r), orthonormal columns, wherever it lives."""
        return self.factors.U

    @property
    def S(self) -> Tensor:
        """(r,), descending."""
        return self.factors.S

    @property
    def Vh(self) -> Tensor:
        """(r, d_in), orthonormal rows, wherever it lives."""
        return self.factors.Vh

    @property
    def rank(self) -> int:
        """r: entries of a delta."""
        return self.shape.rank

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

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter. PEFT's own version unfreezes those that stay active."""
        frozen = [delta for delta in self.active_deltas if not delta.requires_grad]
        super().delete_adapter(adapter_name)
        for delta in frozen:
            delta.requires_grad_(False)

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """U diag(delta) Vh of one adapter, (d_out, d_in), in the dtype of the factors."""
        delta = self.spectral_delta[adapter_name]
        U, Vh = self.factors.on(delta.device)
        return (U * delta) @ Vh

    # ------------------------------------------------------------ W and W'

    @property
    def in_place(self) -> bool:
        """Whether W' takes the place of W, because the factors live elsewhere."""
        return self.factors.home is not None

    def base_weight(self) -> Tensor:
        """W (d_out, d_in), on the device of the base layer; a W that was set aside elsewhere comes back for it."""
        if self.in_place and self._plain is not None:
            if self.merged_adapters:
                return self._plain.to(self.base_layer.weight.device)
            self.restore()
        return self.base_layer.weight if self._plain is None else self._plain

    def get_base_layer(self) -> nn.Module:
        """The plain layer: with W, or with the merged weight."""
        self.restore()
        return super().get_base_layer()

    def forget(self) -> None:
        """Drop the folded weight; the next forward pass folds anew."""
        self._folded = None

    def restore(self) -> None:
        """Put W back into the base layer, unless an adapter is merged: then W' is what belongs there."""
        if self._plain is None or self.merged_adapters:
            return
        self.forget()
        plain, self._plain = self._plain, None
        if not self.in_place:
            self.base_layer.weight.data = plain
            return
        with torch.inference_mode(False), torch.no_grad():
            self._held.copy_(plain)
        self._plain_copy = self._identity(), plain

    def _identity(self) -> tuple[object, ...]:
        held = self._held
        return id(self.base_layer.weight), held.data_ptr(), held._version

    @property
    def _held(self) -> Tensor:
        """What this process holds of the base layer's weight: all of it, or its rows."""
        weight = self.base_layer.weight
        with torch.no_grad():  # with gradients it would be a view of the rows, and a new one each time
            return weight.to_local() if isinstance(weight, DTensor) else weight

    @property
    def _rows(self) -> slice:
        """Which rows of W these are: dealt like `torch.chunk`, the last process may have fewer or none."""
        weight = self.base_layer.weight
        if not isinstance(weight, DTensor):
            return slice(None)
        share = -(-self.out_features // weight.device_mesh.size())
        start = min(weight.device_mesh.get_local_rank() * share, self.out_features)
        return slice(start, start + len(self._held))

    def settle(self) -> None:
        """Put into the rows that this process holds what the coming forward pass is to multiply by: W', or W."""
        deltas = self.active_deltas
        if self._disable_adapters or not deltas:
            self.restore()
        else:
            self._folded_in_place(deltas)

    def _set_aside(self) -> Tensor:
        """W where the factors live; from now on the base layer's weight may hold another."""
        if self._plain is None:
            if self._plain_copy is None or self._plain_copy[0] != self._identity():
                self._plain_copy = self._identity(), self.factors.plain_copy(self._held)
            self._plain = self._plain_copy[1]
        return self._plain

    def fold(self, deltas: tuple[Tensor, ...]) -> Tensor:
        """W + U diag(sum of deltas) Vh (d_out, d_in) in the dtype of W, computed in the wider, detached; of a sharded
        matrix the rows that are held."""
        held = self._held
        device = held.device
        weight = held if self._plain is None else self._plain.to(device, non_blocking=True)
        U, Vh = self.factors.on(device, self._rows)
        dtype = torch.promote_types(weight.dtype, U.dtype)
        # A folded weight made while generating must still be usable in training, and autocast would round it.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            scaled = (U * _total(deltas)).to(dtype)
            return torch.addmm(weight.to(dtype), scaled, Vh.to(dtype)).to(weight.dtype)

    def folded_weight(self) -> Tensor:
        """W' of the active adapters, detached; the deltas' gradient is the business of `kernels`.

        A graph that was made with the W' of an earlier step can no longer be differentiated: autograd refuses it.
        """
        deltas = self.active_deltas
        if not deltas:
            return self.base_weight()
        if self.in_place:
            return self._folded_in_place(deltas)
        sources = (self.base_layer.weight if self._plain is None else self._plain, *deltas)
        state = _Folded.state_of(sources)
        if self._folded is None or self._folded.state != state:
            self._folded = _Folded(self.fold(deltas), sources, state)
        return self._folded.weight

    def _folded_in_place(self, deltas: tuple[Tensor, ...]) -> Tensor:
        state = _Folded.state_of(deltas)
        if self._plain is None or self._folded is None or self._folded.state != state:
            self._put_in_place(deltas)
            self._folded = _Folded(self._held.detach(), deltas, state)
        return self.base_layer.weight.detach()  # of a sharded matrix the whole, as the forward pass has gathered it

    def _put_in_place(self, deltas: tuple[Tensor, ...]) -> None:
        self._set_aside()
        folded = self.fold(deltas)
        with torch.inference_mode(False), torch.no_grad():
            self._held.copy_(folded)

    # ------------------------------------------------------------ merging

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
        if self.in_place:
            self._set_aside()
            with torch.inference_mode(False), torch.no_grad():
                self._held.copy_(weight)
        else:
            self._plain = self.base_layer.weight.detach() if self._plain is None else self._plain
            self.base_layer.weight.data = weight
        self.forget()
        self.merged_adapters = merged

    def unmerge(self) -> None:
        """Put W back, bit for bit."""
        if not self.merged_adapters:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.merged_adapters = []
        self.restore()

    def _apply(self, fn: Any, recurse: bool = True) -> SpectralLayer:
        # Cast or moved: W itself, not what stands in its place; and no folded weight is left behind on a device.
        merged, self.merged_adapters = self.merged_adapters, []
        self.restore()
        self.forget()
        self._plain_copy = None
        super()._apply(fn, recurse)
        self.factors.apply(fn)
        if merged:
            self.merge(adapter_names=merged)
        return self

    def extra_repr(self) -> str:
        home = "" if self.factors.home is None else f", factors={self.factors.home}"
        return f"rank={self.rank}, mode={self.mode}{home}"


class SpectralLinear(SpectralLayer):
    """An adapted `nn.Linear`. By "Linear" in the name, PEFT's "all-linear" finds it for a further adapter."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d_in) -> (..., d_out)."""
        bias, deltas = self.base_layer.bias, self.active_deltas
        if self._disable_adapters or not (deltas or self.merged_adapters):
            return F.linear(x, self.base_weight(), bias)
        if self.merged_adapters:
            return F.linear(x, self.base_layer.weight, bias)
        training = torch.is_grad_enabled() and any(delta.requires_grad for delta in deltas)
        mode = self.shape.mode(self.mode, x.numel() // self.in_features, training)
        if mode == "folded" and not training:
            return F.linear(x, self.folded_weight(), bias)
        if x.dim() == 1:
            return self(x[None])[0]
        weight = self.folded_weight() if mode == "folded" else self.base_weight().detach()
        x, weight, offset = _as_autocast(x, weight, bias)
        reader = self.collector.reader(self, len(x)) if training and self.collector is not None else None
        form = kernels.folded if mode == "folded" else kernels.factored
        return form(x, _total(deltas), weight, offset, self.factors, reader)


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What `F.linear` would make of its arguments: the kernels' arithmetic is outside autocast's reach."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
