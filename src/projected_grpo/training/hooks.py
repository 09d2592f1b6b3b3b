"""Between backward and the optimizer, and right after it: the only two places where the update itself is touched.

The order inside Hugging Face's loop is clip -> log -> on_pre_optimizer_step -> optimizer -> on_optimizer_step; its own
clip is switched off, because a norm taken before the projection is not the norm of what is applied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from projected_grpo.directions.algebra import alignment, beside, modules_touched, removed_share, total_norm
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, Intervention, Parts, StepGradients, Vectors
from projected_grpo.spectral import GradientCollector, deltas, finalize_gradients
from projected_grpo.training.clock import PhaseClock
from projected_grpo.training.gauge import Gauge
from projected_grpo.training.ranks import ALONE, Ranks


class UpdateHooks(TrainerCallback):
    """Applies an intervention to the gradient and to the update of one step, and measures both.

    Before the step's forward passes the trainer says what it samples with: `begin`. `figures` holds, after each step:
    alignment readings of the raw gradient, norms before and after, the share removed, the leak, i.e. the hack-ward
    share of the update that the optimizer made of the projected gradient, the adapters' norms, and the intervention's
    own figures; all but the norms of the adapter that is deployed. `rollouts`: the gradient of each rollout, (n, r) per
    module in sampling order, at its advantage; empty if `collector` does not keep them. All of the whole step, on every
    rank: the model's gradient is averaged over `ranks` by DistributedDataParallel before it comes here.
    """

    def __init__(
        self,
        model: nn.Module,
        collector: GradientCollector,
        intervention: Intervention,
        gauge: Gauge,
        max_norm: float,
        clock: PhaseClock,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.parameters = {adapter: deltas(model, adapter) for adapter in intervention.adapters}
        self.collector = collector
        self.intervention = intervention
        self.gauge = gauge
        self.max_norm = max_norm
        self.clock = clock
        self.ranks = ranks
        self.figures: dict[str, float] = {}
        self.rollouts: Vectors = {}
        self._advantages = torch.zeros(0)
        self._teacher = torch.zeros(0, dtype=torch.bool)
        self._order: list[Tensor] = []
        self._before_step: dict[str, Vectors] = {}

    def begin(self, advantages: Tensor, teacher: Tensor) -> None:
        """What one step samples with: advantages (n,), and which rollouts are a teacher's (n,), in sampling order."""
        self._advantages, self._teacher, self._order = advantages, teacher, []

    def forward(self, rollouts: Tensor) -> None:
        """Which rollout of the step each row of the coming forward pass is, (rows,): TRL shuffles a rank's batch."""
        self._order.append(rollouts)

    def on_pre_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        with self.clock.phase("projection"):
            self._purge(optimizer)
            unit = self._collect()
            projected: list[Parts] = []

            def project(total: Vectors) -> Parts:
                step = StepGradients(total, self.rollouts, unit, self._advantages)
                projected.append(self.intervention.gradient(step))
                return projected[0]

            done = finalize_gradients(self.model, self.collector, transform=project, max_norm=self.max_norm)
            self.collector.clear()
            deployed = projected[0][DEFAULT]
            self.figures = {
                **self.gauge.read(done.before),
                **self._by_source(),
                "grad_norm_before": done.norm_before,
                "grad_norm_after": done.norm_after * done.clip,
                "share_removed": removed_share(done.before, deployed),  # the intervention's doing, not the clip's
                "modules_touched": float(modules_touched(done.before, deployed)),
            }
            self._before_step = {
                adapter: {module: p.detach().clone() for module, p in parameters.items()}
                for adapter, parameters in self.parameters.items()
            }
        self.clock.start("optimizer")

    def _collect(self) -> Vectors:
        """Put `rollouts` in sampling order. For an arm that wants unit rollouts the loss had every advantage at 1:
        scale each row by its own, write their sum where backward left the wrong one, and return the unit rows.

        The loss is linear in the advantages where the ratio is 1, as it is with one step per batch, and kl_beta is 0.
        """
        rows = self.collector.by_rollout()
        if rows and self.ranks.count > 1:
            # A rank's loss is the mean over its own rows, the step's the mean over ranks: each row counts 1 / count.
            rows = {module: self.ranks.gather(share) / self.ranks.count for module, share in rows.items()}
        self.rollouts = in_sampling_order(rows, self.ranks.gather(torch.cat(self._order))) if rows else {}
        if not self.intervention.unit_rollouts:
            return {}
        unit = self.rollouts
        weights = {module: self._advantages.to(rows) for module, rows in unit.items()}
        self.rollouts = {module: weights[module].unsqueeze(-1) * rows for module, rows in unit.items()}
        for parameters in self.parameters.values():
            for module, parameter in parameters.items():
                parameter.grad = self.rollouts[module].sum(0)
        return unit

    def _by_source(self) -> dict[str, float]:
        """Signed alignment of the student's and of the teacher's part of the gradient; 0 for one that is missing."""
        parts = {"student": ~self._teacher, "teacher": self._teacher}
        return {
            f"alignment_{name}": self.gauge.read({m: g[mask].sum(0) for m, g in self.rollouts.items()})[
                "alignment_signed"
            ]
            if self.rollouts and bool(mask.any())
            else 0.0
            for name, mask in parts.items()
        }

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.clock.stop("optimizer")
        with self.clock.phase("projection"), torch.no_grad():
            for adapter, parameters in self.parameters.items():
                old = self._before_step[adapter]
                update = {module: p.detach() - old[module] for module, p in parameters.items()}
                applied = self.intervention.update(adapter, update)
                if applied is not update:
                    for module, parameter in parameters.items():
                        parameter.copy_(old[module] + applied[module])
                self.ranks.align(list(parameters.values()))
                if adapter == DEFAULT:
                    bases = self.intervention.bases()
                    descent = {module: -vector for module, vector in applied.items()}  # V points along gradients
                    self.figures["leak"] = 0.0 if bases is None else alignment(descent, beside(bases, descent))
            for name in (DEFAULT, QUARANTINE):
                self.figures[f"{name}_norm"] = total_norm(dict(self.parameters.get(name, {})))
            self.figures |= self.intervention.figures()

    def _purge(self, optimizer: Any) -> None:
        """Offer the intervention Adam's running mean of the gradient; before the first step there is none."""
        state = getattr(optimizer, "state", {})
        moments = {m: state[p]["exp_avg"] for m, p in self.parameters[DEFAULT].items() if "exp_avg" in state.get(p, {})}
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
