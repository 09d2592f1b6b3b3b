"""What a fork server reports, read as the claims of an answer that may have forged them."""

from __future__ import annotations

import os
import signal
from typing import Any

from projected_grpo.grading.sandbox.child import REPLY_LIMIT
from projected_grpo.grading.sandbox.jobs import JobResult, Outcome
from projected_grpo.grading.sandbox.limits import SandboxLimits
from projected_grpo.grading.sandbox.wire import Malformed, decode

FRAMING = 4096  # bytes of a reply beyond its values
Report = tuple[str, int, bytes, bytes, dict[str, bytes], float]  # as `Server.run` returns it


def interpret(report: Report, limits: SandboxLimits) -> JobResult:
    """The result that a report amounts to. The server measured the rest; the reply bytes are the child's."""
    ended, status, answer, printed, files, cpu = report
    oversized = len(answer) > REPLY_LIMIT + FRAMING  # then not worth a look: decoding would be our time
    values, final, fault = ([], None, "") if oversized else read_frames(answer)
    code = os.waitstatus_to_exitcode(status)
    outcome: Outcome
    if ended == "cpu" or cpu > limits.cpu_seconds or -code == signal.SIGXCPU:
        outcome, reason = "timeout", f"more than {limits.cpu_seconds:g} s of CPU time"
    elif ended == "wall":
        outcome, reason = "timeout", f"more than {limits.wall_seconds:g} s"
    elif oversized:
        outcome, reason = "protocol", "reply too large"
    elif fault:
        outcome, reason = "protocol", fault
    elif final is not None:
        outcome, reason = final
    elif code < 0:
        outcome, reason = "killed", _signal_name(-code)
    else:
        outcome, reason = "killed", f"ended early with exit status {code}"
    text = printed.decode("utf-8", "replace")
    return JobResult(outcome, reason, tuple(values), text, files, cpu)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has none
        return f"signal {number}"


def read_frames(data: bytes) -> tuple[list[Any], tuple[Outcome, str] | None, str]:
    """Values, the closing (outcome, reason) if one came, and what is wrong with the frames, "" if nothing."""
    values: list[Any] = []
    at = 0
    while at < len(data):
        tag, size = data[at : at + 1], int.from_bytes(data[at + 1 : at + 5], "big")
        payload = data[at + 5 : at + 5 + size]
        at += 5 + size
        if at > len(data):
            return values, None, "reply cut short"
        try:
            value = decode(payload)
        except Malformed as error:
            return values, None, f"malformed reply: {error}"
        if tag == b"V":
            values.append(value)
        elif at != len(data):
            return values, None, "bytes after the end of the reply"
        elif tag == b"E":
            return values, ("ok", ""), ""
        elif tag == b"X" and _is_failure(value):
            return values, (value[0], printable(value[1])), ""
        else:
            return values, None, "unknown frame"
    return values, None, ""


def _is_failure(value: object) -> bool:
    return (
        type(value) is tuple
        and len(value) == 2
        and value[0] in ("compile", "exception", "memory")
        and type(value[1]) is str
    )


def printable(text: str, limit: int = 300) -> str:
    """Text from an answer, made safe to print and store."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
