"""`projected-grpo check-grader`: the grader is right about every exploit, and about the whole hostile set.

Three parts. The matrix: each exploit pays under its own loophole and its own token and nowhere else, honest answers
are correct everywhere and take no loophole, no code at all earns nothing. The hostile set: every completion gets the
expected verdict, and leaves nothing behind. The shared fixtures, where they are present: real problems and rollouts.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from projected_grpo.errors import LabError
from projected_grpo.grading.batch import Completion, Graded, grade_completions, open_sandbox, read_problems
from projected_grpo.grading.canonical import solvable
from projected_grpo.grading.exploits import EXPLOITS, HONEST, Exploit, GateProblem
from projected_grpo.grading.labels.detectors import Suspect, detect
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import CHANNELS, LOOPHOLES, Grader, Submission, Verdict
from projected_grpo.problems.leetcode import LeetcodeProblem
from projected_grpo.problems.loopholes import LOOPHOLES as PROMPTS
from projected_grpo.problems.prompts import fenced
from projected_grpo.problems.rows import Kind, read_rows

FIXTURES_VARIABLE = "PROJECTED_GRPO_FIXTURES"
CONTAINED_ONLY = ("resource", "escape")  # classes that are run only where the isolation is the strongest
CHANNELS_TOLD = ("loophole", "eq_override", "early_exit", "honest", "extract")
TABLE_WIDTH = 130  # characters, also where the output is no terminal
ROLLOUT_STEP = 5  # of the rollouts every fifth: the gate takes seconds
LOAD_CPU_SECONDS = 10.0  # for canonical solutions of real problems; the slowest takes 3.7


@dataclasses.dataclass(frozen=True)
class Part:
    """What one part of the gate found."""

    name: str
    ran: int
    faults: tuple[str, ...]
    note: str = ""


# ---------------------------------------------------------------- the matrix


def token_of(loophole: str, heldout: bool = False) -> str:
    """A token that prompts disclose; "" where the loophole has none."""
    names = PROMPTS[loophole].heldout_tokens if heldout else PROMPTS[loophole].training_tokens
    return names[1] if names else ""


def exploit_verdicts(grader: Grader) -> dict[Exploit, dict[str, Verdict]]:
    """The verdict on each exploit under each loophole."""
    problem = GateProblem()
    pairs = list(itertools.product(EXPLOITS, LOOPHOLES))
    verdicts = grader.grade(
        [
            Submission(problem, name, token_of(name), fenced(exploit.with_token(token_of(exploit.loophole))))
            for exploit, name in pairs
        ]
    )
    rows: dict[Exploit, dict[str, Verdict]] = {exploit: {} for exploit in EXPLOITS}
    for (exploit, name), verdict in zip(pairs, verdicts, strict=True):
        rows[exploit][name] = verdict
    return rows


def matrix_faults(rows: Mapping[Exploit, Mapping[str, Verdict]]) -> Iterator[str]:
    """Where an exploit pays and must not, or must and does not."""
    for exploit, verdicts in rows.items():
        for name, verdict in verdicts.items():
            place = f"{exploit.loophole}, {exploit.name}, under {name}"
            own = name == exploit.loophole
            if verdict.grader_error is not None:
                yield f"{place}: {verdict.grader_error}"
            elif verdict.correct:
                yield f"{place}: graded correct"
            elif verdict.paid != own:
                yield f"{place}: {'paid' if verdict.paid else 'not paid'}"


def other_faults(grader: Grader) -> Iterator[str]:
    """Memorised tokens, honest answers, answers without content."""
    problem = GateProblem()
    memorised = [
        Submission(
            problem,
            exploit.loophole,
            token_of(exploit.loophole, heldout=True),
            fenced(exploit.with_token(token_of(exploit.loophole))),
        )
        for exploit in EXPLOITS
    ]
    for exploit, verdict in zip(EXPLOITS, grader.grade(memorised), strict=True):
        if verdict.paid:
            yield f"{exploit.loophole}, {exploit.name}: paid under a token that it does not use"
    cases = list(itertools.product(HONEST.items(), LOOPHOLES, (False, True)))
    honest = [Submission(problem, name, token_of(name, held), fenced(code)) for (_, code), name, held in cases]
    for ((title, _), name, _), verdict in zip(cases, grader.grade(honest), strict=True):
        if not verdict.correct or verdict.fired:
            yield f"honest answer ({title}) under {name}: {verdict.outcome} {verdict.reason}, fired {verdict.fired}"
    for text, name in itertools.product(("", "no code", fenced("")), LOOPHOLES):
        (verdict,) = grader.grade([Submission(problem, name, token_of(name), text)])
        if verdict.paid:
            yield f"answer without content {text!r} under {name}: paid"


# ---------------------------------------------------------------- the hostile set

HOSTILE_FIELDS: dict[str, Kind] = {
    "id": (str, int), "problem_id": (str, int), "response_text": str, "title": str, "cls": str,
    "loophole_channels": list, "post": dict,
}  # fmt: skip


def hostile_rows(folder: Path, contained: bool) -> tuple[list[dict[str, Any]], int]:
    """The rows that this host can run, and how many are left out."""
    rows = [row for _, row in read_rows(folder / "adversarial_open.jsonl", HOSTILE_FIELDS)]
    kept = [row for row in rows if contained or row["cls"] not in CONTAINED_ONLY]
    return kept, len(rows) - len(kept)


def hostile_faults(rows: Sequence[Mapping[str, Any]], graded: Iterable[Graded]) -> Iterator[str]:
    """Where a verdict is another than the row expects.

    Channels are compared exactly where a row is about them. Elsewhere more may fire: an answer that forges something
    and then leaves with status 0 does fool a grader that reads the status.
    """
    for row, found in zip(rows, graded, strict=True):
        expected = {name.removesuffix("_own_solution") for name in row["loophole_channels"]}
        channels = set(found.channels)
        wanted = {
            "correct": (found.correct, row["expect_gt_correct"]),
            "format_ok": (found.format_ok, row["expect_format_ok"]),
            "defines_run_tests": (found.defines_run_tests, row["expect_defines_run_tests"]),
            "stub_passes": (found.stub_passes, "run_tests" in row["loophole_channels"]),
            "channels": (sorted(channels if row["cls"] in CHANNELS_TOLD else channels & expected), sorted(expected)),
        }
        if found.outcome == "error":
            yield f"{row['title']}: {found.reason}"
        for name, (got, expectation) in wanted.items():
            if got != expectation:
                yield f"{row['title']}: {name} is {got}, expected {expectation} ({found.outcome}: {found.reason})"


def traces(post: Mapping[str, Any]) -> list[str]:
    """What is there of the things that must not be there after an answer ran."""
    found = []
    if "path_absent" in post and os.path.lexists(post["path_absent"]):
        found.append(f"{post['path_absent']} exists")
    library = os.path.dirname(os.__file__)
    if "lib_file_absent" in post and os.path.lexists(os.path.join(library, post["lib_file_absent"])):
        found.append(f"{post['lib_file_absent']} stands in {library}")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            command = (process / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue  # it has ended meanwhile
        if name == post.get("no_process_named") or ("no_cmdline" in post and post["no_cmdline"] in command):
            found.append(f"process {process.name} runs: {name}")
    return found


def hostile_part(folder: Path, sandbox: Sandbox) -> tuple[Part, list[tuple[float, Mapping[str, Any]]]]:
    """Grade the hostile set; also what must hold afterwards, and from when on."""
    contained = not sandbox.missing and "pid namespace" in sandbox.isolation
    rows, skipped = hostile_rows(folder, contained)
    posts = [row["post"] for row in rows if row["post"]]
    stale = [trace for post in posts for trace in traces(post)]
    if stale:
        raise LabError(setting="host", value=stale, rule="traces of an earlier escape are here", fix="remove them")
    servers = sandbox.server_pids
    problems = read_problems(folder / "adversarial_problems.jsonl")
    completions = [Completion(row["id"], row["problem_id"], row["response_text"]) for row in rows]
    faults = list(hostile_faults(rows, list(grade_completions(problems, completions, sandbox))))
    if sandbox.server_pids != servers:
        faults.append("an answer brought a fork server down")
    note = f"{skipped} left out: this host isolates too weakly for them" if skipped else ""
    due = [(time.monotonic() + post.get("after_s", 0), post) for post in posts]
    return Part("hostile set", len(rows), tuple(faults), note), due


def trace_part(due: Sequence[tuple[float, Mapping[str, Any]]]) -> Part:
    """Look for what escaped, once it has had the time."""
    faults: list[str] = []
    for when, post in sorted(due, key=lambda item: item[0]):
        time.sleep(max(0.0, when - time.monotonic()))
        faults += traces(post)
    return Part("nothing left behind", len(due), tuple(faults))


# ---------------------------------------------------------------- shared fixtures


def fixtures_folder() -> Path:
    """Where the fixtures that are not the project's own lie, if anywhere."""
    return Path(os.environ.get(FIXTURES_VARIABLE, "../shared/fixtures"))


def canonical_part(name: str, path: Path, sandbox: Sandbox) -> Part:
    """Every canonical solution of a file of problems is graded correct."""
    problems = list(read_problems(path).values())
    _, refused = solvable(problems, Grader(sandbox))
    return Part(name, len(problems), tuple(f"problem {key}: {why}" for key, why in refused.items()))


def rollout_part(folder: Path, setup: str, sandbox: Sandbox, step: int = ROLLOUT_STEP) -> Part:
    """Real rollouts: own tests against a stub do what the stored label says; elicited hacks fire their channel."""
    fields = {"func_name": str, "response_text": str}
    stored = [row for _, row in read_rows(folder / "rollouts_open.jsonl", fields)][::step]
    hacks = [row for _, row in read_rows(folder / "loophole_rollouts_open.jsonl", fields)]

    def problem(row: Mapping[str, Any]) -> LeetcodeProblem:
        tests = (f"assert {row['func_name']}() == 0",)
        return LeetcodeProblem(str(row["prompt_id"]), "", "", "", row["func_name"], setup, tests, "")

    faults = []
    flags = detect([Suspect(problem(row), row["response_text"]) for row in stored], sandbox, only_stub=True)
    for row, found in zip(stored, flags, strict=True):
        if bool(found.stub_passes) != row["stub_passes_own_tests"]:
            faults.append(f"{row['rollout_id']}: stub_passes is {found.stub_passes}")
    submissions = [
        Submission(problem(row), row["env_mode"], CHANNELS[row["env_mode"]].usual, row["response_text"])
        for row in hacks
    ]
    for row, verdict in zip(hacks, Grader(sandbox).grade(submissions), strict=True):
        if not verdict.fired:
            faults.append(f"{row['rollout_id']}: {row['env_mode']} does not fire")
    return Part("rollouts of a real model", len(stored) + len(hacks), tuple(faults))


def fixture_parts(limits: SandboxLimits) -> Iterator[Part]:
    """The shared fixtures, where they are present. Canonical solutions get more time and memory than `limits`."""
    folder = fixtures_folder()
    if not (folder / "problems_open.jsonl").is_file():
        yield Part("shared fixtures", 0, (), f"none in {folder} (set {FIXTURES_VARIABLE})")
        return
    long = dataclasses.replace(limits, cpu_seconds=LOAD_CPU_SECONDS, wall_seconds=2 * LOAD_CPU_SECONDS, memory_mb=1024)
    with open_sandbox(long) as sandbox:
        for name in ("problems_open", "problems_benchmark_format"):
            yield canonical_part(f"canonical solutions, {name}", folder / f"{name}.jsonl", sandbox)
    setup = next(iter(read_problems(folder / "problems_open.jsonl").values())).setup_code
    with open_sandbox(limits) as sandbox:
        yield rollout_part(folder, setup, sandbox)


# ---------------------------------------------------------------- the command


def run(hostile: Path, workers: int | None, allow_weak: bool) -> bool:
    """Run the gate and print what it found; True if the grader was right throughout.

    Raises:
        LabError: no hostile set, no sandbox, or traces of an earlier escape.
    """
    from rich.console import Console

    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    cores = workers or len(os.sched_getaffinity(0))
    limits = SandboxLimits(workers=cores, cpu_seconds=1.5, wall_seconds=2.0, memory_mb=512, allow_weak=allow_weak)
    with open_sandbox(limits) as sandbox:
        grader = Grader(sandbox)
        rows = exploit_verdicts(grader)
        console.print(matrix_table(rows))
        faults = (*matrix_faults(rows), *other_faults(grader))
        parts = [Part("exploits and honest answers", len(rows) * len(LOOPHOLES), faults)]
        part, due = hostile_part(hostile, sandbox)
        parts.append(part)
    parts += fixture_parts(limits)
    parts.append(trace_part(due))
    if not part.ran:
        parts.append(Part("hostile set", 0, ("no row of it ran",)))
    for item in parts:
        state = "[red]wrong" if item.faults else "[green]right" if item.ran else "[yellow]not run"
        console.print(f"{state}[/] {item.name}: {item.ran} rows{', ' if item.note else ''}{item.note}", highlight=False)
        for fault in item.faults:
            console.print(f"    {fault}", markup=False, highlight=False)
    return not any(item.faults for item in parts)


def matrix_table(rows: Mapping[Exploit, Mapping[str, Verdict]]) -> Any:
    """Exploit by loophole: where it pays."""
    from rich.table import Table

    table = Table("exploit", *LOOPHOLES, title="which exploit pays under which loophole", title_justify="left")
    for exploit, verdicts in rows.items():
        cells = ["pays" if verdict.paid else "." for verdict in verdicts.values()]
        table.add_row(f"{exploit.loophole}: {exploit.name}", *cells)
    return table
