"""How fast answers are graded, in three ways, on the same answers with as many workers:

- ours: the sandbox with every layer that the host offers, values compared here;
- reference: a fresh interpreter per answer with limits set by rlimit, which runs the tests itself and prints a
  verdict. This is how the published benchmark grades; it isolates nothing;
- fork: a plain fork per answer from a process that has run the set-up. It contains nothing.

Answers: the canonical solutions of the open problems that need under a second of CPU time, repeated to 100; and 100
trivial ones. `share_of_floor` reads our rate against the answers' own CPU time shared by the workers, where "own" is
what the answer and its tests take inside a running interpreter. The last line is JSON. Rates and `vs_reference` are
by the clock and ask for idle cores: on busy ones a way that is made of many short steps waits more often. The ratios
of CPU time, `cpu_vs_reference`, hold there too.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from projected_grpo.grading.sandbox import Job, JobResult, Sandbox, SandboxLimits
from projected_grpo.grading.verdict.comparison import HiddenTest, read_test, same

FIXTURES = Path(os.environ.get("PROJECTED_GRPO_FIXTURES", Path(__file__).resolve().parents[2] / "shared" / "fixtures"))
LIGHT_SECONDS = 1.0  # of CPU: longer answers would measure nothing but themselves
ANSWERS = 100
DOUBLE = "class Solution:\n    def double(self, n):\n        return n * 2\n"

# What the fresh interpreter runs: limits, then the program from its input. Our own rendering of the reference's way.
HARNESS = """
import contextlib, io, json, resource, signal, sys
memory, seconds = int(sys.argv[1]) << 20, int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
signal.alarm(seconds)
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    exec(sys.stdin.read(), {})
print(json.dumps({"last": printed.getvalue().strip().split("\\n")[-1]}))
"""
RUN_TESTS = """
import json
passed = 0
for test in {tests!r}:
    try:
        exec(test)
    except BaseException:
        break
    passed += 1
print(json.dumps(passed))
"""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer to grade: all that each of the ways needs, prepared before any clock runs."""

    setup_code: str
    code: str
    tests: tuple[str, ...]

    @property
    def hidden(self) -> list[HiddenTest]:
        return [read_test(test) for test in self.tests]

    @property
    def job(self) -> Job:
        return Job(self.setup_code, self.code, tuple(test.expression for test in self.hidden))

    @property
    def program(self) -> str:
        return f"{self.setup_code}\n{self.code}\n{RUN_TESTS.format(tests=list(self.tests))}"


def problem_rows() -> list[dict[str, Any]]:
    """The open problems; the embedded families where those are absent."""
    path = FIXTURES / "problems_open.jsonl"
    if path.is_file():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    print(f"no {path}: a few embedded problems stand in, so figures do not compare with those of the README")
    return [
        {
            "setup_code": "from typing import *\nfrom math import *\nimport random, datetime\n",
            "canonical_solution": f"{DOUBLE}        # {number}",
            "tests": [f"assert Solution().double(n = {n}) == {2 * n}" for n in range(100)],
            "canonical_cpu_s": 0.0,
        }
        for number in range(20)
    ]


def canonical(rows: Sequence[dict[str, Any]], at_most: float) -> list[Answer]:
    """The canonical solutions that need at most so many CPU seconds, repeated in order to ANSWERS."""
    kept = [row for row in rows if row["canonical_cpu_s"] <= at_most]
    answers = [Answer(row["setup_code"], row["canonical_solution"], tuple(row["tests"])) for row in kept]
    return list(itertools.islice(itertools.cycle(answers), ANSWERS))


def trivial(rows: Sequence[dict[str, Any]]) -> list[Answer]:
    tests = tuple(f"assert Solution().double(n = {n}) == {2 * n}" for n in range(5))
    return [Answer(rows[0]["setup_code"], f"{DOUBLE}# {number}", tests) for number in range(ANSWERS)]


# --- the three ways -----------------------------------------------------------------------------------------


def by_sandbox(sandbox: Sandbox, answers: Sequence[Answer]) -> Callable[[], list[bool]]:
    jobs, expected = [answer.job for answer in answers], [answer.hidden for answer in answers]

    def right(result: JobResult, tests: Sequence[HiddenTest]) -> bool:
        return len(result.values) == len(tests) and all(
            same(got, test.expected) for got, test in zip(result.values, tests, strict=True)
        )

    return lambda: list(map(right, sandbox.run(jobs), expected))


def by_interpreter(limits: SandboxLimits, workers: int, answers: Sequence[Answer]) -> Callable[[], list[bool]]:
    programs, tests = [answer.program for answer in answers], [len(answer.tests) for answer in answers]
    command = [sys.executable, "-c", HARNESS, str(limits.memory_mb), str(int(limits.cpu_seconds))]

    def grade(program: str, number: int) -> bool:
        done = subprocess.run(command, input=program, capture_output=True, text=True, start_new_session=True)
        return done.returncode == 0 and json.loads(json.loads(done.stdout)["last"]) == number

    def run() -> list[bool]:
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            return list(pool.map(grade, programs, tests))

    return run


def by_fork(workers: int, answers: Sequence[Answer]) -> Callable[[], list[bool]]:
    """One process per worker, which forks for each of its answers; the exit status is the verdict."""
    setups: dict[str, dict[str, Any]] = {}
    for answer in answers:
        if answer.setup_code not in setups:
            setups[answer.setup_code] = {}
            exec(answer.setup_code, setups[answer.setup_code])

    def grade(answer: Answer) -> None:
        names = dict(setups[answer.setup_code])
        exec(answer.code, names)
        for test in answer.tests:
            exec(test, names)

    def work(share: Sequence[Answer]) -> int:
        return sum(in_a_fork(grade, answer) for answer in share)

    def run() -> list[bool]:
        shares = [answers[worker::workers] for worker in range(workers)]
        pids = [fork(lambda share=share: os._exit(work(share))) for share in shares]  # type: ignore[misc]
        passed = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
        return [number < passed for number in range(len(answers))]

    return run


def fork(action: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def in_a_fork(grade: Callable[[Answer], None], answer: Answer) -> bool:
    return os.waitpid(fork(lambda: grade(answer)), 0)[1] == 0


def own_cpu_seconds(answers: Sequence[Answer]) -> float:
    """CPU time of the answers and of the calls of their tests, in an interpreter that has all else ready."""
    reader, writer = os.pipe()

    def measure() -> None:
        total = 0.0
        setups: dict[str, dict[str, Any]] = {}
        for answer in answers:
            if answer.setup_code not in setups:
                setups[answer.setup_code] = {}
                exec(answer.setup_code, setups[answer.setup_code])
            names = dict(setups[answer.setup_code])
            calls = [compile(test.expression, "test", "eval") for test in answer.hidden]
            start = time.process_time()
            exec(compile(answer.code, "answer", "exec"), names)
            for call in calls:
                eval(call, names)
            total += time.process_time() - start
        os.write(writer, str(total).encode())

    pid = fork(measure)
    os.waitpid(pid, 0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        return float(stream.read())


# --- measuring ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Cost:
    """Least wall time and least CPU time over all rounds, seconds."""

    wall: float = float("inf")
    cpu: float = float("inf")


def compare(sandbox: Sandbox, answers: Sequence[Answer], budget: float) -> dict[str, Cost]:
    """The three ways in turn, at least once and until `budget` seconds are over; every answer must come out right."""
    workers = len(sandbox.server_pids)
    ways = {
        "ours": by_sandbox(sandbox, answers),
        "reference": by_interpreter(sandbox.limits, workers, answers),
        "fork": by_fork(workers, answers),
    }
    costs = {name: Cost() for name in ways}
    end = time.perf_counter() + budget
    while costs["fork"].wall == float("inf") or time.perf_counter() < end:
        for name, run in ways.items():
            start, spent = time.perf_counter(), cpu_seconds(sandbox)
            verdicts = run()
            cost = costs[name]
            cost.wall = min(cost.wall, time.perf_counter() - start)
            cost.cpu = min(cost.cpu, cpu_seconds(sandbox) - spent)
            if not all(verdicts):
                raise SystemExit(f"{name}: {verdicts.count(False)} of {len(verdicts)} right answers judged wrong")
    return costs


def cpu_seconds(sandbox: Sandbox) -> float:
    """Of this process, the fork servers and all that either has waited for."""
    ticks = 0
    for pid in (pid for server in sandbox.server_pids for pid in family(server)):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # utime, stime, and those of the children
    times = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") + times.user + times.system + times.children_user + times.children_system


def latencies_ms(sandbox: Sandbox, answers: Sequence[Answer]) -> list[float]:
    """Of one answer at a time, from the call to its result."""
    measured = []
    for answer in list(answers) * 3:
        start = time.perf_counter()
        sandbox.run([answer.job])
        measured.append(1e3 * (time.perf_counter() - start))
    return measured


def status_mb(pid: int, field: str) -> float:
    """Memory of a process by its field in /proc, MiB; 0.0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    return found + [below for child in children for below in family(int(child))]


def worker_memory_mb(sandbox: Sandbox) -> float:
    """Resident memory of the processes of one worker, at rest."""
    return sum(status_mb(pid, "VmRSS") for pid in family(sandbox.server_pids[0]))


def soak(sandbox: Sandbox, answers: Sequence[Answer], executions: int = 10_000) -> dict[str, float]:
    """Throughput of the first and last tenth of a long run, and what the servers have grown by."""
    jobs = [answer.job for answer in answers]
    tenth = executions // 10
    sandbox.run(jobs)
    memory, rates = worker_memory_mb(sandbox), []
    for _ in range(10):
        start = time.perf_counter()
        sandbox.run([jobs[number % len(jobs)] for number in range(tenth)])
        rates.append(tenth / (time.perf_counter() - start))
    return {
        "soak_last_vs_first": rates[-1] / rates[0],
        "soak_slowest_vs_fastest": min(rates) / max(rates),
        "soak_growth_mb": worker_memory_mb(sandbox) - memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under 50 s")
    parser.add_argument("--soak", action="store_true", help="10,000 executions more: does anything grow or slow down?")
    parser.add_argument("--workers", type=int, default=None, help="default: the cores")
    options = parser.parse_args()
    rows = problem_rows()
    light, easy = canonical(rows, LIGHT_SECONDS), trivial(rows)
    own = own_cpu_seconds(light)
    # CPU time for the slowest canonical solutions, which take over 3 s.
    limits = SandboxLimits(workers=options.workers, cpu_seconds=10, wall_seconds=30, memory_mb=1024, allow_weak=True)
    with Sandbox(limits) as sandbox:
        sandbox.run([easy[0].job] * len(sandbox.server_pids))
        easily = compare(sandbox, easy, 6 if options.quick else 30)
        figures = report(compare(sandbox, light, 10 if options.quick else 60), easily, own, len(sandbox.server_pids))
        waits = latencies_ms(sandbox, easy)
        figures["p50_ms"] = statistics.median(waits)
        figures["p99_ms"] = statistics.quantiles(waits, n=100)[98]
        figures["memory_per_worker_mb"] = worker_memory_mb(sandbox)
        if not options.quick:
            everything = compare(sandbox, canonical(rows, float("inf")), 0)
            figures["canonical_all_cpu_vs_reference"] = everything["reference"].cpu / everything["ours"].cpu
        if options.soak:
            figures |= soak(sandbox, easy)
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def report(heavy: dict[str, Cost], easy: dict[str, Cost], own: float, workers: int) -> dict[str, float]:
    """Ratios and rates. No sandbox can be faster than the answers themselves: `canonical_bound_vs_reference`."""
    figures = {
        "workers": float(workers),
        "canonical_vs_reference": heavy["reference"].wall / heavy["ours"].wall,
        "trivial_vs_reference": easy["reference"].wall / easy["ours"].wall,
        "share_of_floor": own / workers / heavy["ours"].wall,
        "canonical_bound_vs_reference": heavy["reference"].wall / (own / workers),
        "canonical_cpu_vs_reference": heavy["reference"].cpu / heavy["ours"].cpu,
        "trivial_cpu_vs_reference": easy["reference"].cpu / easy["ours"].cpu,
        "own_cpu_s_per_100": own,
    }
    for way in ("ours", "reference", "fork"):
        figures[f"answers_per_s_canonical_{way}"] = ANSWERS / heavy[way].wall
        figures[f"answers_per_s_trivial_{way}"] = ANSWERS / easy[way].wall
    return figures


if __name__ == "__main__":
    main()
