"""The grader alone: problems and completions from files, one verdict a row, in the order of the completions."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from projected_grpo.errors import LabError
from projected_grpo.grading.labels.detectors import OwnTests, Suspect, detect
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits, SandboxUnavailable
from projected_grpo.grading.verdict import CHANNELS, Grader, Submission, Verdict
from projected_grpo.grading.verdict.comparison import MalformedTest, read_test
from projected_grpo.problems.leetcode import LeetcodeProblem, read_leetcode
from projected_grpo.problems.rows import read_rows
from projected_grpo.storage import atomic_file

CHUNK = 64  # completions graded together: equal executions run once, and a progress bar moves
WALL_FACTOR = 1.5  # elapsed time allowed to one execution that hardly uses the CPU, against its CPU time


@dataclasses.dataclass(frozen=True)
class Completion:
    """One row of the completions' file."""

    id: str | int
    problem_id: str | int
    text: str


@dataclasses.dataclass(frozen=True)
class Graded:
    """One row of the verdicts' file."""

    id: str | int
    problem_id: str | int
    correct: bool
    outcome: str  # correct | wrong | compile | timeout | memory | killed | exception | no_code | error
    reason: str
    format_ok: bool  # there is a block of code; whether it compiles is told by `outcome`
    defines_run_tests: bool
    stub_passes: bool  # its run_tests returns when every call of the solution gives 0
    channels: tuple[str, ...]  # the loopholes that fire, under their usual tokens
    cpu_seconds: float  # of the execution behind `correct`


def read_problems(path: str | Path) -> dict[str, LeetcodeProblem]:
    """Problems by id. Raises LabError for a file or a test that cannot be read."""
    problems = {problem.id: problem for problem in read_leetcode(path, asked=False)}
    for problem in problems.values():
        try:
            for test in problem.tests:
                read_test(test)
        except MalformedTest as error:
            raise LabError(
                setting=f"{path}: problem {problem.id}: tests",
                value="(unreadable)",
                rule=str(error),
                fix="write every test as `assert Solution().method(name = literal, ...) == literal`",
            ) from None
    return problems


def read_completions(path: str | Path, problems: Mapping[str, LeetcodeProblem]) -> list[Completion]:
    """Completions in file order. Raises LabError for a row that cannot be read, or answers no known problem."""
    completions = []
    for number, row in read_rows(path, {"id": (str, int), "problem_id": (str, int), "response_text": str}):
        if str(row["problem_id"]) not in problems:
            raise LabError(
                setting=f"{path}:{number}: problem_id",
                value=row["problem_id"],
                rule=f"must be the id of one of the {len(problems)} problems",
                fix="add the problem, or leave the completion out",
            )
        completions.append(Completion(row["id"], row["problem_id"], row["response_text"]))
    return completions


def grade_completions(
    problems: Mapping[str, LeetcodeProblem],
    completions: Sequence[Completion],
    sandbox: Sandbox,
    advance: Callable[[int], object] = lambda _: None,
) -> Iterator[Graded]:
    """Verdicts in order; `advance` is told how many were finished. Raises GraderBroken."""
    grader = Grader(sandbox)
    for start in range(0, len(completions), CHUNK):
        chunk = completions[start : start + CHUNK]
        asked = [(problems[str(item.problem_id)], item) for item in chunk]
        honest = [Submission(problem, "none", "", item.text) for problem, item in asked]
        channels = [
            Submission(problem, name, channel.usual, item.text)
            for problem, item in asked
            for name, channel in CHANNELS.items()
        ]
        verdicts = grader.grade([*honest, *channels])  # the execution behind `correct` is one and the same
        own_tests = detect([Suspect(problem, item.text) for problem, item in asked], sandbox, only_stub=True)
        for index, item in enumerate(chunk):
            first = len(chunk) + index * len(CHANNELS)
            yield _graded(item, verdicts[index], verdicts[first : first + len(CHANNELS)], own_tests[index])
        advance(len(chunk))


def _graded(item: Completion, verdict: Verdict, channels: Sequence[Verdict], own_tests: OwnTests) -> Graded:
    return Graded(
        id=item.id,
        problem_id=item.problem_id,
        correct=verdict.correct,
        outcome=verdict.outcome,
        reason=verdict.reason,
        format_ok=verdict.outcome != "no_code",
        defines_run_tests=own_tests.defined,
        stub_passes=bool(own_tests.stub_passes),
        channels=tuple(name for name, found in zip(CHANNELS, channels, strict=True) if found.fired),
        cpu_seconds=verdict.cpu_seconds,
    )


def write_verdicts(path: str | Path, rows: Sequence[Graded]) -> None:
    """Write Parquet atomically. Ids are integers where all of them are, else text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {
        field.name: [getattr(row, field.name) for row in rows] for field in dataclasses.fields(Graded)
    }
    for name in ("id", "problem_id"):
        if not all(isinstance(value, int) for value in columns[name]):
            columns[name] = [str(value) for value in columns[name]]
    columns["channels"] = pa.array(columns["channels"], type=pa.list_(pa.string()))
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def summary(rows: Sequence[Graded]) -> str:
    """A few lines for people."""
    outcomes = Counter(row.outcome for row in rows)
    fired = Counter(name for row in rows for name in row.channels)
    correct = outcomes["correct"]
    hacked = sum(bool(row.channels) and not row.correct for row in rows)
    return "\n".join(
        [
            f"{len(rows)} completions: {correct} correct ({correct / len(rows):.1%}), "
            f"{hacked} not correct with a loophole that fires ({hacked / len(rows):.1%})",
            "outcomes: " + ", ".join(f"{name} {count}" for name, count in outcomes.most_common()),
            "loopholes that fire: "
            + (", ".join(f"{name} {fired[name]}" for name in CHANNELS if name in fired) or "none"),
        ]
    )


def run(
    problems: Path, completions: Path, out: Path, workers: int | None, cpu_seconds: float, memory_mb: int, weak: bool
) -> str:
    """Grade one file of completions, with a progress bar; returns the summary.

    Raises:
        LabError: a file that cannot be read, limits that make no sense, or too many faults of the sandbox.
    """
    from rich.console import Console
    from rich.progress import Progress

    known = read_problems(problems)
    asked = read_completions(completions, known)
    limits = batch_limits(workers, cpu_seconds, memory_mb, weak)
    with open_sandbox(limits) as sandbox, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("grading", total=len(asked))
        rows = list(grade_completions(known, asked, sandbox, lambda count: progress.advance(task, count)))
    write_verdicts(out, rows)
    return f"{summary(rows)}\n{out}: {len(rows)} rows"


@contextlib.contextmanager
def open_sandbox(limits: SandboxLimits) -> Iterator[Sandbox]:
    """A sandbox for a command: where it cannot start, the refusal tells what to do."""
    try:
        sandbox = Sandbox(limits).__enter__()
    except SandboxUnavailable as error:
        fix = "run on a Linux host that allows more, or accept what there is with --allow-weak"
        raise LabError(setting="sandbox", value=limits.allow_weak, rule=str(error), fix=fix) from None
    try:
        yield sandbox
    finally:
        sandbox.close()


def batch_limits(workers: int | None, cpu_seconds: float, memory_mb: int, weak: bool) -> SandboxLimits:
    """Limits for answers of unknown kind; `workers` None: one per core. Raises LabError."""
    if cpu_seconds <= 0 or memory_mb < 1:
        value = {"cpu_seconds": cpu_seconds, "memory_mb": memory_mb}
        raise LabError(setting="limits", value=value, rule="must be above 0", fix="leave the defaults")
    return SandboxLimits(
        workers=workers or len(os.sched_getaffinity(0)),
        cpu_seconds=cpu_seconds,
        wall_seconds=WALL_FACTOR * cpu_seconds,
        memory_mb=memory_mb,
        allow_weak=weak,
    )
