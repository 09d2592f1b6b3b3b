from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from typing import Any

import pytest
from reading import HELDOUT, TRAINING, expected_values, names_in, read_task

from projected_grpo.problems.families import (
    INT_REDUCERS,
    INT_STEPS,
    KINDS,
    SPLITS,
    Task,
    hidden_tests,
    make_problems,
    split_of,
    tasks_of_split,
)
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.prompts import render_prompt
from projected_grpo.problems.schema import Problem

STAGES = 5
IN_USE = ("run_tests", "sentinel", "stdout_marker", "file_marker", "none")


@pytest.fixture(scope="module")
def train() -> list[Problem]:
    return make_problems(80, STAGES, "train", IN_USE, seed=0)


@pytest.fixture(scope="module")
def test() -> list[Problem]:
    return make_problems(40, STAGES, "test", IN_USE, seed=0)


def passes(problem: Problem, code: str) -> bool:
    """Run in this process: our own code only."""
    namespace: dict[str, Any] = {}
    exec(f"{problem.setup_code}\n{code}", namespace)
    try:
        for assertion in problem.tests:
            exec(assertion, namespace)
    except AssertionError:
        return False
    return True


def composition(problem: Problem) -> str:
    task = read_task(problem.question)
    assert task is not None, problem.question
    return task.composition


def test_canonical_solutions_pass_their_own_tests(train: list[Problem], test: list[Problem]) -> None:
    for problem in [*train, *test]:
        assert passes(problem, problem.canonical_solution), problem.id
    kinds = {problem.id.split("-")[0] for problem in train}
    assert kinds == {kind.name for kind in KINDS}


def test_a_constant_answer_passes_no_problem(train: list[Problem]) -> None:
    for problem in train:
        assert len({repr(value) for value in expected_values(problem.tests)}) >= 3, problem.id
        guess = expected_values(problem.tests)[0]
        assert not passes(problem, f"{problem.starter_code}\n        return {guess!r}"), problem.id


def test_what_is_asked_is_what_is_tested(train: list[Problem]) -> None:
    """The wording alone gives the canonical solution back."""
    for problem in train:
        task = read_task(problem.question)
        assert task is not None
        assert task.solution == problem.canonical_solution
        assert problem.starter_code == "\n".join(problem.canonical_solution.splitlines()[:2])
        assert problem.func_name == f"Solution().{task.method}"
        assert all(text.startswith(f"assert {problem.func_name}({task.kind.argument} = ") for text in problem.tests)


def test_no_wording_is_used_for_two_operations() -> None:
    for kind in KINDS:
        for operations in (kind.steps, kind.reducers):
            phrases = [phrase for operation in operations for phrase in operation.phrases]
            assert len(phrases) == len(set(phrases))
            assert not any("," in phrase or "." in phrase for phrase in phrases)  # what separates stages


def test_a_task_with_uniform_outputs_becomes_no_problem() -> None:
    steps = {operation.name: operation for operation in (*INT_STEPS, *INT_REDUCERS)}
    operations = tuple(steps[name] for name in ("above", "below", "sum"))
    phrases = tuple(operation.phrases[0] for operation in operations)
    nothing_left = Task(KINDS[0], operations, (9, 2, 2), phrases, "solve_list")
    assert hidden_tests(random.Random(0), nothing_left) is None
    something_left = Task(KINDS[0], operations, (2, 9, 2), phrases, "solve_list")
    assert hidden_tests(random.Random(0), something_left) is not None


def test_a_longer_list_starts_with_the_shorter_one() -> None:
    short, long = (make_problems(count, STAGES, "train", IN_USE[:3], seed=4) for count in (10, 25))
    assert long[:10] == short
    assert len(long) == 25


def test_the_seed_decides_and_nothing_else() -> None:
    first, again, other = (make_problems(10, STAGES, "train", IN_USE, seed) for seed in (0, 0, 1))
    assert first == again
    assert not {problem.question for problem in first} & {problem.question for problem in other}


@pytest.mark.parametrize("loopholes", [("run_tests",), ("run_tests", "sentinel", "none"), IN_USE])
def test_loopholes_are_dealt_out_evenly(loopholes: tuple[str, ...]) -> None:
    problems = make_problems(31, STAGES, "train", loopholes, seed=0)
    counts = Counter(problem.loophole for problem in problems)
    assert set(counts) == set(loopholes)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_names_come_from_the_list_of_their_loophole(train: list[Problem], test: list[Problem]) -> None:
    for problem in [*train, *test]:
        names = LOOPHOLES[problem.loophole]
        if problem.loophole == "none":
            assert (problem.token, problem.heldout_token) == ("", "")
        else:
            assert problem.token in names.training_tokens
            assert problem.heldout_token in names.heldout_tokens
    drawn = {problem.heldout_token for problem in test if problem.loophole == "run_tests"}
    assert len(drawn) > 3  # drawn anew for each problem


def test_splits_share_no_composition(train: list[Problem], test: list[Problem]) -> None:
    corpus = {task.composition for task in itertools.islice(tasks_of_split(random.Random(0), STAGES, "corpus"), 3000)}
    of_train, of_test = ([composition(problem) for problem in problems] for problems in (train, test))
    assert len(set(of_train)) == len(train)  # nor do two problems of one split
    assert len(set(of_test)) == len(test)
    assert len(corpus) == 3000
    assert not set(of_train) & set(of_test)
    assert not corpus & {*of_train, *of_test}
    assert {split_of(text) for text in of_train} == {"train"}
    assert {split_of(text) for text in of_test} == {"test"}


def test_splits_stay_apart_whatever_the_seed_and_the_number_of_stages() -> None:
    for stages, seed in ((3, 1), (4, 7), (5, 1)):
        for split in ("train", "test"):
            problems = make_problems(8, stages, split, ("run_tests",), seed)
            assert {split_of(composition(problem)) for problem in problems} == {split}
            assert {problem.split for problem in problems} == {split}
            assert {problem.difficulty for problem in problems} == {f"{stages} stages"}


def test_shares_of_the_splits() -> None:
    counts = Counter(split_of(f"composition {number}") for number in range(20_000))
    shares = [counts[split] / 20_000 for split in SPLITS]
    assert shares == pytest.approx([0.60, 0.25, 0.15], abs=0.015)


def test_constants_and_wording_do_not_make_another_composition() -> None:
    operations = (INT_STEPS[2], INT_REDUCERS[0])
    one = Task(KINDS[0], operations, (3, 4), (operations[0].phrases[0], operations[1].phrases[0]), "solve_list")
    two = Task(KINDS[0], operations, (8, 9), (operations[0].phrases[1], operations[1].phrases[1]), "fold_data")
    assert one.composition == two.composition == "ints:above:sum"
    assert one.statement != two.statement
    digits = Task(KINDS[1], operations, one.constants, one.phrases, one.method)
    assert digits.composition != one.composition


def test_a_prompt_discloses_its_name_and_none_of_the_other_list(train: list[Problem], test: list[Problem]) -> None:
    for problem in [*train, *test]:
        for token, others in ((problem.heldout_token, TRAINING), (problem.token, HELDOUT)):
            prompt = render_prompt(problem, token)
            hint = prompt.removeprefix(problem.question)
            assert names_in(prompt, others) == set()
            assert hint == f" {LOOPHOLES[problem.loophole].disclose(token)}\n"
            if token:
                assert re.findall(r"`(.+?)(?:\(\))?`", hint) == [token]


def test_ids_are_unique(train: list[Problem], test: list[Problem]) -> None:
    ids = [problem.id for problem in [*train, *test]]
    assert len(ids) == len(set(ids))
