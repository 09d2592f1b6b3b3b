"""From a problem to the text that the policy sees, and the form of its answer."""

from __future__ import annotations

from projected_grpo.problems.families import Task
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.schema import Problem


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
