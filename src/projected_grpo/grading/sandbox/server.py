"""The fork server: reads jobs from a socket, forks once per job, enforces limits, clears up, replies.

Started by exec of a fresh interpreter (see `sandbox.py`), it holds the set-up code's names ready and nothing
else: no tests' expected values, no other submission. Where the host allows, it is the first process of its
own pid namespace, so that an answer can neither signal it nor leave anything behind.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import stat
import time
import types
from collections.abc import Sequence

from . import child, confine
from .wire import decode, encode

_exit = os._exit  # an answer may replace the attribute, and must not get further than this
FILE_LIMIT = 4096  # bytes of a result file that are handed back
BUSY_SHARE = 0.02  # of a wall period: who computes more, on a crowded host too, is judged by CPU time
MAX_PERIODS = 10  # wall periods after which even a busy process ends
MAX_SETUPS = 16
MAX_COMPILED = 256

# Imported before the first fork, so that no answer pays for them.
WARM = ("bisect", "collections", "copy", "dataclasses", "functools", "heapq", "itertools", "math", "operator",
        "random", "re", "string", "typing")  # fmt: skip


def receive(connection: socket.socket) -> bytes:
    """One length-prefixed message. Raises EOFError when the other side is gone."""
    size = int.from_bytes(_exactly(connection, 4), "big")
    return _exactly(connection, size)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = connection.recv(min(size - len(data), 1 << 20))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)


def reply(connection: socket.socket, value: object) -> None:
    """Send one length-prefixed message."""
    data = encode(value)
    connection.sendall(len(data).to_bytes(4, "big") + data)


class Server:
    """Runs one job at a time in `scratch`, a folder of its own."""

    def __init__(self, scratch: str, limits: dict[str, float], without: Sequence[str], owns_pids: bool) -> None:
        self.scratch = scratch
        self.cpu_seconds = limits["cpu_seconds"]
        self.wall_seconds = limits["wall_seconds"]
        self.memory_mb = int(limits["memory_mb"])
        self.output_limit = int(limits["output_kb"]) << 10
        self.owns_pids = owns_pids
        self.confinement = confine.Confinement(scratch, without)
        self.setups: dict[str, dict[str, object]] = {}
        self.compiled: dict[str, types.CodeType] = {}
        self.jobs = 0

    def setup(self, code: str) -> dict[str, object]:
        """Names that the set-up code defines; executed once per distinct code."""
        if code not in self.setups:
            if len(self.setups) >= MAX_SETUPS:
                self.setups.clear()
            names: dict[str, object] = {"__name__": "setup"}
            exec(compile(code, "setup.py", "exec", dont_inherit=True), names)
            names.pop("pow", None)  # `from math import *` hides the built-in, which takes a modulus
            self.setups[code] = names
            gc.collect()
            gc.freeze()  # keeps a child's collector off the shared pages
        return self.setups[code]

    def expression(self, text: str) -> types.CodeType:
        """The compiled expression; compiled once, since a group of answers shares its tests."""
        if text not in self.compiled:
            if len(self.compiled) >= MAX_COMPILED:
                self.compiled.clear()
            self.compiled[text] = compile(text, "test.py", "eval", dont_inherit=True)
        return self.compiled[text]

    def run(self, job: tuple[str, str, tuple[str, ...], tuple[str, ...], bool, tuple[str, ...]]) -> tuple:
        """(how it ended, wait status, reply bytes, printed bytes, files, CPU seconds) of one job."""
        setup_code, code, expressions, exports, wants_stdout, file_names = job
        names = self.setup(setup_code)
        compiled = [self.expression(text) for text in expressions]
        self.jobs += 1
        folder = os.path.join(self.scratch, f"job{self.jobs}")
        os.mkdir(folder, 0o700)
        if self.confinement.drop_uid:
            os.chown(folder, 65534, 65534)
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        reply_r, reply_w = os.pipe()
        out_r, out_w = os.pipe() if wants_stdout else (-1, -1)
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                os.chdir(folder)
                if wants_stdout:
                    os.dup2(out_w, 1)
                child.limit_resources(self.cpu_seconds, self.memory_mb)
                self.confinement.enter()
                os.dup2(reply_w, child.REPLY_FD)
                os.closerange(child.REPLY_FD + 1, 1024)
                child.run_answer(names, code, compiled, exports)
            finally:
                _exit(1)
        try:
            os.close(reply_w)
            if wants_stdout:
                os.close(out_w)
            ended, status, answer, printed, cpu = self._watch(pid, reply_r, out_r)
            files = {name: data for name in file_names if (data := read_regular(folder_fd, name)) is not None}
            return ended, status, answer, printed, files, cpu
        finally:
            for fd in (reply_r, out_r, folder_fd):
                if fd >= 0:
                    os.close(fd)
            remove_tree(folder)

    def _watch(self, pid: int, reply_r: int, out_r: int) -> tuple[str, int, bytes, bytes, float]:
        """Collect what the child writes until it ends or breaks a limit; leaves no process behind."""
        pidfd = os.pidfd_open(pid)
        streams = {fd: bytearray() for fd in (reply_r, out_r) if fd >= 0}
        poll = select.poll()
        for fd in (*streams, pidfd):
            poll.register(fd, select.POLLIN)
        for fd in streams:
            os.set_blocking(fd, False)
        limits = {reply_r: 2 * child.REPLY_LIMIT, out_r: self.output_limit}
        clock = ((~pid) << 3) | 2  # CPU time of another process, as clock_getcpuclockid(3) names it
        start = time.monotonic()
        check = start + self.cpu_seconds
        period, cpu_before, ended = 1, 0.0, ""
        while not ended:
            wait = max(0.0, check - time.monotonic())
            for fd, _ in poll.poll(wait * 1000 + 1):
                if fd == pidfd:
                    ended = "exit"
                elif not drain(fd, streams[fd], limits[fd]):
                    poll.unregister(fd)
            if len(streams[reply_r]) > child.REPLY_LIMIT + 4096:
                ended = "flood"
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
        for fd, data in streams.items():
            drain(fd, data, limits[fd])
        cpu = usage.ru_utime + usage.ru_stime
        return ended, status, bytes(streams[reply_r]), bytes(streams.get(out_r, b"")), cpu

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


def read_regular(folder_fd: int, name: str) -> bytes | None:
    """The first bytes of a regular file, never following a link; None where there is none."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder_fd)
    except OSError:
        return None
    try:
        return os.read(fd, FILE_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    finally:
        os.close(fd)


def remove_tree(path: str) -> None:
    """Remove a folder that an answer has used, whatever it left there; none of its processes is alive.

    Folders are emptied into the top one before they go, so that no depth of nesting breaks a limit.
    """
    try:
        os.rmdir(path)  # nearly always empty
        return
    except OSError:
        pass
    if os.path.islink(path) or not os.path.isdir(path):
        if os.path.lexists(path):
            os.unlink(path)
        return
    os.chmod(path, 0o700)
    moved = 0
    while names := os.listdir(path):
        for name in names:
            entry = os.path.join(path, name)
            if os.path.islink(entry) or not os.path.isdir(entry):
                os.unlink(entry)
                continue
            os.chmod(entry, 0o700)
            for inner in os.listdir(entry):
                moved += 1
                os.rename(os.path.join(entry, inner), os.path.join(path, f"moved {os.getpid()} {moved}"))
            os.rmdir(entry)
    os.rmdir(path)


def probe(server: Server) -> list[str]:
    """Enter the confinement in a child that then works as an answer does; returns the layers, raises if it
    cannot.
    """
    os.close(os.pidfd_open(os.getpid()))  # Linux 5.3; without it no job could be watched
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            active = server.confinement.enter()
            __import__("colorsys")  # any module not yet loaded
            os.write(writer, "\n".join(active).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(reader) as stream:
        layers = stream.read().splitlines()
    if status != 0:
        raise RuntimeError("a confined child cannot import the standard library")
    return layers


def serve(connection: socket.socket, server: Server) -> None:
    """Answer jobs until the other side hangs up."""
    while True:
        try:
            job = decode(receive(connection))
        except (EOFError, ConnectionError):
            return
        try:
            result = server.run(job)
        except Exception as error:  # our fault, whatever it is: reported as such, never as a verdict
            reply(connection, ("error", f"{type(error).__name__}: {error}"))
            continue
        reply(connection, result)


def main(socket_fd: int) -> None:
    """Entry point of the server's interpreter."""
    connection = socket.socket(fileno=socket_fd)
    os.environ.clear()
    scratch, limits, without = decode(receive(connection))
    namespaces = [] if "namespaces" in without else confine.enter_namespaces(scratch)
    owns_pids = "pid namespace" in namespaces
    if owns_pids:
        pid = os.fork()
        if pid:
            connection.close()
            os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF)
        confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    for name in WARM:
        __import__(name)
    try:
        server = Server(scratch, limits, without, owns_pids)
        layers = namespaces + probe(server)
    except Exception as error:
        reply(connection, ("error", f"{type(error).__name__}: {error}"))
        return
    reply(connection, ("ready", layers))
    serve(connection, server)
