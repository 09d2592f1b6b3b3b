"""TRL's trainer with the engine of the settings: who samples, and whether it samples from what is trained.

`use_vllm` of TRL stays off while the trainer is built, and the recipe of `training.config` is one for all engines: a
vLLM is put in its place afterwards, with what TRL cannot be told (`engines.VllmSampler`).
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from trl import GRPOTrainer

from projected_grpo.engines import VllmSampler, check_gap
from projected_grpo.settings.engine import TRANSFORMERS, EngineSettings
from projected_grpo.training.ranks import ALONE, Ranks

GAP_COLUMNS = ("sampler_gap", "sampler_gap_max")  # of steps.csv, where the engine is vLLM


class SamplerGap:
    """|log p(trainer) - log p(sampler)| over the sampled tokens of a step, of all ranks, in nats."""

    def __init__(self, engine: EngineSettings, device: torch.device | str = "cpu") -> None:
        self.engine = engine
        self.device = device
        self.agreed = False  # in an earlier step of this process
        self._gaps: list[Tensor] = []

    def add(self, trainer: Tensor, sampler: Tensor, mask: Tensor) -> None:
        """Log-probs and mask (rows, tokens) of one forward pass; the sampler's are NaN where a teacher wrote."""
        self._gaps.append((trainer.float() - sampler).abs()[mask.bool() & ~sampler.isnan()].detach())

    def take(self, step: int, ranks: Ranks = ALONE) -> dict[str, float]:
        """Mean and maximum of what was added since the last call, 0 where no token was sampled; on every rank.

        Raises:
            LabError: the mean is above `engine.max_gap`; on every rank.
        """
        gaps = torch.cat([torch.zeros(0, device=self.device), *self._gaps]).double()
        self._gaps = []
        mine = [float(gaps.sum()), float(len(gaps)), float(gaps.max()) if len(gaps) else 0.0]
        total, count, largest = ranks.gather(torch.tensor([mine], dtype=torch.double, device=self.device)).unbind(1)
        mean = float(total.sum() / count.sum().clamp(min=1))
        check_gap(mean, self.engine, f"step {step}", self.agreed)
        self.agreed = self.agreed or bool(count.sum())
        return dict(zip(GAP_COLUMNS, (mean, float(largest.max())), strict=True))


class EngineTrainer(GRPOTrainer):
    """GRPOTrainer that samples with `engine`. `gap`: where that is vLLM, how far it is from the trainer."""

    def __init__(self, *, engine: EngineSettings = TRANSFORMERS, **trl: Any) -> None:
        super().__init__(**trl)
        self.gap = SamplerGap(engine, self.accelerator.device) if engine.kind == "vllm" else None
        if engine.kind == "transformers":
            return
        self.vllm_generation = VllmSampler(
            self.model,
            self.accelerator,
            self.processing_class,
            engine,
            max_tokens=self.max_completion_length,
            temperature=self.temperature,
            rows=self.args.per_device_train_batch_size * self.args.steps_per_generation,
            stop=self.eos_token_ids,
            seed=self.args.seed + self.accelerator.process_index,
        )
        self.use_vllm, self.vllm_mode = True, engine.mode
        self._last_loaded_step = -1  # TRL syncs before it samples for a step that this is not
        # A colocated vLLM draws from this process's random generator, and leaves it seeded in its own way.
        set_seed(self.args.seed, device_specific=True)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self.gap is not None:
            self._logps: Tensor = found[0].detach()  # of the last forward pass, (rows, tokens)
        return found

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        sampler = inputs.get("sampling_per_token_logps")  # None where a teacher wrote all of them
        if self.gap is not None and sampler is not None:
            self.gap.add(self._logps, sampler, inputs["completion_mask"])
        return loss
