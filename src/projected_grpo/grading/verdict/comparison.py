"""What a test expects, and when a returned value equals it: the rules in one place.

Both sides are plain built-in values. The expected one comes from the test's text and never leaves this
process; the other was decoded from the sandbox's reply.
"""

from __future__ import annotations

import ast
import functools
import math
from typing import NamedTuple

from projected_grpo.grading.sandbox.wire import encode

RELATIVE_TOLERANCE = 1e-6
ABSOLUTE_TOLERANCE = 1e-9  # for an expected 0.0


class HiddenTest(NamedTuple):
    """One hidden test: an expression for the sandbox, the value it must have."""

    expression: str  # "Solution().total(nums=[1, 2])"
    expected: object


_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)  # deep, or no literal


class MalformedTest(ValueError):
    """A test that is not `assert <call> == <literal>`: a fault of the problem, not of an answer."""


class _Infinity(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(math.inf) if node.id == "inf" else node


@functools.lru_cache(maxsize=1 << 15)  # a set of real problems has some ten thousand
def read_test(text: str) -> HiddenTest:
    """Split `assert Solution().f(x = 1) == 2`. The expected side is a literal, `inf` and `-inf` included."""
    try:
        source = text.strip()
        (statement,) = ast.parse(source).body
    except _UNREADABLE as error:
        raise MalformedTest(f"not one Python statement: {text[:200]!r}") from error
    match statement:
        case ast.Assert(ast.Compare(ast.Call() as call, [ast.Eq()], [expected])):
            pass
        case _:
            raise MalformedTest(f"not of the form `assert <call> == <literal>`: {text[:200]!r}")
    try:
        value = ast.literal_eval(_Infinity().visit(expected))
    except _UNREADABLE as error:
        raise MalformedTest(f"the expected value is not a literal: {text[:200]!r}") from error
    one_line = "\n" not in source  # then the call's place is known, in bytes; writing it anew takes ten times as long
    expression = source.encode()[call.col_offset : call.end_col_offset].decode() if one_line else ast.unparse(call)
    return HiddenTest(expression, value)


def same(got: object, expected: object) -> bool:
    """Whether an answer's value is the expected one. Types must be equal and exact, numbers excepted.

    - None, bool, str: same type, same value; True is not 1.
    - int expected: an int or a float of exactly that value: tests write 2 where the method returns a float.
    - float expected: an int or a float within 1e-6 of it, relatively; infinities by sign; NaN equals nothing.
    - list and tuple: same type, same length, same items in order; a tuple is not a list.
    - dict: same keys, same items, whatever the order. set: same members.
    - anything else (an `Opaque` among them) equals nothing.
    """
    kind = type(expected)
    if kind is float:
        return _close(got, expected)  # type: ignore[arg-type]
    if kind is int:
        return type(got) in (int, float) and got == expected
    if type(got) is not kind:
        return False
    if expected is None:
        return True
    if kind in (bool, str, bytes):
        return got == expected
    if kind in (list, tuple):
        return len(got) == len(expected) and all(map(same, got, expected))  # type: ignore[arg-type, call-overload]
    if kind is set:
        return _keys(got) == _keys(expected)  # type: ignore[arg-type]
    if kind is dict:
        mine, theirs = _by_key(got), _by_key(expected)  # type: ignore[arg-type]
        return mine.keys() == theirs.keys() and all(same(mine[key], theirs[key]) for key in theirs)
    return False


def _close(got: object, expected: float) -> bool:
    if type(got) is not int and type(got) is not float:
        return False
    try:
        return math.isclose(got, expected, rel_tol=RELATIVE_TOLERANCE, abs_tol=ABSOLUTE_TOLERANCE)
    except OverflowError:  # an int beyond every float
        return False


def _keys(members: set[object]) -> set[bytes]:
    """Members by their encoding, which tells 1 from True and from 1.0 where hashing does not."""
    return {encode(member) for member in members}


def _by_key(mapping: dict[object, object]) -> dict[bytes, object]:
    return {encode(key): value for key, value in mapping.items()}
