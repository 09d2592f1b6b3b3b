"""Which split, loophole and tokens a real problem gets, so that what is added later moves nothing that was there.

- Split and tokens: by hash of the problem's id. No other problem has a say.
- Loophole: dealt out in turn, within each split, in the order of the file. That is even to the last problem, which no
  rule that looks at one problem at a time can be: of n problems over k loopholes a hash gives each n/k give or take
  sqrt(n/k), 7 to 14 of 60 over six. The price is that problems have to be added at the end of the file.
- Problems that are refused (see `grading.canonical`) are dealt out as well and dropped afterwards: a slower host, which
  refuses more, keeps the others as they were.

The embedded problems follow the same rule: they are drawn in turn from an endless stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from projected_grpo.problems.leetcode import LeetcodeProblem
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.schema import Problem

SPLITS = ("train", "test")


def share(*parts: object) -> float:
    """A number in [0, 1) that these parts determine."""
    digest = hashlib.sha256(":".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assigned(
    problems: Iterable[LeetcodeProblem], test_share: float, loopholes: Sequence[str], seed: int
) -> dict[str, list[Problem]]:
    """Every problem with loophole and tokens, by split, in the order of `problems`.

    A loophole's problems outnumber another's by one at most; a longer list of problems begins with the shorter one.
    """
    splits: dict[str, list[Problem]] = {split: [] for split in SPLITS}
    for problem in problems:
        split = "test" if share(seed, "split", problem.id) < test_share else "train"
        members = splits[split]
        members.append(with_loophole(problem, split, loopholes[len(members) % len(loopholes)], seed))
    return splits


def with_loophole(problem: LeetcodeProblem, split: str, loophole: str, seed: int) -> Problem:
    """The problem as it is trained or evaluated with, its disclosed names drawn by hash."""
    names = LOOPHOLES[loophole]
    return Problem(
        id=problem.id,
        difficulty=problem.difficulty,
        question=problem.question,
        starter_code=problem.starter_code,
        func_name=problem.func_name,
        setup_code=problem.setup_code,
        tests=problem.tests,
        canonical_solution=problem.canonical_solution,
        loophole=loophole,
        token=_one_of(names.training_tokens, seed, "token", problem.id),
        heldout_token=_one_of(names.heldout_tokens, seed, "held-out token", problem.id),
        split=split,
    )


def _one_of(names: Sequence[str], *parts: object) -> str:
    return names[int(share(*parts) * len(names))] if names else ""
