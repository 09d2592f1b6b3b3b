"""The fork server: reads jobs from a socket, forks once per job, enforces limits, clears up, replies.

Started by exec of a fresh interpreter (see `sandbox.py`), it holds the set-up code's names ready and nothing
else: no tests' expected values, no other submission. Where the host allows, it is the first process of its
own pid namespace, so that an answer can neither signal it nor leave anything behind.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import signal
import time
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import child, confine
from .folder import WorkFolder, remove_tree
from .wire import decode, encode, frame, receive

_exit = os._exit  # an answer may replace the attribute, and must not get further than this
BUSY_SHARE = 0.02  # of a wall period: who computes more, on a crowded host too, is judged by CPU time
MAX_PERIODS = 10  # wall periods after which even a busy process ends
MAX_SETUPS = 16
MAX_TEST_SETS = 64

# Imported before the first fork, so that no answer pays for them.
WARM = ("bisect", "collections", "copy", "dataclasses", "datetime", "functools", "heapq", "itertools", "math",
        "operator", "random", "re", "string", "typing")  # fmt: skip


class Setup(NamedTuple):
    """What a child starts from. It may change both dictionaries: after the fork they are its own."""

    module: types.ModuleType  # becomes the answer's
    names: dict[str, object]  # the set-up's, in which expressions are evaluated


class Server:
    """Runs one job at a time in `scratch`, a folder of its own."""

    def __init__(self, scratch: str, limits: dict[str, float], without: Sequence[str], owns_pids: bool) -> None:
        self.cpu_seconds = limits["cpu_seconds"]
        self.wall_seconds = limits["wall_seconds"]
        self.output_limit = int(limits["output_kb"]) << 10
        self.owns_pids = owns_pids
        self.confinement = confine.Confinement(without)
        self.folder = WorkFolder(scratch, self.confinement.open_folder)
        self.limits = child.own_limits(self.cpu_seconds, int(limits["memory_mb"]))
        child.limit_inherited()
        self.layers: confine.Layers = {}  # what the probe found active
        self.setups: dict[str, Setup] = {}
        self.test_sets: dict[bytes, tuple[Setup, list[types.CodeType]]] = {}

    def setup(self, code: str) -> Setup:
        """What the set-up code defines; executed once per distinct code."""
        if code not in self.setups:
            drop_oldest(self.setups, MAX_SETUPS)
            names: dict[str, object] = {"__name__": "setup"}
            exec(compile(code, "setup.py", "exec", dont_inherit=True), names)
            names.pop("pow", None)  # `from math import *` hides the built-in, which takes a modulus
            # A module of its own, known by name: dataclasses and pickling look it up, and its __name__ is not
            # __main__.
            module = types.ModuleType("answer")
            module.__dict__.update(names, __name__="answer")
            self.setups[code] = Setup(module, dict(names))
            gc.collect()
            gc.freeze()  # keeps a child's collector off the shared pages
        return self.setups[code]

    def test_set(self, encoded: bytes) -> tuple[Setup, list[types.CodeType]]:
        """Set-up and compiled expressions; prepared once, since a group of answers shares its tests."""
        if encoded not in self.test_sets:
            drop_oldest(self.test_sets, MAX_TEST_SETS)
            setup_code, expressions = decode(encoded)
            compiled = [compile(text, "test.py", "eval", dont_inherit=True) for text in expressions]
            self.test_sets[encoded] = self.setup(setup_code), compiled
        return self.test_sets[encoded]

    def run(self, job: tuple[bytes, str, tuple[str, ...], bool, tuple[str, ...]]) -> tuple:
        """(how it ended, wait status, reply bytes, printed bytes, files, CPU seconds) of one job."""
        tests, code, exports, wants_stdout, file_names = job
        setup, compiled = self.test_set(tests)
        # A file, not a pipe: the server sleeps until the child has ended, however many values come.
        reply_fd = os.memfd_create("reply")
        out_r, out_w = os.pipe() if wants_stdout else (-1, -1)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                os.fchdir(self.folder.fd)
                if wants_stdout:
                    os.dup2(out_w, 1)
                child.limit_resources(self.limits)
                if self.confinement.enter() != self.layers:
                    _exit(1)  # less than what was promised: the answer does not run
                os.dup2(reply_fd, child.REPLY_FD)
                os.closerange(child.REPLY_FD + 1, 1024)
                child.run_answer(setup.module, setup.names, code, compiled, exports)
            finally:
                _exit(1)
        try:
            if wants_stdout:
                os.close(out_w)
            ended, status, printed, cpu = self._watch(pid, out_r)
            answer = os.pread(reply_fd, 2 * child.REPLY_LIMIT, 0)
            files = {name: data for name in file_names if (data := self.folder.read(name)) is not None}
            return ended, status, answer, printed, files, cpu
        finally:
            for fd in (reply_fd, out_r):
                if fd >= 0:
                    os.close(fd)
            self.folder.renew()

    def _watch(self, pid: int, out_r: int) -> tuple[str, int, bytes, float]:
        """Wait until the child ends or breaks a limit, collecting what it prints; leaves no process behind."""
        pidfd = os.pidfd_open(pid)
        printed = bytearray()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if out_r >= 0:
            poll.register(out_r, select.POLLIN)
            os.set_blocking(out_r, False)
        clock = ((~pid) << 3) | 2  # CPU time of another process, as clock_getcpuclockid(3) names it
        start = time.monotonic()
        check = start + self.cpu_seconds
        period, cpu_before, ended = 1, 0.0, ""
        while not ended:
            wait = max(0.0, check - time.monotonic())
            for fd, _ in poll.poll(wait * 1000 + 1):
                if fd == pidfd:
                    ended = "exit"
                elif not drain(fd, printed, self.output_limit):
                    poll.unregister(fd)
            now = time.monotonic()
            if ended or now < check:
                continue
            cpu = time.clock_gettime(clock)
            if cpu >= self.cpu_seconds:
                ended = "cpu"
            elif now >= start + period * self.wall_seconds:
                busy = cpu - cpu_before >= BUSY_SHARE * self.wall_seconds
                ended = "" if busy and period < MAX_PERIODS else "wall"
                period, cpu_before = period + 1, cpu
            check = min(now + max(self.cpu_seconds - cpu, 0.005), start + period * self.wall_seconds)
        os.close(pidfd)
        if ended != "exit":
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        self._clear_processes(pid)
        if out_r >= 0:
            drain(out_r, printed, self.output_limit)
        return ended, status, bytes(printed), usage.ru_utime + usage.ru_stime

    def _clear_processes(self, pid: int) -> None:
        """Kill and reap whatever the child left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL) if self.owns_pids else os.killpg(pid, signal.SIGKILL)
        while True:
            try:
                if os.waitpid(-1, 0 if self.owns_pids else os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                return
            # Without a pid namespace: orphans have become our children, in sessions of their own.
            with open("/proc/thread-self/children") as file:
                for orphan in map(int, file.read().split()):
                    os.kill(orphan, signal.SIGKILL)
            time.sleep(0.001)


def drop_oldest(cache: dict, limit: int) -> None:
    """Make room for one more entry."""
    while len(cache) >= limit:
        del cache[next(iter(cache))]


def drain(fd: int, data: bytearray, limit: int) -> bool:
    """Read what is there, keep up to `limit` bytes; False at the end of the stream."""
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        data += chunk[: max(0, limit - len(data))]
        if len(chunk) < 1 << 16 or len(data) >= limit:
            return True  # the poll comes back for more, and looks at the clock in between


def probe(server: Server) -> confine.Layers:
    """Enter the confinement in a child that then works as an answer does; returns the layers, raises if it
    cannot.
    """
    os.close(os.pidfd_open(os.getpid()))  # Linux 5.3; without it no job could be watched
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            layers = server.confinement.enter()
            __import__("colorsys")  # any module not yet loaded
            os.write(writer, encode(layers))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as stream:
        report = stream.read()
    if status != 0:
        raise RuntimeError("a confined child cannot import the standard library")
    entered: confine.Layers = decode(report)
    return entered


class Connection:
    """The other side, through a bare descriptor: the `socket` module would weigh on every fork."""

    def __init__(self, fd: int) -> None:
        self.fd = os.dup(fd)  # a low number, which children close
        os.close(fd)
        self.read = functools.partial(os.read, self.fd)

    def receive(self) -> Any:
        """The next message. Raises EOFError when the other side has hung up."""
        return decode(receive(self.read))

    def send(self, value: object) -> None:
        """Raises BrokenPipeError when the other side has hung up."""
        view = memoryview(frame(value))
        while view:
            view = view[os.write(self.fd, view) :]


def serve(connection: Connection, server: Server) -> None:
    """Answer jobs until the other side hangs up."""
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = connection.receive()
            try:
                result = server.run(job)
            except Exception as error:  # our fault, whatever it is: reported as such, never as a verdict
                result = ("error", f"{type(error).__name__}: {error}")
            connection.send(result)


def main(socket_fd: int) -> None:
    """Entry point of the server's interpreter."""
    connection = Connection(socket_fd)
    os.environ.clear()
    scratch, limits, without = connection.receive()
    namespaces = confine.enter_namespaces(scratch, "namespaces" in without)
    owns_pids = not namespaces["pid namespace"]
    if owns_pids:
        pid = os.fork()
        if pid:
            os.close(connection.fd)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == 0:
                remove_scratch(scratch)
            os._exit(code & 0xFF)
        confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    for name in WARM:
        __import__(name)
    try:
        server = Server(scratch, limits, without, owns_pids)
        server.layers = probe(server)
        layers = namespaces | server.layers
    except Exception as error:
        connection.send(("error", f"{type(error).__name__}: {error}"))
    else:
        connection.send(("ready", layers))
        serve(connection, server)
    if not owns_pids:
        remove_scratch(scratch)


def remove_scratch(scratch: str) -> None:
    """When the other side has hung up: it may have been killed, with nobody left to remove its folders."""
    confine.unmount(scratch)
    with contextlib.suppress(OSError):
        remove_tree(scratch)
        os.rmdir(os.path.dirname(scratch))  # refused while another worker's is in it
