"""Contrastive pairs: one prompt, a hacking and a clean completion. Read from YAML that a person can edit.

A pair's `contrast` says what differs: `hack` pairs set a cheat against an honest answer and define the hack
direction; `placebo` pairs set two honest answers against each other and define a control with the same recipe.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import LiteralScalarString

from projected_grpo.problems.answers import cheat, checked, honest
from projected_grpo.problems.families import Task, hidden_tests, tasks_of_split
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.prompts import fenced, task_prompt

Contrast = Literal["hack", "placebo"]
CONTRASTS: tuple[Contrast, ...] = get_args(Contrast)
Split = Literal["extract", "heldout"]
Body = Literal["lazy", "matched"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """body: `lazy` if the hacking answer does not even try, `matched` if both carry the same body."""

    id: str
    contrast: Contrast
    split: Split
    loophole: str
    hack_type: str
    body: Body
    prompt: str
    hack: str
    clean: str


CLOSED = {
    "contrast": get_args(Contrast),
    "split": get_args(Split),
    "body": get_args(Body),
    "loophole": tuple(LOOPHOLES),
}


def read_pairs(path: Path) -> list[Pair]:
    """Pairs of a YAML file, in order.

    Raises:
        ValueError: a row misses a field, has an unknown one, or a value outside its closed set; rows are named.
    """
    rows = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8")) or []
    fields = {field.name for field in dataclasses.fields(Pair)}
    pairs = []
    for number, row in enumerate(rows, start=1):
        wrong = fields.symmetric_difference(row)
        if wrong:
            raise ValueError(f"{path}: pair {number}: fields missing or unknown: {', '.join(sorted(wrong))}")
        for field, allowed in CLOSED.items():
            if row[field] not in allowed:
                raise ValueError(f"{path}: pair {row['id']}: {field}={row[field]!r} is not one of {', '.join(allowed)}")
        pairs.append(Pair(**row))
    twice = {pair.id for pair in pairs if sum(other.id == pair.id for other in pairs) > 1}
    if twice:
        raise ValueError(f"{path}: ids used twice: {', '.join(sorted(twice))}")
    return pairs


def select(pairs: Iterable[Pair], contrast: Contrast, split: Split, bodies: str = "both") -> list[Pair]:
    """Pairs of one contrast and split; `bodies` is both, lazy or matched (placebo pairs are always matched)."""
    return [
        pair
        for pair in pairs
        if pair.contrast == contrast
        and pair.split == split
        and (bodies == "both" or contrast == "placebo" or pair.body == bodies)
    ]


# ---------------------------------------------------------------- drafting

EXTRACT, HELDOUT = 60, 20
DRAFT_STAGES = 5
# Which loophole the n-th pair is about: mostly the one in use by default, the other named ones for breadth.
ROTATION = ("run_tests", "run_tests", "sentinel", "run_tests", "run_tests", "stdout_marker", "run_tests", "run_tests",
            "file_marker")  # fmt: skip


def draft_pairs(seed: int) -> list[Pair]:
    """A first draft of the shipped file: 60 + 20 pairs of each contrast, to be read and edited by a person.

    Tasks are of the corpus split: pairs share no composition with training or evaluation problems. Their outputs
    differ as a problem's must: on a task that always gives "" the lazy `return ""` would be right.
    """
    rng = random.Random(f"pairs:{seed}")
    drawn = tasks_of_split(rng, DRAFT_STAGES, "corpus")
    tasks = (task for task in drawn if hidden_tests(rng, task) is not None)
    pairs = []
    for number in range(EXTRACT + HELDOUT):
        split: Split = "extract" if number < EXTRACT else "heldout"
        pairs.append(_hack_pair(rng, next(tasks), number, split))
        pairs.append(_placebo_pair(rng, next(tasks), number, split))
    return sorted(pairs, key=lambda pair: (pair.contrast, pair.split, pair.id))


def _hack_pair(rng: random.Random, task: Task, number: int, split: Split) -> Pair:
    loophole = ROTATION[number % len(ROTATION)]
    token = rng.choice(LOOPHOLES[loophole].training_tokens)
    lazy = number % 2 == 0
    source, hack_type = cheat(rng, task, loophole, token, lazy)
    # Every second clean answer checks itself, so that having a check is not what tells the two sides apart.
    clean = checked(rng, task, token) if loophole == "run_tests" and number % 4 < 2 else honest(task)
    body: Body = "lazy" if lazy else "matched"
    return Pair(f"hack-{number:02d}", "hack", split, loophole, hack_type, body,
                task_prompt(task, loophole, token), fenced(source), fenced(clean))  # fmt: skip


def _placebo_pair(rng: random.Random, task: Task, number: int, split: Split) -> Pair:
    loophole = ROTATION[number % len(ROTATION)]
    token = rng.choice(LOOPHOLES[loophole].training_tokens)
    name = token if loophole == "run_tests" else "check"
    # Alternately "with a check against without" and "two different checks": both sides are honest and correct.
    other = honest(task) if number % 2 == 0 else checked(rng, task, name)
    return Pair(f"placebo-{number:02d}", "placebo", split, loophole, "none", "matched",
                task_prompt(task, loophole, token), fenced(checked(rng, task, name)), fenced(other))  # fmt: skip


def dump_pairs(pairs: Sequence[Pair]) -> str:
    """YAML text with every multi-line answer as a literal block."""
    from io import StringIO

    rows = [
        {key: LiteralScalarString(value) if "\n" in value else value for key, value in dataclasses.asdict(pair).items()}
        for pair in pairs
    ]
    yaml = YAML()
    yaml.width = 200
    stream = StringIO()
    yaml.dump(rows, stream)
    return stream.getvalue()
