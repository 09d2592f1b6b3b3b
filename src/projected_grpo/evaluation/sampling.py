"""Completions of a policy for evaluation: prompts in, text and token ids out. Grading is another stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from rich.progress import track
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.policy import end_tokens
from projected_grpo.problems.prompts import PLAIN, PromptForm
from projected_grpo.problems.schema import Problem
from projected_grpo.settings.sampling import SamplingSettings

TokenList = Literal["heldout", "train"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to complete: which problem, under which disclosed name, and the how-manieth sample."""

    problem: Problem
    tokens: TokenList
    sample: int
    form: PromptForm = PLAIN

    @property
    def token(self) -> str:
        return self.problem.heldout_token if self.tokens == "heldout" else self.problem.token

    @property
    def prompt(self) -> str:
        return self.form.render(self.problem, self.token)


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was sampled: of an answer with a prefilled beginning, the rest.

    token_ids include the end token if the model wrote one (finish_reason "stop"), else it was cut ("length").
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]


def requests(problems: Iterable[Problem], tokens: TokenList, samples: int, form: PromptForm = PLAIN) -> list[Request]:
    """`samples` requests per problem, problems in order."""
    return [Request(problem, tokens, sample, form) for problem in problems for sample in range(samples)]


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    settings: SamplingSettings,
    seed: int,
    description: str = "sampling",
) -> list[Completion]:
    """Sample one completion per prompt, in order. Seeds torch: equal arguments, equal completions on one machine."""
    torch.manual_seed(seed)
    model.eval()
    ends = end_tokens(tokenizer, model.generation_config)
    config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings.max_new_tokens,
        repetition_penalty=1.0,  # what is not set here is taken from the base's own generation config
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=ends,
    )
    completions = []
    starts = range(0, len(prompts), settings.batch_size)
    for start in track(starts, description, transient=True, disable=len(starts) < 2):
        encoded = tokenizer(list(prompts[start : start + settings.batch_size]), return_tensors="pt", padding=True)
        output = model.generate(**encoded.to(model.device), generation_config=config)
        for row in output[:, encoded["input_ids"].shape[1] :].tolist():
            completions.append(completion_of(row, tokenizer, ends))
    return completions


def completion_of(row: list[int], tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> Completion:
    """What was sampled, up to its first end token."""
    stop = next((place for place, token in enumerate(row) if token in ends), None)
    ids = row if stop is None else row[: stop + 1]
    return Completion(tokenizer.decode(ids, skip_special_tokens=True), ids, "length" if stop is None else "stop")
