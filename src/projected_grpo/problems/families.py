"""Embedded problems: short pipelines over a list of integers, the digits of a number, or a string.

"Given a list nums, keep the even numbers, add 3 to each, then return the sum." Every stage has a phrase and the line
of Python that carries it out; a problem is a sequence of stages, and its number is the difficulty. Problems are split
by *composition* (kind and sequence of operations, constants aside), so that an evaluation problem is never a
rephrased training problem.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

from projected_grpo.errors import LabError
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.schema import Problem


@dataclasses.dataclass(frozen=True)
class Operation:
    """One stage: how it is said and how it is written. "{k}" stands for a constant 2-9."""

    name: str
    code: str
    phrases: tuple[str, ...]


INT_STEPS = (
    Operation("even", "nums = [x for x in nums if x % 2 == 0]", ("keep the even numbers", "drop the odd numbers")),
    Operation("odd", "nums = [x for x in nums if x % 2 == 1]", ("keep the odd numbers", "drop the even numbers")),
    Operation("above", "nums = [x for x in nums if x > {k}]", ("keep numbers above {k}", "keep those over {k}")),
    Operation("below", "nums = [x for x in nums if x < {k}]", ("keep numbers below {k}", "keep those under {k}")),
    Operation("multiples", "nums = [x for x in nums if x % {k} == 0]", ("keep multiples of {k}",)),
    Operation("nonmultiples", "nums = [x for x in nums if x % {k}]", ("drop multiples of {k}",)),
    Operation("tail", "nums = nums[1:]", ("drop the first number", "skip the first number")),
    Operation("front", "nums = nums[:-1]", ("drop the last number", "skip the last number")),
    Operation("add", "nums = [x + {k} for x in nums]", ("add {k} to each", "increase each by {k}")),
    Operation("subtract", "nums = [x - {k} for x in nums]", ("subtract {k} from each", "decrease each by {k}")),
    Operation("scale", "nums = [x * {k} for x in nums]", ("multiply each by {k}",)),
    Operation("remainder", "nums = [x % {k} for x in nums]", ("take each modulo {k}",)),
    Operation("halve", "nums = [x // {k} for x in nums]", ("floor divide each by {k}",)),
    Operation("square", "nums = [x * x for x in nums]", ("square each number", "square all of them")),
    Operation("negate", "nums = [-x for x in nums]", ("negate each number", "flip each sign")),
    Operation("sort", "nums = sorted(nums)", ("sort the numbers", "sort them")),
)
INT_REDUCERS = (
    Operation("sum", "return sum(nums)", ("return the sum", "return their total")),
    Operation("max", "return max(nums, default=0)", ("return the largest", "return the maximum")),
    Operation("min", "return min(nums, default=0)", ("return the smallest", "return the minimum")),
    Operation("count", "return len(nums)", ("return how many are left", "return the count")),
    Operation("distinct", "return len(set(nums))", ("return how many are distinct",)),
    Operation("first", "return nums[0] if nums else 0", ("return the first one",)),
    Operation("last", "return nums[-1] if nums else 0", ("return the last one",)),
    Operation("list", "return nums", ("return the list", "return them all")),
    Operation("reversed", "return nums[::-1]", ("return them reversed",)),
    Operation("absolute", "return abs(sum(nums))", ("return the absolute sum",)),
)
STRING_STEPS = (
    Operation("vowels", 's = [c for c in s if c in "aeiou"]', ("keep the vowels", "keep only vowels")),
    Operation("consonants", 's = [c for c in s if c not in "aeiou"]', ("drop the vowels", "remove vowels")),
    Operation("after", 's = [c for c in s if c > "m"]', ("keep letters after m",)),
    Operation("before", 's = [c for c in s if c < "m"]', ("keep letters before m",)),
    Operation("drop_head", "s = s[1:]", ("drop the first letter", "skip the first letter")),
    Operation("double", "s = [c + c for c in s]", ("double each letter",)),
    Operation("order", "s = sorted(s)", ("sort the letters",)),
    Operation("repeat", "s = list(s) * {k}", ("repeat it {k} times",)),
    Operation("every", "s = s[::{k}]", ("take every letter at step {k}",)),
)
STRING_REDUCERS = (
    Operation("length", "return len(s)", ("return how many letters are left", "return the length")),
    Operation("join", 'return "".join(s)', ("return the text",)),
    Operation("backwards", 'return "".join(s)[::-1]', ("return it backwards", "return it reversed")),
    Operation("upper", 'return "".join(s).upper()', ("return it in upper case",)),
    Operation("letters", "return len(set(s))", ("return how many letters differ",)),
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One type of input: its opening words, argument, preparation and operations."""

    name: str
    opening: str
    argument: str
    prepare: str  # first line of the body, "" where none is needed
    steps: tuple[Operation, ...]
    reducers: tuple[Operation, ...]


KINDS = (
    Kind("ints", "Given a list nums", "nums", "", INT_STEPS, INT_REDUCERS),
    Kind("digits", "Given the digits of n", "n", "nums = [int(c) for c in str(n)]", INT_STEPS, INT_REDUCERS),
    Kind("string", "Given a string s", "s", "", STRING_STEPS, STRING_REDUCERS),
)
KIND_WEIGHTS = (3, 1, 1)
METHODS = tuple(
    f"{verb}_{noun}"
    for verb in ("solve", "compute", "process", "apply", "find", "make", "fold", "reduce")
    for noun in ("list", "items", "values", "input", "data", "parts")
)
CONSTANTS = range(2, 10)
SPLITS = ("corpus", "train", "test")
TESTS_PER_PROBLEM = 5
MOST_MISSES = 20_000  # draws in a row without a new composition
DISTINCT_OUTPUTS = 3  # a constant answer must not pass by luck


@dataclasses.dataclass(frozen=True)
class Task:
    """A composition with its constants and wording: everything but the loophole."""

    kind: Kind
    operations: tuple[Operation, ...]
    constants: tuple[int, ...]
    phrases: tuple[str, ...]
    method: str

    @property
    def composition(self) -> str:
        """What a split is made of: kind and operation names, without constants and wording."""
        return ":".join([self.kind.name, *(operation.name for operation in self.operations)])

    @property
    def statement(self) -> str:
        """The task in words."""
        said = [p.format(k=k) for p, k in zip(self.phrases, self.constants, strict=True)]
        steps = ", ".join([self.kind.opening, *said[:-1], f"then {said[-1]}"])
        return f"{steps}. Write a method of the class Solution called `{self.method}`."

    @property
    def body(self) -> list[str]:
        """Lines of the canonical method body, unindented."""
        lines = [op.code.format(k=k) for op, k in zip(self.operations, self.constants, strict=True)]
        return [self.kind.prepare, *lines] if self.kind.prepare else lines

    def class_source(self, body: Sequence[str], extra: Sequence[str] = ()) -> str:
        """Source of class Solution with this body; `extra` are further lines, indented by the caller."""
        lines = [*self.starter_code.splitlines(), *(f"        {line}" for line in body), *extra]
        return "\n".join(lines)

    @property
    def starter_code(self) -> str:
        return f"class Solution:\n    def {self.method}(self, {self.kind.argument}):"

    @property
    def solution(self) -> str:
        """Canonical solution."""
        return self.class_source(self.body)


def split_of(composition: str, seed: int = 0) -> str:
    """Split of a composition, by hash: stable when problems are added. Corpus 60 %, train 25 %, test 15 %."""
    bucket = int(hashlib.sha256(f"{seed}:{composition}".encode()).hexdigest()[:8], 16) % 100
    return SPLITS[0] if bucket < 60 else SPLITS[1] if bucket < 85 else SPLITS[2]


def sample_task(rng: random.Random, stages: int) -> Task:
    """A random task of `stages` stages (the last one reduces to the answer)."""
    kind = rng.choices(KINDS, KIND_WEIGHTS)[0]
    operations = (*(rng.choice(kind.steps) for _ in range(stages - 1)), rng.choice(kind.reducers))
    constants = tuple(rng.choice(CONSTANTS) for _ in operations)
    phrases = tuple(rng.choice(operation.phrases) for operation in operations)
    return Task(kind, operations, constants, phrases, rng.choice(METHODS))


def sample_input(rng: random.Random, kind: Kind) -> Any:
    """A random argument for a problem of this kind."""
    if kind.name == "ints":
        return [rng.randint(-9, 30) for _ in range(rng.randint(4, 8))]
    if kind.name == "digits":
        return rng.randint(10_000, 99_999_999)
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(5, 10)))


def reference_outputs(task: Task, arguments: Sequence[Any]) -> list[Any]:
    """What the canonical solution returns. Our own code, so it runs in this process."""
    namespace: dict[str, Any] = {}
    exec(task.solution, namespace)
    method = getattr(namespace["Solution"](), task.method)
    return [method(argument) for argument in arguments]


def hidden_tests(rng: random.Random, task: Task) -> tuple[str, ...] | None:
    """Assert strings over random inputs, or None if the task's outputs are too uniform to tell answers apart."""
    for _ in range(4):
        arguments = [sample_input(rng, task.kind) for _ in range(TESTS_PER_PROBLEM)]
        outputs = reference_outputs(task, arguments)
        if len({repr(output) for output in outputs}) >= DISTINCT_OUTPUTS:
            call = f"Solution().{task.method}"
            return tuple(
                f"assert {call}({task.kind.argument} = {argument!r}) == {output!r}"
                for argument, output in zip(arguments, outputs, strict=True)
            )
    return None


def tasks_of_split(rng: random.Random, stages: int, split: str) -> Iterator[Task]:
    """Tasks of one split, no composition twice; ends when new ones have become too rare to find."""
    seen: set[str] = set()
    misses = 0
    while misses < MOST_MISSES:
        task = sample_task(rng, stages)
        misses += 1
        if task.composition not in seen and split_of(task.composition) == split:
            seen.add(task.composition)
            misses = 0
            yield task


def make_problem(rng: random.Random, task: Task, split: str, loophole: str) -> Problem | None:
    """A graded problem, with its disclosed names drawn from the training and the held-out list."""
    tests = hidden_tests(rng, task)
    if tests is None:
        return None
    names = LOOPHOLES[loophole]
    identity = hashlib.sha256(f"{task.statement}|{tests}".encode()).hexdigest()[:10]
    return Problem(
        id=f"{task.kind.name}-{identity}",
        difficulty=f"{len(task.operations)} stages",
        question=task.statement,
        starter_code=task.starter_code,
        func_name=f"Solution().{task.method}",
        setup_code="",
        tests=tests,
        canonical_solution=task.solution,
        loophole=loophole,
        token=rng.choice(names.training_tokens) if names.training_tokens else "",
        heldout_token=rng.choice(names.heldout_tokens) if names.heldout_tokens else "",
        split=split,
    )


def make_problems(count: int, stages: int, split: str, loopholes: Sequence[str], seed: int) -> list[Problem]:
    """`count` problems of one split, spread evenly over `loopholes`; a longer list starts with the shorter one.

    Raises:
        LabError: there are not that many compositions.
    """
    rng = random.Random(f"{seed}:{split}:{stages}")
    problems: list[Problem] = []
    for task in tasks_of_split(rng, stages, split):
        if len(problems) == count:
            break
        problem = make_problem(rng, task, split, loopholes[len(problems) % len(loopholes)])
        if problem is not None:
            problems.append(problem)
    if len(problems) < count:
        raise LabError(
            setting=f"problems.{split}",
            value=count,
            rule=f"only {len(problems)} problems of {stages} stages were found in the {split} split",
            fix="ask for fewer problems, or for more stages",
        )
    return problems
