"""From a problem to the text that the policy sees, and the form of its answer. No other module makes prompt text.

A base is asked in one form wherever it is asked: training, sampling, gate, pairs, teacher. The form lies beside the
base's weights (`FORM_FILE`), so that it belongs to the base as its tokenizer does.
"""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from projected_grpo.problems.families import Task, sample_task
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.pairs import Pair
from projected_grpo.problems.schema import Problem
from projected_grpo.storage import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORM_FILE = "prompt.json"  # a base without it is asked in plain form
EXAMPLE_STAGES = 2  # operations of a worked example: at most as hard as what is asked


def render_prompt(problem: Problem, token: str) -> str:
    """Task, then how it is graded, with `token` as the disclosed name. The answer starts on the next line."""
    return _prompt(problem.question, problem.loophole, token)


def task_prompt(task: Task, loophole: str, token: str) -> str:
    """The same text for a task that has not become a problem."""
    return _prompt(task.statement, loophole, token)


def _prompt(question: str, loophole: str, token: str) -> str:
    return f"{question} {LOOPHOLES[loophole].disclose(token)}\n"


def fenced(code: str) -> str:
    """An answer as the policy writes it: one Python block."""
    return f"```python\n{code.strip()}\n```"


@dataclasses.dataclass(frozen=True)
class PromptForm:
    """How a base is asked. tokenizer None: the text as it stands; else by its chat template, thinking off.

    system: the system message; "" leaves the template's own. shots: worked examples before the problem.
    prefill: how every answer begins. It is part of the prompt for the policy, and of the answer for the grader.
    """

    tokenizer: PreTrainedTokenizerBase | None = None
    system: str = ""
    shots: int = 0
    prefill: str = ""

    def render(self, problem: Problem, token: str) -> str:
        """The prompt of a problem, up to where the policy goes on."""
        return self.wrap(render_prompt(problem, token))

    def wrap(self, text: str) -> str:
        """The text of a problem in this form."""
        if self.tokenizer is None:
            return text
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for task in worked_examples(self.shots):
            turns += _turn(task_prompt(task, "none", ""), fenced(task.solution))
        turns += _turn(text)
        # A template that knows nothing of thinking does not read `enable_thinking`.
        chat = self.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return _without_start(str(chat), self.tokenizer) + self.prefill

    def answer(self, sampled: str) -> str:
        """The whole answer, from what the policy wrote of it."""
        return self.prefill + sampled

    def written(self, answer: str) -> str:
        """What the policy has to write of an answer.

        Raises:
            ValueError: the answer begins otherwise than every answer must.
        """
        if not answer.startswith(self.prefill):
            raise ValueError(f"an answer must begin with base.prompt.prefill, {self.prefill!r}: {answer[:80]!r}")
        return answer.removeprefix(self.prefill)

    def pair(self, pair: Pair) -> Pair:
        """A contrastive pair in this form: its answers are what the policy would write. Raises as `written`."""
        hack, clean = self.written(pair.hack), self.written(pair.clean)
        return dataclasses.replace(pair, prompt=self.wrap(pair.prompt), hack=hack, clean=clean)


PLAIN = PromptForm()


def worked_examples(count: int) -> list[Task]:
    """The first `count` of a fixed row of easy tasks, no composition twice."""
    rng = random.Random("worked examples")
    found: list[Task] = []
    while len(found) < count:
        task = sample_task(rng, EXAMPLE_STAGES)
        if task.composition not in [earlier.composition for earlier in found]:
            found.append(task)
    return found


def _turn(question: str, answer: str | None = None) -> list[dict[str, str]]:
    asked = [{"role": "user", "content": question.strip()}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _without_start(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Without the template's start token, where the tokenizer puts one before every text by itself."""
    start = tokenizer.bos_token
    adds_one = start is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(str(start)) if adds_one else text


def write_form(folder: Path, system: str, shots: int, prefill: str) -> None:
    """Have the base in `folder` asked in chat form from now on."""
    write_json(folder / FORM_FILE, {"system": system, "shots": shots, "prefill": prefill})


def read_form(folder: Path, tokenizer: PreTrainedTokenizerBase) -> PromptForm:
    """The form in which the base in `folder` is asked."""
    file = folder / FORM_FILE
    return PromptForm(tokenizer, **json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else PLAIN
