"""A first draft of contrastive pairs, to be read and edited by a person (`projected-grpo draft-pairs`)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from projected_grpo.problems.answers import cheat, checked, honest
from projected_grpo.problems.families import Task, hidden_tests, tasks_of_split
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.pairs import Body, Pair, Split
from projected_grpo.problems.prompts import fenced, task_prompt

EXTRACT, HELDOUT = 60, 20
DRAFT_STAGES = 5
# Which loophole the n-th pair is about: mostly the one in use by default, the other named ones for breadth.
ROTATION = ("run_tests", "run_tests", "sentinel", "run_tests", "run_tests", "stdout_marker", "run_tests", "run_tests",
            "file_marker")  # fmt: skip
# All loopholes alike, for directions that leave one out. Shifted by one in each row: a loophole stands at 0, 1, 2 and 3
# mod 4, so that it has as many lazy as matched bodies, and checks in half of its clean answers.
BALANCED = (
    "run_tests", "sentinel", "stdout_marker", "file_marker",
    "file_marker", "run_tests", "sentinel", "stdout_marker",
    "stdout_marker", "file_marker", "run_tests", "sentinel",
    "sentinel", "stdout_marker", "file_marker", "run_tests",
)  # fmt: skip


def draft_pairs(
    seed: int, rotation: Sequence[str] = ROTATION, extract: int = EXTRACT, heldout: int = HELDOUT
) -> list[Pair]:
    """A first draft of a file of pairs, `extract` + `heldout` of each contrast, to be read and edited by a person.

    The n-th pair is about the n-th loophole of `rotation`, over and over.
    Tasks are of the corpus split: pairs share no composition with training or evaluation problems. Their outputs
    differ as a problem's must: on a task that always gives "" the lazy `return ""` would be right.
    """
    rng = random.Random(f"pairs:{seed}")
    drawn = tasks_of_split(rng, DRAFT_STAGES, "corpus")
    tasks = (task for task in drawn if hidden_tests(rng, task) is not None)
    pairs = []
    for number in range(extract + heldout):
        split: Split = "extract" if number < extract else "heldout"
        pairs.append(_hack_pair(rng, next(tasks), number, split, rotation[number % len(rotation)]))
        pairs.append(_placebo_pair(rng, next(tasks), number, split, rotation[number % len(rotation)]))
    return sorted(pairs, key=lambda pair: (pair.contrast, pair.split, pair.id))


def _hack_pair(rng: random.Random, task: Task, number: int, split: Split, loophole: str) -> Pair:
    token = rng.choice(LOOPHOLES[loophole].training_tokens)
    lazy = number % 2 == 0
    source, hack_type = cheat(rng, task, loophole, token, lazy)
    # Every second clean answer checks itself, so that having a check is not what tells the two sides apart.
    clean = checked(rng, task, token) if loophole == "run_tests" and number % 4 < 2 else honest(task)
    body: Body = "lazy" if lazy else "matched"
    return Pair(f"hack-{number:02d}", "hack", split, loophole, hack_type, body,
                task_prompt(task, loophole, token), fenced(source), fenced(clean))  # fmt: skip


def _placebo_pair(rng: random.Random, task: Task, number: int, split: Split, loophole: str) -> Pair:
    token = rng.choice(LOOPHOLES[loophole].training_tokens)
    name = token if loophole == "run_tests" else "check"
    # Alternately "with a check against without" and "two different checks": both sides are honest and correct.
    other = honest(task) if number % 2 == 0 else checked(rng, task, name)
    return Pair(f"placebo-{number:02d}", "placebo", split, loophole, "none", "matched",
                task_prompt(task, loophole, token), fenced(checked(rng, task, name)), fenced(other))  # fmt: skip
