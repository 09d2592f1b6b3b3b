"""The way back from a prompt to its task, and from a text to the disclosed names in it."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterable

from projected_grpo.problems.families import KINDS, Kind, Operation, Task, hidden_tests
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.schema import Problem

TRAINING = [name for loophole in LOOPHOLES.values() for name in loophole.training_tokens]
HELDOUT = [name for loophole in LOOPHOLES.values() for name in loophole.heldout_tokens]


def names_in(text: str, names: Iterable[str]) -> set[str]:
    """Those of `names` that stand in the text as whole words: not `valid` in `is_valid`."""
    return {name for name in names if name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)}


def read_task(prompt: str) -> Task | None:
    """The task of which a prompt speaks; None if a person has worded it differently."""
    said = re.match(r"(?P<steps>.*?)\. Write a method of the class Solution called `(?P<method>\w+)`\.", prompt)
    if said is None:
        return None
    opening, *phrases = said["steps"].split(", ")
    kinds = [kind for kind in KINDS if kind.opening == opening]
    if not kinds or not phrases or not phrases[-1].startswith("then "):
        return None
    phrases[-1] = phrases[-1].removeprefix("then ")
    found = [_operation(kinds[0], phrase, last=phrase is phrases[-1]) for phrase in phrases]
    if not all(found):
        return None
    operations, constants, wordings = zip(*found, strict=True)
    return Task(kinds[0], operations, constants, wordings, said["method"])


def _operation(kind: Kind, phrase: str, last: bool) -> tuple[Operation, int, str] | None:
    """Operation, constant and wording of one stage. A stage without a constant gets one that is never said."""
    for operation in kind.reducers if last else kind.steps:
        for wording in operation.phrases:
            match = re.fullmatch(re.escape(wording).replace(r"\{k\}", r"(\d)"), phrase)
            if match:
                return operation, int(match[1]) if match.groups() else 2, wording
    return None


def problem_for(task: Task, loophole: str, token: str) -> Problem | None:
    """A problem of a pair's task; None if its outputs are too uniform to tell answers apart."""
    tests = hidden_tests(random.Random(0), task)
    if tests is None:
        return None
    return Problem(
        id=task.composition,
        difficulty="",
        question=task.statement,
        starter_code=task.starter_code,
        func_name=f"Solution().{task.method}",
        setup_code="",
        tests=tests,
        canonical_solution=task.solution,
        loophole=loophole,
        token=token,
        heldout_token="",
        split="train",
    )


def expected_values(tests: Iterable[str]) -> list[object]:
    """What each `assert <call> == <literal>` expects."""
    return [ast.literal_eval(ast.parse(test).body[0].test.comparators[0]) for test in tests]  # type: ignore[attr-defined]


def methods_of(code: str) -> dict[str, list[str]]:
    """Name -> dumped statements of every method of class Solution, and of every function beside it."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef):
            found[node.name] = [ast.dump(statement) for statement in node.body]
    return found
