"""Gradients in delta space beyond delta.grad: by source, by rollout; and the one way in which they reach the optimizer.

With no collector attached, `loss.backward()` fills delta.grad as for any PEFT method and nothing else is computed. A
collector listens to the layers' own backward pass (`kernels`), so gradient checkpointing, which runs forward passes
twice, changes nothing. All active adapters of a module receive the same gradient; that is what is collected, once.

Rows are positions in the first dimension of a layer's input: completions, in a transformer. A layer that mixes them
(routed experts) is refused where the number of rows differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from projected_grpo.spectral.kernels import Spans
from projected_grpo.spectral.layer import SpectralLayer
from projected_grpo.spectral.names import deltas_in_use, spectral_layers

Vectors = Mapping[str, Tensor]


@dataclass
class _Reader:
    """What one forward pass of one layer will have to say, and where it goes."""

    rollouts: bool
    spans: Sequence[Spans]
    rows: dict[int, Tensor]  # forward pass -> (batch, r); a module that is called twice in one adds up
    sources: list[Tensor]
    number: int

    def put_rows(self, gradients: Tensor) -> None:
        known = self.rows.get(self.number)
        self.rows[self.number] = gradients if known is None else known + gradients

    def put_sources(self, gradients: Tensor) -> None:
        self.sources.append(gradients)


@dataclass
class _Collected:
    """Of one module: rows by forward pass, and the sums by source of each backward pass."""

    rows: dict[int, Tensor] = field(default_factory=dict)
    sources: list[Tensor] = field(default_factory=list)


class _Attached:
    """Listens to layers while it is entered; an outer listener is deaf meanwhile."""

    def __init__(self, layers: Mapping[str, SpectralLayer], rollouts: bool) -> None:
        self.layers = dict(layers)
        self.rollouts = rollouts
        self.number = 0  # of the forward pass
        self.sources = 0  # how many
        self.batch: int | None = None  # rows of the announced batch
        self.spans: list[list[tuple[int, int]]] | None = None  # its rows, per source
        self.collected = {name: _Collected() for name in layers}
        self._names = {id(layer): name for name, layer in layers.items()}
        self._outer: list[Any] = []

    def __enter__(self) -> Any:
        self._outer = [layer.collector for layer in self.layers.values()]
        for layer in self.layers.values():
            layer.collector = self
        return self

    def __exit__(self, *_: object) -> None:
        for layer, outer in zip(self.layers.values(), self._outer, strict=True):
            layer.collector = outer

    def reader(self, layer: SpectralLayer, rows: int) -> _Reader:
        """See `layer.Collector`.

        Raises:
            ValueError: the layer sees another number of rows than was announced.
        """
        name = self._names[id(layer)]
        if self.batch is not None and rows != self.batch:
            raise ValueError(f"{name} got {rows} rows, the partition has {self.batch}: announce each batch with rows()")
        spans = self.spans
        if spans is None:
            spans = [[(0, rows)] if source == 0 else [] for source in range(self.sources)]
        collected = self.collected[name]
        return _Reader(self.rollouts, spans, collected.rows, collected.sources, self.number)


class RowGradients(_Attached):
    """The gradient of each row of a batch in delta space, from one backward pass.

        with RowGradients(spectral_layers(model)) as gradients:
            losses(model, batch).sum().backward()
        gradients.rows  # module -> (batch, r)

    `torch.autograd.grad` in place of `backward` does as well, if a delta is among its inputs.
    """

    def __init__(self, layers: Mapping[str, SpectralLayer]) -> None:
        super().__init__(layers, rollouts=True)

    @property
    def rows(self) -> dict[str, Tensor]:
        """Module -> (batch, r); modules that took part in the backward pass."""
        return {name: found.rows[0] for name, found in self.collected.items() if found.rows}


class GradientCollector(_Attached):
    """Gradients of a model by source and by rollout, over one or more backward passes.

        with GradientCollector(model, sources=2, rollouts=True) as collector:
            for batch in batches:
                collector.rows(batch.sources)   # which source each row of the coming forward pass belongs to
                loss(model, batch).backward()
            collector.by_source(), collector.by_rollout()
            collector.clear()                   # once per optimizer step, as zero_grad

    By source costs no matmul over tokens more; by rollout makes the tokenwise gradient instead of the dense one. With
    reentrant gradient checkpointing, run each backward pass before announcing the next batch.
    """

    def __init__(self, model: nn.Module, rollouts: bool = False, sources: int = 0) -> None:
        """Args:
        model: with a spectral adapter; wrapped (DDP) or not.
        rollouts: collect the gradient of every row.
        sources: how many sources there are; 0 collects none.
        """
        super().__init__(spectral_layers(model), rollouts)
        if type(sources) is not int or sources < 0:
            raise ValueError(f"sources must be a count, 0 for none; got {sources!r}")
        self.sources = sources
        self._root = model
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> GradientCollector:
        super().__enter__()
        self._handle = self._root.register_forward_pre_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        assert self._handle is not None
        self._handle.remove()

    def _count(self, *_: object) -> None:
        self.number += 1

    def rows(self, sources: Tensor | Sequence[int] | None) -> None:
        """Announce the rows of the coming forward passes: the source of each, (batch,), or None: all of source 0.

        Raises:
            ValueError: a source outside 0 .. sources - 1, or not one number per row.
        """
        if sources is None:
            self.batch = self.spans = None
            return
        values = torch.as_tensor(sources)
        if values.dim() != 1 or values.is_floating_point():
            raise ValueError(f"sources must be one integer per row, got {values.dtype} {tuple(values.shape)}")
        numbers = values.tolist()
        if bad := sorted({x for x in numbers if not 0 <= x < self.sources}):
            raise ValueError(f"sources must lie in 0 .. {self.sources - 1}; got {bad}")
        self.batch = len(numbers)
        self.spans = [_runs(numbers, source) for source in range(self.sources)]

    def by_source(self) -> dict[str, Tensor]:
        """Module -> (sources, r), summed over the backward passes since `clear`; they add up to delta.grad.

        Empty if sources are not collected.
        """
        if not self.sources:
            return {}
        return {
            name: torch.stack(found.sources).sum(0) if found.sources else self._zeros(name)
            for name, found in self.collected.items()
        }

    def by_rollout(self) -> dict[str, Tensor]:
        """Module -> (rollouts, r): the rows of all batches since `clear`, in order; they add up to delta.grad.

        Empty if rollouts are not collected.

        Raises:
            RuntimeError: modules saw different numbers of rows: their inputs are not rollouts.
        """
        if not self.rollouts:
            return {}
        rows = {
            name: torch.cat([found.rows[number] for number in sorted(found.rows)])
            for name, found in self.collected.items()
            if found.rows
        }
        counts = {len(found) for found in rows.values()}
        if len(counts) > 1:
            raise RuntimeError(f"modules saw {sorted(counts)} rows: some of them do not take one row per rollout")
        return rows

    def clear(self) -> None:
        """Forget what was collected."""
        for found in self.collected.values():
            found.rows.clear()
            found.sources.clear()

    def _zeros(self, name: str) -> Tensor:
        layer = self.layers[name]
        return torch.zeros(self.sources, layer.rank, device=layer.S.device)


def _runs(numbers: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """Neighbouring rows of one source, from start up to stop."""
    runs: list[tuple[int, int]] = []
    for row, number in enumerate(numbers):
        if number == wanted:
            if runs and runs[-1][1] == row:
                runs[-1] = (runs[-1][0], row + 1)
            else:
                runs.append((row, row + 1))
    return runs


# ---------------------------------------------------------------- from backward to the optimizer


@dataclass(frozen=True)
class Finalized:
    """Gradients of one optimizer step, by module. All but `by_rollout` are summed over ranks.

    Attributes:
        before: (r,) as they came.
        after: adapter -> module -> (r,) as the optimizer gets them, transformed and clipped.
        by_source: (sources, r), adding up to `before`; by_rollout: (rollouts, r) of this rank. Empty if not collected.
        norm_before: over all modules together. norm_after: over all modules and adapters, after the transform and
            before the clip.
        clip: what the transformed gradient was multiplied with; 1.0 if it was not clipped.
    """

    before: dict[str, Tensor]
    after: dict[str, dict[str, Tensor]]
    by_source: dict[str, Tensor]
    by_rollout: dict[str, Tensor]
    norm_before: float
    norm_after: float
    clip: float


def finalize_gradients(
    model: nn.Module,
    collector: GradientCollector | None = None,
    *,
    transform: Callable[[dict[str, Tensor]], Mapping[str, Vectors]] | None = None,
    max_norm: float | None = None,
    group: Any = None,
) -> Finalized:
    """Sum over ranks, transform (project, route), clip, and write delta.grad of every active adapter that is trained.

    Call it between the last backward pass of a step and the optimizer. Args:
        group: process group over which local gradients are summed. A model in DistributedDataParallel needs none: its
            gradients have been averaged already, and those by source are averaged likewise.
        transform: module -> (r,) to adapter -> module -> (r,); what it returns may be the same tensors. Without one
            every adapter gets the gradient as it is.
        max_norm: bound of the norm over all modules and adapters, applied last; None or 0: no bound.

    Raises:
        RuntimeError: a module got no gradient, it would train unprojected without a word.
        KeyError: `transform` left an adapter or a module out.
    """
    trained = {name: parameters for name, parameters in deltas_in_use(model).items() if parameters}
    missing = [name for name, parameters in trained.items() if any(p.grad is None for p in parameters.values())]
    if missing:
        raise RuntimeError(f"no gradient in {len(missing)} adapted modules, first {missing[0]}")
    before = {name: _one_of(parameters).detach().clone() for name, parameters in trained.items()}
    by_source = collector.by_source() if collector is not None else {}
    if isinstance(model, nn.parallel.DistributedDataParallel):
        _sum_over_ranks([by_source], model.process_group)
        by_source = {name: rows / dist.get_world_size(model.process_group) for name, rows in by_source.items()}
    elif group is not None:
        _sum_over_ranks([before, by_source], group)
    adapters = list(dict.fromkeys(adapter for parameters in trained.values() for adapter in parameters))
    given = dict.fromkeys(adapters, before) if transform is None else transform(before)
    after = {
        adapter: {name: given[adapter][name] for name, parameters in trained.items() if adapter in parameters}
        for adapter in adapters
    }
    norm = math.sqrt(math.fsum(total_norm(vectors) ** 2 for vectors in after.values()))
    clip = max_norm / norm if max_norm and norm > max_norm else 1.0
    if clip != 1.0:
        after = {adapter: {name: g * clip for name, g in vectors.items()} for adapter, vectors in after.items()}
    for name, parameters in trained.items():
        for adapter, parameter in parameters.items():
            parameter.grad = after[adapter][name].clone()
    rows = collector.by_rollout() if collector is not None else {}
    return Finalized(before, after, by_source, rows, total_norm(before), norm, clip)


def _one_of(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """The gradient of a module's first adapter: backward gives all of them the same."""
    gradient = next(iter(parameters.values())).grad
    assert gradient is not None, "checked by the caller"
    return gradient


def total_norm(vectors: Vectors) -> float:
    """Euclidean norm over all modules together, summed in float64."""
    squares = [vector.double().square().sum() for vector in vectors.values()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _sum_over_ranks(groups: Sequence[dict[str, Tensor]], process_group: Any) -> None:
    """In place, all modules in one message per set."""
    for vectors in groups:
        if not vectors:
            continue
        flat = torch.cat([vector.flatten() for vector in vectors.values()])
        dist.all_reduce(flat, group=process_group)
        parts = flat.split([vector.numel() for vector in vectors.values()])
        for (name, vector), part in zip(list(vectors.items()), parts, strict=True):
            vectors[name] = part.view_as(vector)
