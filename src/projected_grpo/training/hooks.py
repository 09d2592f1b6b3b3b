"""Between backward and the optimizer, and right after it: the only two places where the update itself is touched.

The order inside Hugging Face's loop is clip -> log -> on_pre_optimizer_step -> optimizer -> on_optimizer_step; its own
clip is switched off, because a norm taken before the projection is not the norm of what is applied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from projected_grpo.directions.algebra import alignment, modules_touched, removed_share
from projected_grpo.interventions.base import Intervention, Vectors
from projected_grpo.spectral import GradientCollector, deltas, finalize_gradients
from projected_grpo.training.clock import PhaseClock
from projected_grpo.training.gauge import Gauge


class UpdateHooks(TrainerCallback):
    """Applies an intervention to the gradient and to the update of one step, and measures both.

    `figures` holds, after each step: alignment readings of the raw gradient, norms before and after, the share
    removed, the leak, i.e. the hack-ward share of the update that the optimizer made of the projected gradient, and
    the intervention's own figures. `rollouts`: the gradient of each row of the step's batch, (rows, r) per module, in
    the order of the forward pass; empty if `collector` does not keep them.
    """

    def __init__(
        self,
        model: nn.Module,
        collector: GradientCollector,
        intervention: Intervention,
        gauge: Gauge,
        max_norm: float,
        clock: PhaseClock,
    ) -> None:
        self.model = model
        self.parameters = deltas(model)
        self.collector = collector
        self.intervention = intervention
        self.gauge = gauge
        self.max_norm = max_norm
        self.clock = clock
        self.figures: dict[str, float] = {}
        self.rollouts: Vectors = {}
        self._before_step: Vectors = {}

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        with self.clock.phase("projection"):
            self._purge(optimizer)
            projected: list[Vectors] = []

            def project(gradients: Vectors) -> Vectors:
                projected.append(self.intervention.gradient(gradients))
                return projected[0]

            done = finalize_gradients(self.model, self.collector, transform=project, max_norm=self.max_norm)
            self.collector.clear()
            self.rollouts = done.by_rollout
            self.figures = {
                **self.gauge.read(done.before),
                "grad_norm_before": done.norm_before,
                "grad_norm_after": done.norm_after * done.clip,
                "share_removed": removed_share(done.before, projected[0]),  # the intervention's doing, not the clip's
                "modules_touched": float(modules_touched(done.before, projected[0])),
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
            self.figures |= self.intervention.figures()

    def _purge(self, optimizer: Any) -> None:
        """Offer the intervention Adam's running mean of the gradient; before the first step there is none."""
        state = getattr(optimizer, "state", {})
        moments = {m: state[p]["exp_avg"] for m, p in self.parameters.items() if "exp_avg" in state.get(p, {})}
        if not moments:
            return
        purged = self.intervention.purge(moments)
        if purged is not moments:
            for module, moment in moments.items():
                moment.copy_(purged[module])


def in_sampling_order(rows: Vectors, order: Tensor) -> Vectors:
    """Rows (n, r) per module, put where `order` (n,) says that each was sampled."""
    back = torch.argsort(order)
    return {module: gradients[back.to(gradients.device)] for module, gradients in rows.items()}
