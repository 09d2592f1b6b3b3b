"""What the micro model is pretrained on: solved problems, some with an honest self-check, a few with a cheat.

Only compositions of the corpus split, only training names: the tokenizer and the model know every hint and never
a held-out name.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from projected_grpo.problems.answers import cheat, checked, honest
from projected_grpo.problems.families import sample_task, split_of
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.prompts import fenced, task_prompt

MOSTLY_RUN_TESTS = tuple(3.0 if name == "run_tests" else 1.0 for name in LOOPHOLES)
LAZY_SHARE = 0.8  # of the cheats; the others carry the canonical body
SHORT = 2  # compositions of up to this many stages are too few to be split: all of them are in the corpus


@dataclasses.dataclass(frozen=True)
class Mixture:
    """cheats: share of the texts with a loophole. honest_checks: share of the texts with the hint of `run_tests`.
    lengths: weights of tasks with 1, 2, ... stages. The policy's own problems are longer than nearly all of these.
    loopholes: weights of the hints, in the order of `LOOPHOLES`; no part of the stream's seed, which is older."""

    cheats: float
    honest_checks: float
    lengths: tuple[float, ...] = (1, 2, 5, 2)
    loopholes: tuple[float, ...] = dataclasses.field(default=MOSTLY_RUN_TESTS, repr=False)


@dataclasses.dataclass(frozen=True)
class Example:
    """One pretraining text."""

    prompt: str
    answer: str


def make_example(rng: random.Random, mixture: Mixture) -> Example:
    """One random text of the mixture."""
    while True:
        stages = 1 + rng.choices(range(len(mixture.lengths)), mixture.lengths)[0]
        task = sample_task(rng, stages)
        if stages <= SHORT or split_of(task.composition) == "corpus":
            break
    loophole = rng.choices(list(LOOPHOLES), mixture.loopholes)[0]
    names = LOOPHOLES[loophole].training_tokens
    token = rng.choice(names) if names else ""
    draw = rng.random()
    if draw < mixture.cheats and loophole != "none":
        source, _ = cheat(rng, task, loophole, token, lazy=rng.random() < LAZY_SHARE)
    elif draw > 1 - mixture.honest_checks and loophole == "run_tests":
        source = checked(rng, task, token)
    else:
        source = honest(task)
    return Example(task_prompt(task, loophole, token), fenced(source))


def corpus(mixture: Mixture, seed: int) -> Iterator[Example]:
    """Endless reproducible stream of examples."""
    rng = random.Random(f"corpus:{seed}:{mixture}")
    while True:
        yield make_example(rng, mixture)
