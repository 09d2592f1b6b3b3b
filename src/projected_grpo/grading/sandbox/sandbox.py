"""The trusted side: keeps fork servers alive, hands them jobs, turns their replies into results."""

from __future__ import annotations

import collections
import functools
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from projected_grpo.grading.sandbox.confine import STRONG, Layers
from projected_grpo.grading.sandbox.jobs import Job, JobResult
from projected_grpo.grading.sandbox.limits import SandboxLimits
from projected_grpo.grading.sandbox.replies import interpret
from projected_grpo.grading.sandbox.server import MAX_PERIODS
from projected_grpo.grading.sandbox.wire import Malformed, decode, encode, frame, receive

# The server's modules are loaded as a package of their own: nothing of the lab is imported or reachable
# there.
_BOOT = """
import sys, types
package = types.ModuleType("fork_server")
package.__path__ = [sys.argv[1]]
sys.modules["fork_server"] = package
from fork_server.server import main
for name in [name for name in sys.modules if name.startswith("fork_server")]:
    del sys.modules[name]
fd = int(sys.argv[2])
sys.argv[:] = [""]
main(fd)
"""
# Hashing is seeded alike in every server, so that what an answer does with a set of strings can be repeated.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:backslashreplace",
    "LD_BIND_NOW": "1",  # symbols resolved before the forks, not in each of them
}  # fmt: skip
_FLAGS = ("-P", "-S", "-s", "-B")  # no site packages, no folder of ours on the path, no files written
_START_SECONDS = 60.0
_GRACE_SECONDS = 10.0
Layer = Literal["namespaces", "landlock", "seccomp"]
_announced: set[str] = set()
_LOST = (OSError, EOFError, Malformed)  # what talking to a dead or mad server raises


class SandboxUnavailable(RuntimeError):
    """The sandbox cannot start, or not as strong as demanded."""


@functools.lru_cache(maxsize=256)
def _encoded_tests(setup_code: str, expressions: tuple[str, ...]) -> bytes:
    """The part of a job that the answers of a group share; a server compiles it once."""
    return encode((setup_code, expressions))


class _Worker:
    """One fork server and the job it works on. `launch`, then `await_ready`, so that several start at a time."""

    def __init__(self, scratch: Path, limits: SandboxLimits, without: tuple[str, ...]) -> None:
        self.scratch = scratch
        self.without = without
        self.limits = limits
        self.job = (-1, 0)  # index in the batch, attempt
        self.deadline = 0.0
        self.layers: Layers = {}
        self.launch()

    def launch(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, *_FLAGS, "-c", _BOOT, str(Path(__file__).parent), str(theirs.fileno())],
                env=_ENVIRONMENT, cwd=self.scratch, pass_fds=[theirs.fileno()], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self.socket = ours

    def await_ready(self) -> None:
        """Raises SandboxUnavailable with what the server said."""
        limits = self.limits
        self.socket.settimeout(_START_SECONDS)
        settings = {
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
            "memory_mb": limits.memory_mb,
            "output_kb": limits.output_kb,
        }
        try:
            self.socket.sendall(frame((str(self.scratch), settings, self.without)))
            state, details = decode(receive(self.socket.recv))
        except _LOST as error:
            self.stop()
            raise SandboxUnavailable(f"a fork server did not start: {error!r}") from error
        if state != "ready":
            self.stop()
            raise SandboxUnavailable(f"a fork server did not start: {details}")
        self.layers = details

    def send(self, job: Job) -> None:
        self.deadline = time.monotonic() + MAX_PERIODS * self.limits.wall_seconds + _GRACE_SECONDS
        self.socket.settimeout(_GRACE_SECONDS)
        tests = _encoded_tests(job.setup_code, job.expressions)
        self.socket.sendall(frame((tests, job.code, job.exports, job.stdout, job.files)))

    def stop(self) -> None:
        """End the server and everything it runs."""
        self.socket.close()
        try:
            self.process.wait(timeout=0.2)  # an idle server leaves by itself when its socket closes
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def restart(self) -> None:
        self.process.kill()  # before its socket closes: a server that is hung up on removes its folders
        self.process.wait()
        self.socket.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(exist_ok=True)
        self.launch()
        self.await_ready()


class Sandbox:
    """Context manager over `limits.workers` fork servers, as many as there are cores if that is None.

    `without` leaves layers out, to measure what they cost and to test what remains. Raises SandboxUnavailable
    on entering when a server cannot start, or when Landlock or seccomp is missing and `allow_weak` is false.
    """

    def __init__(self, limits: SandboxLimits, without: tuple[Layer, ...] = ()) -> None:
        self.limits = limits
        self.without = without
        self.layers: Layers = {}  # layer of containment -> "" if active, else why not
        self._workers: list[_Worker] = []
        self._folder: Path | None = None

    def __enter__(self) -> Sandbox:
        self._folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
        self._folder.chmod(0o711)  # an unprivileged child must pass through to its own folder
        try:
            for number in range(self.limits.workers or len(os.sched_getaffinity(0))):
                scratch = self._folder / f"worker{number}"
                scratch.mkdir()
                self._workers.append(_Worker(scratch, self.limits, self.without))
            for worker in self._workers:
                worker.await_ready()
            self.layers = {"new session": "", "resource limits": "", **self._workers[0].layers}
            if self.missing and not self.limits.allow_weak:
                raise SandboxUnavailable(
                    f"{self._weakness()}; run on another host, or accept the risk with sandbox.allow_weak: true"
                )
            self._announce()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the servers and remove their folders."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    @property
    def isolation(self) -> tuple[str, ...]:
        """Names of the active layers of containment."""
        return tuple(layer for layer, why_not in self.layers.items() if not why_not)

    @property
    def missing(self) -> list[str]:
        """Layers without which an answer is not contained; empty on a good host."""
        return [layer for layer in STRONG if layer not in self.isolation]

    def _weakness(self) -> str:
        missing = " and ".join(f"no {layer} ({self.layers[layer]})" for layer in self.missing)
        return (
            f"this host offers {missing}, so answers could reach files or processes outside their sandbox "
            f"(active: {', '.join(self.isolation)})"
        )

    def _announce(self) -> None:
        """Say what contains the answers: once per process, and again if it changes."""
        line = f"sandbox: {len(self._workers)} workers; {', '.join(self.isolation)}"
        if self.missing:
            line = f"WARNING: weak sandbox, allowed by sandbox.allow_weak: {self._weakness()}"
        if line not in _announced:
            _announced.add(line)
            print(line, file=sys.stderr, flush=True)

    @property
    def server_pids(self) -> list[int]:
        """Process ids of the fork servers, for supervision and tests."""
        return [worker.process.pid for worker in self._workers]

    def run(self, batch: Sequence[Job]) -> list[JobResult]:
        """One result per job, in order. A job whose server is lost is tried once more before it is an error.

        Raises SandboxUnavailable when a lost server cannot be started again.
        """
        if not self._workers:
            raise RuntimeError("the sandbox is not open; use it as a context manager")
        return _Run(batch, self._workers, self.limits).results()


class _Run:
    """One batch under way."""

    def __init__(self, batch: Sequence[Job], workers: Sequence[_Worker], limits: SandboxLimits) -> None:
        self.batch = batch
        self.limits = limits
        self.waiting = collections.deque((index, 0) for index in range(len(batch)))  # index, attempt
        self.idle = list(workers)
        self.busy: dict[int, _Worker] = {}  # by the descriptor of its socket
        self.poll = select.poll()  # select.select would refuse descriptors above 1023
        self.done: dict[int, JobResult] = {}

    def results(self) -> list[JobResult]:
        try:
            while self.waiting or self.busy:
                while self.waiting and self.idle:
                    self.hand_out(self.idle.pop())
                if self.busy:
                    self.collect()
        except BaseException:  # an interrupt: a reply still to come must not be taken for the next batch's
            for worker in self.busy.values():
                worker.restart()
            raise
        return [self.done[index] for index in range(len(self.batch))]

    def hand_out(self, worker: _Worker) -> None:
        index, attempt = self.waiting.popleft()
        worker.job = (index, attempt)
        self.busy[worker.socket.fileno()] = worker
        self.poll.register(worker.socket, select.POLLIN)
        try:
            worker.send(self.batch[index])
        except _LOST as error:
            self.lost(worker, f"server lost: {error!r}")

    def collect(self) -> None:
        """Wait for the first replies, or the first deadline."""
        pause = max(0.0, min(worker.deadline for worker in self.busy.values()) - time.monotonic())
        for descriptor, _ in self.poll.poll(1000 * pause):
            self.receive(self.busy[descriptor])
        for worker in list(self.busy.values()):
            if worker.deadline < time.monotonic():
                self.lost(worker, "server does not answer")

    def receive(self, worker: _Worker) -> None:
        try:
            report = decode(receive(worker.socket.recv))
        except _LOST as error:
            self.lost(worker, f"server lost: {error!r}")
            return
        if report[0] == "error":  # it may have been damaged: a new one takes its place
            self.lost(worker, report[1])
        else:
            self.done[worker.job[0]] = interpret(report, self.limits)
            self.release(worker)

    def lost(self, worker: _Worker, why: str) -> None:
        """Our fault: the job gets a second attempt, but no third, and the worker a new server."""
        index, attempt = worker.job
        if attempt == 0:
            self.waiting.appendleft((index, 1))
        else:
            self.done[index] = JobResult("killed", machinery_error=why)
        self.release(worker)
        worker.restart()

    def release(self, worker: _Worker) -> None:
        descriptor = worker.socket.fileno()
        self.poll.unregister(descriptor)
        del self.busy[descriptor]
        self.idle.append(worker)
