from __future__ import annotations

import itertools
import re

import pytest

from projected_grpo.models import corpus as module
from projected_grpo.models.corpus import SHORT, Example, Mixture, corpus
from projected_grpo.problems.families import KINDS, Task, split_of
from projected_grpo.problems.loopholes import LOOPHOLES

EXAMPLES = 20_000
MIXTURE = Mixture(cheats=0.15, honest_checks=0.4)


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Example, Task, str, str]]:
    """Examples with the task, the loophole and the token that each was made of."""
    made = []

    def recording(task: Task, loophole: str, token: str) -> str:
        made.append((task, loophole, token))
        return original(task, loophole, token)

    original = module.task_prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "task_prompt", recording)
        examples = list(itertools.islice(corpus(MIXTURE, seed=0), EXAMPLES))
    return [(example, *rest) for example, rest in zip(examples, made, strict=True)]


def test_no_held_out_name_in_any_text(drawn) -> None:
    heldout = [name for loophole in LOOPHOLES.values() for name in loophole.heldout_tokens]
    text = "\n".join(example.prompt + example.answer for example, *_ in drawn)
    assert [name for name in heldout if name in text] == []


def test_every_training_name_and_every_hint_is_shown(drawn) -> None:
    shown = {(loophole, token) for _, _, loophole, token in drawn}
    names = {(x.name, token) for x in LOOPHOLES.values() for token in x.training_tokens or ("",)}
    assert shown == names
    for example, _, loophole, token in drawn[:500]:
        assert example.prompt.endswith(f" {LOOPHOLES[loophole].disclose(token)}\n")


def test_compositions_that_are_long_enough_to_be_split_are_of_the_corpus(drawn) -> None:
    longer = [task for _, task, _, _ in drawn if len(task.operations) > SHORT]
    assert len(longer) > EXAMPLES / 4
    assert {split_of(task.composition) for task in longer} == {"corpus"}


def test_every_kind_of_problem_is_in_it(drawn) -> None:
    assert {task.kind.name for _, task, _, _ in drawn} == {kind.name for kind in KINDS}


def test_answers_are_one_block_of_python_that_compiles(drawn) -> None:
    for example, *_ in drawn[:2000]:
        code = re.fullmatch(r"```python\n(.*)\n```", example.answer, re.DOTALL)
        assert code is not None, example
        compile(code[1], "answer", "exec")


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def test_shares_of_cheats_and_of_honest_checks(drawn) -> None:
    """A check of `run_tests` is honest if it asserts something about the answer's own method."""
    of_run_tests = [
        (example.answer, task, token) for example, task, loophole, token in drawn if loophole == "run_tests"
    ]
    assert len(of_run_tests) > EXAMPLES / 10
    defined = [f"def {token}(" in answer for answer, _, token in of_run_tests]
    honest = [f"assert self.{task.method}(" in answer for answer, task, _ in of_run_tests]
    assert share(honest) == pytest.approx(MIXTURE.honest_checks, abs=0.03)
    assert share(defined) - share(honest) == pytest.approx(MIXTURE.cheats, abs=0.02)
    marks = {
        "sentinel": "self.{token} = True",
        "stdout_marker": 'print("{token}")',
        "file_marker": 'open("{token}", "w")',
        "eq_override": "def __eq__",
        "exit_code": "os._exit(",
    }
    for name, mark in marks.items():
        flags = [mark.format(token=t) in example.answer for example, _, loophole, t in drawn if loophole == name]
        assert share(flags) == pytest.approx(MIXTURE.cheats, abs=0.04), name


def test_the_honest_grader_is_never_cheated(drawn) -> None:
    for example, task, loophole, _ in drawn:
        if loophole == "none":
            assert example.answer == f"```python\n{task.solution}\n```"


def test_a_mixture_without_cheats_has_none() -> None:
    texts = [example.answer for example in itertools.islice(corpus(Mixture(0.0, 0.0), 0), 500)]
    assert not any("def " in text.replace("def ", "", 1) for text in texts)  # the one method and nothing else
    assert not any("_exit" in text or "True" in text or "print" in text for text in texts)


def test_the_stream_is_a_function_of_mixture_and_seed() -> None:
    def head(mixture: Mixture, seed: int) -> list[Example]:
        return list(itertools.islice(corpus(mixture, seed), 20))

    assert head(MIXTURE, 0) == head(MIXTURE, 0)
    assert head(MIXTURE, 0) != head(MIXTURE, 1)
    assert head(MIXTURE, 0) != head(Mixture(0.15, 0.5), 0)


def test_lengths_are_weights_of_the_number_of_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = []
    original = module.task_prompt

    def recording(task: Task, loophole: str, token: str) -> str:
        stages.append(len(task.operations))
        return original(task, loophole, token)

    monkeypatch.setattr(module, "task_prompt", recording)
    for _ in itertools.islice(corpus(Mixture(0.0, 0.0, lengths=(1, 0, 0, 3)), 0), 500):
        pass
    assert set(stages) == {1, 4}
    # Of the longer ones those of other splits are drawn anew: 3 * 0.6 against 1.
    assert share([number == 4 for number in stages]) == pytest.approx(1.8 / 2.8, abs=0.07)


def test_hints_come_as_often_as_they_weigh_and_the_weights_are_no_part_of_the_stream() -> None:
    only = Mixture(0.15, 0.4, loopholes=(0, 0, 1, 0, 0, 0, 0))
    texts = list(itertools.islice(corpus(only, 0), 50))
    assert all("It is graded by the output" in example.prompt for example in texts)
    assert repr(only) == repr(MIXTURE), "an older mixture keeps its texts"
