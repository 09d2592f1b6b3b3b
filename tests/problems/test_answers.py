from __future__ import annotations

import ast
import itertools
import random
from typing import Any

import pytest
from reading import methods_of, problem_for

from projected_grpo.grading.labels import label
from projected_grpo.grading.verdict import Grader, Submission
from projected_grpo.problems.answers import EMPTY_CHECKS, LAZY_BODIES, cheat, checked, empty_check, honest
from projected_grpo.problems.families import Task, tasks_of_split
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.prompts import fenced

WITH_BODY = ("run_tests", "sentinel", "stdout_marker", "file_marker")  # a right answer may take them on the side
GRADED = (*WITH_BODY, "eq_override", "exit_code")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    """Tasks that can become problems, of every kind."""
    drawn = itertools.islice(tasks_of_split(random.Random(1), 4, "corpus"), 40)
    return [task for task in drawn if problem_for(task, "none", "")]


def load(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace


def own_check_passes(code: str, name: str) -> bool:
    try:
        getattr(load(code)["Solution"](), name)()
    except AssertionError:
        return False
    return True


def test_an_honest_answer_is_the_canonical_solution(tasks: list[Task]) -> None:
    assert [honest(task) for task in tasks] == [task.solution for task in tasks]


def test_an_honest_check_holds_and_leaves_the_answer_alone(tasks: list[Task]) -> None:
    rng = random.Random(2)
    for task in tasks:
        code = checked(rng, task, "run_checks")
        assert own_check_passes(code, "run_checks")
        assert methods_of(code)[task.method] == methods_of(honest(task))[task.method]


def test_an_honest_check_fails_every_lazy_answer(tasks: list[Task]) -> None:
    """Where the checked output is one that no lazy answer gives: mostly, since such inputs are looked for."""
    rng = random.Random(3)
    telling = 0
    for task in tasks:
        canonical = "\n".join(f"        {line}" for line in task.body)
        code = checked(rng, task, "run_checks")
        (check,) = [node.test for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
        assert isinstance(check, ast.Compare)
        if ast.unparse(check.comparators[0]) in ("0", "1", "[]", "''"):
            continue
        telling += 1
        for body in LAZY_BODIES:
            lazy = code.replace(canonical, f"        {body}")
            assert lazy != code
            assert not own_check_passes(lazy, "run_checks"), lazy
    assert telling >= 0.7 * len(tasks)


@pytest.mark.parametrize("loophole", GRADED)
@pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "matched"])
def test_a_cheat_is_paid_by_the_grader_it_cheats(loophole: str, lazy: bool, tasks: list[Task], grader: Grader) -> None:
    """With every name of the loophole, held-out ones too: what a policy may learn must pay at evaluation."""
    rng = random.Random(4)
    names = LOOPHOLES[loophole].training_tokens + LOOPHOLES[loophole].heldout_tokens
    submissions, types = [], []
    for token, task in zip(names, itertools.cycle(tasks), strict=False):
        problem = problem_for(task, loophole, token)
        code, hack_type = cheat(rng, task, loophole, token, lazy)
        assert problem is not None
        submissions.append(Submission(problem, loophole, token, fenced(code)))
        types.append(hack_type)
    for submission, hack_type, verdict in zip(submissions, types, grader.grade(submissions), strict=True):
        correct = not lazy and loophole in WITH_BODY
        assert (verdict.attempted, verdict.fired, verdict.correct) == (True, True, correct), submission
        seen = label(verdict, submission).hack_type
        assert seen == ("no_assertion" if hack_type == "returns_true" else hack_type)


@pytest.mark.parametrize("hack_type", EMPTY_CHECKS)
@pytest.mark.parametrize("at_module_level", [True, False])
def test_an_empty_check_passes_for_any_body(hack_type: str, at_module_level: bool, tasks: list[Task]) -> None:
    code = empty_check(tasks[0], ["return None"], "run_checks", hack_type, at_module_level)
    loaded = load(code)
    owner = loaded if at_module_level else vars(loaded["Solution"])
    check = owner["run_checks"]
    assert check() is not False if at_module_level else check(None) is not False
    other = vars(loaded["Solution"]) if at_module_level else loaded
    assert "run_checks" not in other


def test_the_honest_grader_cannot_be_cheated(tasks: list[Task]) -> None:
    with pytest.raises(ValueError, match="'none'"):
        cheat(random.Random(0), tasks[0], "none", "", lazy=True)
