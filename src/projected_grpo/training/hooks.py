"""Between backward and the optimizer, and right after it: the only two places where the update itself is touched.

The order inside Hugging Face's loop is clip -> log -> on_pre_optimizer_step -> optimizer -> on_optimizer_step; its own
clip is switched off, because a norm taken before the projection is not the norm of what is applied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from projected_grpo.directions.algebra import Vectors, alignment, removed_share, total_norm
from projected_grpo.interventions.base import Intervention
from projected_grpo.training.clock import PhaseClock
from projected_grpo.training.gauge import Gauge


def finalize_gradients(
    parameters: dict[str, nn.Parameter], intervention: Intervention, max_norm: float
) -> tuple[Vectors, Vectors]:
    """Let the intervention act on delta.grad, then clip; returns (before, after) as module -> (r,).

    The one way by which gradients reach the optimizer. max_norm 0 never clips.

    Raises:
        RuntimeError: a module got no gradient; a skipped module would train unprojected without a word.
    """
    missing = [module for module, parameter in parameters.items() if parameter.grad is None]
    if missing:
        raise RuntimeError(f"no gradient in {len(missing)} adapted modules, first {missing[0]}")
    before = {module: p.grad.detach().clone() for module, p in parameters.items() if p.grad is not None}
    after = intervention.gradient(before)
    norm = total_norm(after)
    scale = max_norm / norm if 0 < max_norm < norm else 1.0
    for module, parameter in parameters.items():
        parameter.grad = after[module] * scale
    return before, after


class UpdateHooks(TrainerCallback):
    """Applies an intervention to the gradient and to the update of one step, and measures both.

    `figures` holds, after each step: alignment readings of the raw gradient, norms before and after, the share
    removed, and the leak, i.e. the hack-ward share of the update that the optimizer made of the projected gradient.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        intervention: Intervention,
        gauge: Gauge,
        max_norm: float,
        clock: PhaseClock,
    ) -> None:
        self.parameters = parameters
        self.intervention = intervention
        self.gauge = gauge
        self.max_norm = max_norm
        self.clock = clock
        self.figures: dict[str, float] = {}
        self._before_step: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        with self.clock.phase("projection"):
            before, after = finalize_gradients(self.parameters, self.intervention, self.max_norm)
            norm = total_norm(after)
            self.figures = {
                **self.gauge.read(before),
                "grad_norm_before": total_norm(before),
                "grad_norm_after": min(norm, self.max_norm or norm),  # clipped as well
                "share_removed": removed_share(before, after),
                "modules_touched": float(sum(not torch.equal(before[m], after[m]) for m in before)),
            }
            self._before_step = {module: p.detach().clone() for module, p in self.parameters.items()}
        self.clock.start("optimizer")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clock.stop("optimizer")
        with self.clock.phase("projection"), torch.no_grad():
            old = self._before_step
            update = {module: p.detach() - old[module] for module, p in self.parameters.items()}
            applied = self.intervention.update(update)
            if applied is not update:
                for module, parameter in self.parameters.items():
                    parameter.copy_(old[module] + applied[module])
            bases = self.intervention.bases()
            descent = {module: -vector for module, vector in applied.items()}  # V points along gradients
            self.figures["leak"] = alignment(descent, bases) if bases is not None else 0.0
