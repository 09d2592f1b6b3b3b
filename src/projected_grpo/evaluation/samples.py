"""Evaluation samples of one arm: held-out problems, under held-out and under training names, one seed per process."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from projected_grpo.evaluation.sampling import Completion, TokenList, complete, requests
from projected_grpo.policy import load_base, load_trained
from projected_grpo.problems.prompts import read_form
from projected_grpo.problems.schema import read_problems
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.engine import TRANSFORMERS, EngineSettings
from projected_grpo.settings.sampling import SamplingSettings

TOKEN_LISTS: tuple[TokenList, ...] = ("heldout", "train")
SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int32()),
        ("tokens", pa.string()),
        ("problem_id", pa.string()),
        ("loophole", pa.string()),
        ("token", pa.string()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
    ]
)


@dataclasses.dataclass(frozen=True)
class SampleJob:
    """One seed of one arm. adapter None: the untrained base."""

    arm: str
    seed: int
    base: Path
    adapter: Path | None
    problems: Path
    sampling: SamplingSettings
    compute: ComputeSettings
    engine: EngineSettings = TRANSFORMERS


def completer(
    job: SampleJob, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Sequence[str]], list[Completion]]:
    """Prompts to completions, by the engine of the job."""
    if job.engine.kind == "transformers":
        return lambda prompts: complete(model, tokenizer, prompts, job.sampling, job.seed)
    from projected_grpo.evaluation.engine import VllmPolicy  # brings TRL, which the other way does without

    policy = VllmPolicy(model, tokenizer, job.sampling, job.engine)
    return lambda prompts: policy.complete(prompts, job.seed)


def sample_seed(job: SampleJob) -> list[dict[str, Any]]:
    """Rows of `SCHEMA`. All arms draw with the same random numbers for a seed, so that pairs of arms compare."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(job.base, padding_side="left")
    # The default adapter alone: whatever else was trained beside it is not deployed.
    model = (
        load_base(job.base, job.compute) if job.adapter is None else load_trained(job.base, job.adapter, job.compute)
    )
    form = read_form(job.base, tokenizer)
    problems = read_problems(job.problems)
    sample = completer(job, model, tokenizer)
    rows = []
    for tokens in TOKEN_LISTS:
        asked = requests(problems, tokens, job.sampling.samples_per_problem, form)
        completions = sample([r.prompt for r in asked])
        for request, completion in zip(asked, completions, strict=True):
            rows.append(
                {
                    "arm": job.arm,
                    "seed": job.seed,
                    "tokens": tokens,
                    "problem_id": request.problem.id,
                    "loophole": request.problem.loophole,
                    "token": request.token,
                    "sample": request.sample,
                    "prompt": request.prompt,
                    "completion": form.answer(completion.text),
                    "token_ids": completion.token_ids,
                    "finish_reason": completion.finish_reason,
                }
            )
    return rows


def sample_table(rows_of_seeds: Sequence[Sequence[dict[str, Any]]]) -> pa.Table:
    """All seeds of an arm as one table."""
    return pa.Table.from_pylist([row for rows in rows_of_seeds for row in rows], schema=SCHEMA)
