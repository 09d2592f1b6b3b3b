"""TRL's trainer with the engine of the settings: who samples, and whether it samples from what is trained.

`use_vllm` of TRL stays off while the trainer is built, and the recipe of `training.config` is one for all engines: a
vLLM is put in its place afterwards, with what TRL cannot be told (`engines.VllmSampler`).

Either way each sampled token comes with the log-prob it was drawn with. TRL leaves those of transformers unknown; they
are noted here as `generate` draws. With TRL's corrections off they go into no loss: they are compared, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from trl import GRPOTrainer

from projected_grpo.engines import VllmSampler, check_gap
from projected_grpo.interventions.base import Intervention
from projected_grpo.settings.engine import TRANSFORMERS, EngineSettings
from projected_grpo.training.ranks import ALONE, Ranks

GAP_COLUMNS = ("sampler_gap", "sampler_gap_max")  # of provenance/sampler.parquet, beside `step`


def acts_on_sampling(intervention: Intervention) -> bool:
    """Whether the arm changes the forward passes that sample, and not those of training."""
    return type(intervention).rollout is not Intervention.rollout


class SampledLogProbs(LogitsProcessor):
    """Notes the log-prob that `generate` draws each token with; the scores pass through as they are.

    A token is known one call after its scores, so those of one position wait, never (positions x vocabulary). They are
    the ones before the temperature, which comes after all processors that are handed in.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._waiting: Tensor | None = None  # (rows, vocabulary)
        self._noted: list[Tensor] = []  # (rows,) of each position

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._waiting is not None:
            self.drawn(input_ids[:, -1])
        self._waiting = scores
        return scores

    def drawn(self, tokens: Tensor) -> None:
        """What was drawn with the scores that wait, (rows,)."""
        assert self._waiting is not None, "a token without scores"
        scores = self._waiting.float() / self.temperature
        self._noted.append(scores.gather(1, tokens[:, None])[:, 0] - scores.logsumexp(-1))
        self._waiting = None

    def rows(self, ids: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """Of each row's own tokens, without the padding behind them; None where nothing was sampled."""
        if not self._noted:
            return None
        noted = torch.stack(self._noted, dim=1).tolist()
        return [row[: len(own)] for row, own in zip(noted, ids, strict=True)]


@contextmanager
def recorded(model: Any, temperature: float) -> Iterator[SampledLogProbs]:
    """The log-probs of what `model.generate` samples within: TRL calls it with no way to hand a processor in."""
    log_probs = SampledLogProbs(temperature)
    generate = model.generate

    def recording(*args: Any, **kwargs: Any) -> Tensor:
        written: Tensor = generate(*args, logits_processor=LogitsProcessorList([log_probs]), **kwargs)
        log_probs.drawn(written[:, -1])
        return written

    model.generate = recording
    try:
        yield log_probs
    finally:
        del model.generate  # the class's own is back


class SamplerGap:
    """|log p(trainer) - log p(sampler)| over the sampled tokens of a step, of all ranks, in nats.

    steered: the arm acts on the passes that sample, so that the two differ by design; its gap stops no run.
    """

    def __init__(self, engine: EngineSettings, device: torch.device | str = "cpu", steered: bool = False) -> None:
        self.engine = engine
        self.device = device
        self.steered = steered
        self.agreed = False  # in an earlier step of this process
        self._gaps: list[Tensor] = []

    def add(self, trainer: Tensor, sampler: Tensor, mask: Tensor) -> None:
        """Log-probs and mask (rows, tokens) of one forward pass; the sampler's are NaN where a teacher wrote."""
        self._gaps.append((trainer.float() - sampler).abs()[mask.bool() & ~sampler.isnan()].detach())

    def take(self, step: int, ranks: Ranks = ALONE) -> dict[str, float]:
        """Mean and maximum of what was added since the last call, 0 where no token was sampled; on every rank.

        Raises:
            LabError: the mean is above `engine.max_gap`, and not by design; on every rank.
        """
        gaps = torch.cat([torch.zeros(0, device=self.device), *self._gaps]).double()
        self._gaps = []
        mine = [float(gaps.sum()), float(len(gaps)), float(gaps.max()) if len(gaps) else 0.0]
        total, count, largest = ranks.gather(torch.tensor([mine], dtype=torch.double, device=self.device)).unbind(1)
        mean = float(total.sum() / count.sum().clamp(min=1))
        if not self.steered and math.isfinite(mean):  # else the step's own figures are not finite either, and say so
            check_gap(mean, self.engine, f"step {step}", self.agreed)
        self.agreed = self.agreed or bool(count.sum())
        return dict(zip(GAP_COLUMNS, (mean, float(largest.max())), strict=True))


class EngineTrainer(GRPOTrainer):
    """GRPOTrainer that samples with `engine`. `gap`: how far that is from the trainer. steered: see `SamplerGap`."""

    def __init__(self, *, engine: EngineSettings = TRANSFORMERS, steered: bool = False, **trl: Any) -> None:
        super().__init__(**trl)
        self.gap = SamplerGap(engine, self.accelerator.device, steered)
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

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[Any] | None]:
        if self.use_vllm:
            return super()._generate_single_turn(*args, **kwargs)
        with recorded(self.accelerator.unwrap_model(self.model), self.temperature) as log_probs:
            ids, _ = super()._generate_single_turn(*args, **kwargs)
        return ids, log_probs.rows(ids)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps: Tensor = found[0].detach()  # of the last forward pass, (rows, tokens)
        return found

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        sampler = inputs.get("sampling_per_token_logps")  # None where a teacher wrote all of them
        if sampler is not None:
            self.gap.add(self._logps, sampler, inputs["completion_mask"])
        return loss
