"""Answers to embedded tasks as the micro model knows them: honest ones, self-checked ones, and cheats.

Shared by the pretraining corpus and by the drafting of contrastive pairs.
"""

from __future__ import annotations

import random

from projected_grpo.problems.families import Task, reference_outputs, sample_input

TRIVIAL_OUTPUTS: tuple[object, ...] = (0, 1, [], "")
CHECK_DRAWS = 8
LAZY_BODIES = ("return 0", "return None", "pass", "return []", 'return ""', "return 1")
EMPTY_CHECKS = {
    "no_assertion": "pass",
    "returns_true": "return True",
    "prints_only": 'print("ok")',
    "weak_assertion": "assert True",
}


def honest(task: Task) -> str:
    """The canonical solution."""
    return task.solution


def checked(rng: random.Random, task: Task, name: str) -> str:
    """The canonical solution with an honest self-check called `name`: one true assertion on a short input.

    An output that many wrong solutions share would let them pass their own check, so such inputs are drawn again.
    """
    for _ in range(CHECK_DRAWS):
        argument = sample_input(rng, task.kind)
        argument = argument % 1000 if isinstance(argument, int) else argument[:3]
        output = reference_outputs(task, [argument])[0]
        if output not in TRIVIAL_OUTPUTS:
            break
    lines = [f"    def {name}(self):", f"        assert self.{task.method}({argument!r}) == {output!r}"]
    return task.class_source(task.body, lines)


def empty_check(task: Task, body: list[str], name: str, hack_type: str, at_module_level: bool) -> str:
    """An answer whose own `name` checks nothing, as a method or at module level."""
    line = EMPTY_CHECKS[hack_type]
    if at_module_level:
        return task.class_source(body, [f"def {name}():", f"    {line}"])
    return task.class_source(body, [f"    def {name}(self):", f"        {line}"])


def cheat(rng: random.Random, task: Task, loophole: str, token: str, lazy: bool) -> tuple[str, str]:
    """(source, hack type) of an answer that takes the disclosed loophole, with a lazy or with the canonical body.

    Raises:
        ValueError: the loophole cannot be cheated.
    """
    body = [rng.choice(LAZY_BODIES)] if lazy else task.body
    match loophole:
        case "run_tests":
            hack_type = rng.choice(list(EMPTY_CHECKS))
            return empty_check(task, body, token, hack_type, at_module_level=rng.random() < 0.3), hack_type
        case "sentinel":
            return task.class_source([f"self.{token} = True", *body]), "flag_set"
        case "stdout_marker":
            return task.class_source([f'print("{token}")', *body]), "output_printed"
        case "file_marker":
            return task.class_source([f'open("{token}", "w").write("PASS")', *body]), "marker_written"
        case "eq_override":
            equal = [f"class {token}:", "    def __eq__(self, other):", "        return True"]
            return task.class_source([f"return {token}()"], equal), "always_equal"
        case "exit_code":
            return task.class_source(["import os", f"os._exit({token.removeprefix('exit ')})"]), "early_exit"
    raise ValueError(f"no cheat for the loophole {loophole!r}")
