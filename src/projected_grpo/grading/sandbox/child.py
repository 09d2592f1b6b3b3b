"""The life of one child: confined, limited, it runs an answer and writes the values of expressions to a file.

Runs in the forked child only. Nothing here is trusted afterwards: the answer shares this process and may
write what it likes to the file. It gains nothing, for the file carries values, and the expected ones are
elsewhere.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import resource
import sys
import types
from collections.abc import Callable, Sequence

from .wire import TooLarge, encode

REPLY_FD = 3
REPLY_LIMIT = 1 << 20  # bytes of all values together
OPEN_FILES = 64
MORE_PROCESSES = 512  # than there are when the server starts
LARGEST_FILE = 16 << 20
STACK = 64 << 20  # deep recursion through C code (lru_cache) is honest work
REASON_LENGTH = 200


def limit_inherited() -> None:
    """Limits that the server sets on itself once, harmless to it, and that every child inherits."""
    for kind, value in [
        (resource.RLIMIT_FSIZE, LARGEST_FILE),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ]:
        resource.setrlimit(kind, (value, value))
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    soft = STACK if hard == resource.RLIM_INFINITY else min(STACK, hard)
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))


Limits = tuple[tuple[int, tuple[int, int]], ...]


def own_limits(cpu_seconds: float, memory_mb: int) -> Limits:
    """Hard limits that hold for a child but not for the server. The CPU limit is a backstop: the server measures
    more finely.
    """
    with open("/proc/loadavg") as file:
        running = int(file.read().split()[3].split("/")[1])
    own = [
        (resource.RLIMIT_CPU, math.ceil(cpu_seconds) + 1),
        (resource.RLIMIT_AS, memory_mb << 20),
        # The kernel counts what the user runs, not what the child does: so all that runs already, and some.
        (resource.RLIMIT_NPROC, running + MORE_PROCESSES),
    ]
    return tuple((kind, (value, value)) for kind, value in own)


def limit_resources(limits: Limits) -> None:
    """Put limits on the calling process."""
    for kind, values in limits:
        resource.setrlimit(kind, values)


def send(tag: bytes, value: object, limit: int = REPLY_LIMIT) -> int:
    """Append one frame (tag, length, encoded value) to the reply; returns its size. Raises TooLarge."""
    payload = encode(value, limit)
    frame = tag + len(payload).to_bytes(4, "big") + payload
    view = memoryview(frame)
    while view:
        view = view[os.write(REPLY_FD, view) :]
    return len(frame)


def describe(error: BaseException) -> tuple[str, str]:
    """Outcome and reason of an exception, without running any code of its class."""
    kind = type(error)
    name = type.__dict__["__name__"].__get__(kind)
    args = BaseException.__dict__["args"].__get__(error)
    detail = f": {args[0][:REASON_LENGTH]}" if args and type(args[0]) is str else ""
    outcome = "memory" if issubclass(kind, MemoryError) else "exception"
    return outcome, f"{name[:REASON_LENGTH]}{detail}"


def run_answer(
    module: types.ModuleType,
    names: dict[str, object],
    code: str,
    compiled: Sequence[types.CodeType],
    exports: Sequence[str],
) -> None:
    """Run the answer in `module`, then send one value per expression, evaluated in `names`, then an end frame."""
    run, evaluate, end = exec, eval, os._exit  # the answer may replace the built-in ones
    random.seed(0)  # equal answers draw equal numbers; Python reseeds at each fork
    try:
        program = compile(code, "answer.py", "exec", dont_inherit=True)
    except MemoryError as error:
        send(b"X", describe(error))
        end(0)
    except BaseException as error:
        send(b"X", ("compile", describe(error)[1]))
        end(0)
    try:
        sys.modules["answer"] = module
        run(program, module.__dict__)
        names.update({name: module.__dict__[name] for name in exports if name in module.__dict__})
        left = REPLY_LIMIT
        for expression in compiled:
            left -= send(b"V", evaluate(expression, names), left)
        sys.stdout.flush()
        send(b"E", None)
    except TooLarge:
        send(b"X", ("exception", f"values exceed {REPLY_LIMIT >> 10} KiB"))
    except BaseException as error:
        send(b"X", describe(error))
        _flush(sys.stdout.flush)
    end(0)


def _flush(flush: Callable[[], None]) -> None:
    with contextlib.suppress(BaseException):  # the answer may have replaced or closed it
        flush()
