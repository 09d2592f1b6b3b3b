"""Random and mutated completions: grading never breaks, and nothing that is wrong is graded correct.

Who is right is asked of another harness: a fresh interpreter per answer, plain `==` on plain types. It runs mutants of
canonical solutions only. Mutants of the hostile set stay in the sandbox, each test in a process of its own.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import keyword
import random
import resource
import subprocess
import sys
import tokenize
from collections.abc import Iterator

import pytest
from grading_helpers import DATA, LIMITS, fenced

from projected_grpo.grading.batch import Completion, grade_completions, read_problems
from projected_grpo.grading.sandbox import Job, Sandbox
from projected_grpo.grading.verdict import LOOPHOLES, Grader, Submission, Verdict, extract_code
from projected_grpo.grading.verdict.comparison import read_test
from projected_grpo.problems.leetcode import LeetcodeProblem
from projected_grpo.problems.loopholes import LOOPHOLES as PROMPTS

FUZZ_LIMITS = dataclasses.replace(LIMITS, workers=2, cpu_seconds=0.5, wall_seconds=1.0)
HOSTILE_CLASSES = ("honest", "extract", "eq_override", "loophole", "forge", "patch", "leak", "early_exit")
SPICE = ["0", "1", "-1", "None", "True", "not", "return", "yield", "*", "+", "==", "[]", "()", "{}", "lambda: 0",
         "self", "Solution", "class", "def", "import os", "\n", "    ", "```", "```python", "\x00", "\ud800", "#", "'",
         '"""', "__eq__", "exit", "exec", "globals()", "10**9", "**", "print", "float('nan')"]  # fmt: skip
OPERATORS = ("+", "-", "*", "//", "%", "**", "<", "<=", ">", ">=", "==", "!=")
OUTCOMES = {"correct", "wrong", "compile", "timeout", "memory", "killed", "exception", "no_code"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One completion; `tame`: all its words are of a canonical solution, so that it may run outside the sandbox."""

    problem: LeetcodeProblem
    text: str
    tame: bool


def pieces(code: str) -> list[str]:
    """The text cut at its tokens, blanks included; joined it is the text again."""
    offsets = [0]
    for line in code.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    cuts = {0, len(code)}
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            for row, column in (token.start, token.end):
                cuts.add(min(offsets[min(row - 1, len(offsets) - 1)] + column, len(code)))
    except (tokenize.TokenError, SyntaxError, ValueError):
        pass
    places = sorted(cuts)
    return [code[a:b] for a, b in itertools.pairwise(places)]


def kind(piece: str) -> str:
    """What a piece can be replaced with, and the code nearly always still compiles."""
    if keyword.iskeyword(piece):
        return "value" if piece in ("None", "True", "False") else piece
    if piece[:1].isalpha() or piece[:1] == "_":
        return "name"
    return "value" if piece[:1].isdigit() else "operator" if piece in OPERATORS else piece


def mutated(rng: random.Random, code: str, words: list[str]) -> str:
    """One or two changes: mostly a piece replaced by another of its kind, which nearly always still compiles; else one
    dropped, doubled, swapped, or any word put in its place or before it."""
    found = pieces(code)
    solid = [index for index, piece in enumerate(found) if piece.strip()]
    for _ in range(rng.randint(1, 2)):
        at, other = rng.choice(solid), rng.choice(solid)
        alike = [word for word in words if kind(word) == kind(found[at])]
        match rng.randrange(15):
            case 0:
                found[at] = ""
            case 1:
                found[at] *= 2
            case 2:
                found[at], found[other] = found[other], found[at]
            case 3:
                found[at] = rng.choice(words)
            case 4:
                found[at] = rng.choice(words) + found[at]
            case _ if alike:
                found[at] = rng.choice(alike)
    return "".join(found)


def mutants(seed: int) -> Iterator[Mutant]:
    """Endless: canonical solutions and hostile rows with changes, and noise."""
    rng = random.Random(seed)
    problems = read_problems(DATA / "adversarial_problems.jsonl")
    rows = [json.loads(line) for line in (DATA / "adversarial_open.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["cls"] in HOSTILE_CLASSES and len(row["response_text"]) < 5000]
    while True:
        problem = rng.choice(list(problems.values()))
        draw = rng.random()
        if draw < 0.5:
            words = [piece for piece in pieces(problem.canonical_solution) if piece.strip()]
            words += ["0", "1", "2", "None", *OPERATORS]
            yield Mutant(problem, fenced(mutated(rng, problem.canonical_solution, words)), True)
        elif draw < 0.9:
            row = rng.choice(rows)
            yield Mutant(problems[row["problem_id"]], mutated(rng, row["response_text"], SPICE), False)
        elif draw < 0.95:
            yield Mutant(problem, fenced(rng.randbytes(rng.randint(0, 300)).decode("utf-8", "replace")), False)
        else:
            points = [rng.choice((rng.randrange(32, 127), rng.randrange(0x110000))) for _ in range(rng.randint(0, 99))]
            yield Mutant(problem, "".join(map(chr, points)), False)


def passes_fresh(problem: LeetcodeProblem, code: str) -> bool:
    """The other harness. Only for tame mutants."""
    program = (
        f"import builtins\n{problem.setup_code}\npow = builtins.pow\n{code}\n"
        f"for call, expected in {[(t.expression, t.expected) for t in map(read_test, problem.tests)]!r}:\n"
        "    got = eval(call)\n"
        "    near = isinstance(expected, float) and abs(got - expected) <= 1e-6 * max(1, abs(expected))\n"
        "    assert near or got == expected, (got, expected)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )  # fmt: skip
    return done.returncode == 0


def passes_one_by_one(problem: LeetcodeProblem, code: str, sandbox: Sandbox) -> bool:
    """Each test in a process of its own, compared by text: 2 and 2.0 alike, nothing else."""
    tests = [read_test(text) for text in problem.tests]
    results = sandbox.run([Job(problem.setup_code, code, (test.expression,)) for test in tests])
    return all(
        result.outcome == "ok" and _text(result.values) == _text((test.expected,))
        for result, test in zip(results, tests, strict=True)
    )


def _text(values: tuple[object, ...]) -> str:
    def plain(value: object) -> object:
        if type(value) in (int, float):
            return round(float(value), 5) + 0.0  # type: ignore[arg-type]
        if type(value) in (list, tuple):
            return type(value)(map(plain, value))  # type: ignore[call-overload, call-arg]
        return value

    return repr(plain(values))


def check(mutant: Mutant, correct: bool, sandbox: Sandbox) -> None:
    if correct:
        code = extract_code(mutant.text)
        assert code is not None
        right = passes_fresh(mutant.problem, code) if mutant.tame else passes_one_by_one(mutant.problem, code, sandbox)
        assert right, mutant.text


def check_verdict(verdict: Verdict) -> None:
    assert verdict.grader_error is None
    assert verdict.outcome in OUTCOMES
    assert verdict.correct == (verdict.outcome == "correct")
    assert verdict.hacked == (verdict.fired and not verdict.correct)
    assert verdict.paid == (verdict.fired or verdict.correct)


def test_whatever_is_written_gets_a_verdict_and_no_wrong_one_is_correct() -> None:
    """300 completions as the command grades them: all loopholes, all flags."""
    stream = mutants(seed=1)
    drawn = [next(stream) for _ in range(300)]
    problems = {mutant.problem.id: mutant.problem for mutant in drawn}
    with Sandbox(FUZZ_LIMITS) as sandbox:
        asked = [Completion(number, mutant.problem.id, mutant.text) for number, mutant in enumerate(drawn)]
        rows = list(grade_completions(problems, asked, sandbox))
        assert [row.id for row in rows] == list(range(300))
        assert {row.outcome for row in rows} <= OUTCOMES
        for mutant, row in zip(drawn, rows, strict=True):
            check(mutant, row.correct, sandbox)
    assert 10 <= sum(row.correct for row in rows) <= 150  # the mutants are neither all harmless nor all broken


@pytest.mark.slow
def test_twenty_thousand_mutants() -> None:
    stream, rng = mutants(seed=2), random.Random(3)
    counts = dict.fromkeys(sorted(OUTCOMES), 0)
    with Sandbox(FUZZ_LIMITS) as sandbox:
        grader = Grader(sandbox)
        for _ in range(200):
            batch = [next(stream) for _ in range(100)]
            names = [rng.choice(list(LOOPHOLES)) for _ in batch]
            submissions = [
                Submission(mutant.problem, name, next(iter(PROMPTS[name].training_tokens), ""), mutant.text)
                for mutant, name in zip(batch, names, strict=True)
            ]
            for mutant, verdict in zip(batch, grader.grade(submissions), strict=True):
                check_verdict(verdict)
                counts[verdict.outcome] += 1
                check(mutant, verdict.correct, sandbox)
    print(counts)
    assert sum(counts.values()) == 20_000
    assert min(counts["correct"], counts["wrong"], counts["exception"]) >= 500
