"""Static against continuous batching of transformers, and against vLLM where it is installed: the shipped micro model,
one process, one thread, the 72 rollouts of a training step.

Rounds go through all ways in turn, so that a busy host slows all of them; the first round is not counted. Static: all
rows padded to the longest prompt, until the last one ends (what `engine.kind: transformers` does). Continuous:
`generate_batch`, which TRL calls with `use_transformers_continuous_batching`; it sets up its cache anew at each call,
as it would at each step. vLLM: colocated, float32, its start not counted.

The last line is JSON: seconds by way, and `continuous_over_static`, `vllm_over_static` (time; below 1 is faster).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from projected_grpo.parallel import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # before torch is imported

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.generation import ContinuousBatchingConfig
from transformers.utils import logging as transformers_logging

from projected_grpo.engines import VllmSampler, vllm_version
from projected_grpo.errors import LabError
from projected_grpo.problems.families import make_problems
from projected_grpo.problems.prompts import render_prompt
from projected_grpo.settings.engine import EngineSettings

BASE = Path(__file__).resolve().parents[1] / "data/shipped/micro"
PROMPTS, SAMPLES, NEW_TOKENS = 6, 12, 64  # of scale micro
Way = Callable[[], list[list[int]]]


def static(model: PreTrainedModel, rows: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    width = max(map(len, rows))
    padded = torch.tensor([[config.pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        sampled = model.generate(input_ids=padded, attention_mask=mask, generation_config=config)[:, width:].tolist()
    end = config.eos_token_id
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in sampled]


def continuous(model: PreTrainedModel, rows: list[list[int]], config: GenerationConfig) -> list[list[int]]:
    room = ContinuousBatchingConfig(max_memory_percent=0.1)
    found = model.generate_batch(rows, generation_config=config, continuous_batching_config=room, progress_bar=False)
    return [list(output.generated_tokens) for output in found.values()]


def ways(rows: list[list[int]]) -> dict[str, Way]:
    """Each way by name; a model of its own for each, as continuous batching changes the attention of its model."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    end = tokenizer.eos_token_id
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=NEW_TOKENS, pad_token_id=0, eos_token_id=end
    )  # fmt: skip
    plain, paged, policy = (AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval() for _ in range(3))
    found: dict[str, Way] = {
        "static": lambda: static(plain, rows, config),
        "continuous": lambda: continuous(paged, rows, config),
    }
    try:
        vllm_version()
    except LabError:
        return found
    engine = EngineSettings(kind="vllm", memory_share=0.05, dtype="float32")
    sampler = VllmSampler(
        policy, Accelerator(cpu=True), tokenizer, engine,
        max_tokens=NEW_TOKENS, temperature=1.0, rows=len(rows), stop=[end], seed=0,
    )  # fmt: skip
    sampler.sync_weights()
    return found | {"vllm": lambda: [list(ids) for ids in sampler.generate(rows, None, num_generations=SAMPLES)[1]]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(1)
    problems = make_problems(PROMPTS, 5, "train", ["run_tests"], 0)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    prompts = [tokenizer(render_prompt(problem, problem.token))["input_ids"] for problem in problems]
    rows = [ids for ids in prompts for _ in range(SAMPLES)]
    seconds: dict[str, list[float]] = {}
    tokens: dict[str, int] = {}
    for name, way in (found := ways(rows)).items():
        way()
        seconds[name] = []
    for number in range(rounds):
        for name, way in found.items():
            torch.manual_seed(number)
            start = time.perf_counter()
            sampled = way()
            seconds[name].append(time.perf_counter() - start)
            tokens[name] = sum(map(len, sampled))
    middle = {name: statistics.median(spent) for name, spent in seconds.items()}
    for name, spent in middle.items():
        print(f"{name:10} {spent:6.2f} s for {len(rows)} completions, {tokens[name] / seconds[name][-1]:6.0f} tokens/s")
    ratios = {f"{name}_over_static": spent / middle["static"] for name, spent in middle.items() if name != "static"}
    print(json.dumps({name: round(value, 3) for name, value in {**middle, **ratios}.items()}))


if __name__ == "__main__":
    main()
