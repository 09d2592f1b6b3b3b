"""Completions of a policy for evaluation from vLLM: the deployed weights alone, folded (docs/engines.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.engines import VllmSampler, check_gap
from projected_grpo.evaluation.sampling import Completion, completion_of
from projected_grpo.policy import end_tokens
from projected_grpo.settings.engine import EngineSettings
from projected_grpo.settings.sampling import SamplingSettings

CHECKED = 4  # completions that the model itself is asked about: enough to see other weights


class VllmPolicy:
    """One policy in vLLM, sampled as often as one likes; made once, as vLLM starts in seconds to minutes.

    Args:
        model: with the adapters that are to be sampled with, active.

    Raises:
        LabError: vLLM is missing, or no server answers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: SamplingSettings,
        engine: EngineSettings,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self.engine = engine
        self.ends = end_tokens(tokenizer, model.generation_config)
        self.sampler = VllmSampler(
            model,
            Accelerator(),
            tokenizer,
            engine,
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            rows=settings.batch_size,
            stop=self.ends,
            seed=0,  # `complete` sets one
        )
        self.sampler.sync_weights()

    def complete(self, prompts: Sequence[str], seed: int) -> list[Completion]:
        """One completion per prompt, in order; from a colocated vLLM equal ones for equal arguments on one machine.

        Raises:
            LabError: vLLM samples from another policy than the model is.
        """
        asked = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        torch.manual_seed(seed)
        _, sampled, logprobs, _ = self.sampler.generate(asked, None, num_generations=1)
        rows = [list(ids) for ids in sampled]
        pairs = list(zip(asked, rows, [[token[0] for token in row] for row in logprobs], strict=True))[:CHECKED]
        gaps = torch.cat([(self._log_probs(ask, row) - torch.tensor(said)).abs() for ask, row, said in pairs])
        check_gap(float(gaps.mean()), self.engine, "evaluation", agreed=False)
        return [completion_of(row, self.tokenizer, self.ends) for row in rows]

    @torch.no_grad()
    def _log_probs(self, asked: list[int], sampled: list[int]) -> Tensor:
        """(tokens,) of the sampled ones, by the model itself, at the temperature of sampling."""
        ids = torch.tensor([asked + sampled], device=self.model.device)
        logits = self.model(input_ids=ids).logits[0, len(asked) - 1 : -1].float().cpu()
        return (logits / self.settings.temperature).log_softmax(-1).gather(1, torch.tensor(sampled)[:, None])[:, 0]
