"""The encoding: plain values go round, subclasses lose their tricks, malformed bytes are refused."""

from __future__ import annotations

import enum
import math
import random

import pytest

from projected_grpo.grading.sandbox.wire import Malformed, Opaque, TooLarge, decode, encode

VALUES = [
    None, True, False, 0, -17, 10**5000, 1.5, -0.0, math.inf, "", "añ数\ud800\x00", b"\xff",
    [], [1, [2, (3,)], {"k": None}], (), {1, "a", (2, 3)}, {1: 2, "a": [True]}, {(): set()},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20] if value != 10**5000 else "big")
def test_plain_values_survive_with_their_types(value: object) -> None:
    got = decode(encode(value))
    assert type(got) is type(value)
    assert got == value


def test_true_one_and_one_point_zero_stay_apart() -> None:
    assert [type(item) for item in decode(encode([True, 1, 1.0]))] == [bool, int, float]


def test_nan_survives() -> None:
    assert math.isnan(decode(encode(math.nan)))


def test_a_subclass_travels_as_the_value_it_holds() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        def __index__(self) -> int:
            return 42

        __hash__ = int.__hash__

    class Side(enum.IntEnum):
        LEFT = 7

    assert decode(encode(Liar(3))) == 3
    assert decode(encode([Side.LEFT])) == [7]


def test_other_objects_become_the_name_of_their_type() -> None:
    assert decode(encode([object(), 1j, frozenset()])) == [
        Opaque("object"), Opaque("complex"), Opaque("frozenset")
    ]  # fmt: skip


def test_endless_nesting_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    got = decode(encode(loop))
    for _ in range(100):
        got = got[0]
    assert got == Opaque("too deeply nested")


def test_the_limit_holds() -> None:
    assert len(encode("x" * 90, limit=100)) < 100
    with pytest.raises(TooLarge):
        encode("x" * 200, limit=100)
    with pytest.raises(TooLarge):
        encode([None] * 200, limit=100)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"i", b"i3:12", b"i2:zz", b"x0:", b"N0:N0:", b"l2:N0:", b"z1:l0:", b"d1:l0:N0:", b"f1:q",
        b"i-1:", b"l99999999999:", b"s1:\xff", b"l1:" * 2000 + b"N0:", b"i9999999999999999999999:1",
        b"\xff" * 50,
    ],
)  # fmt: skip
def test_malformed_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode(data)


@pytest.mark.parametrize("value", [{7 * (2**61 - 1)}, {2**61: 1}, {(1, -(2**70))}])
def test_integers_that_share_a_hash_are_refused_where_they_would_be_hashed(value: object) -> None:
    """A set of them takes quadratic time, and it would be the time of whoever grades."""
    with pytest.raises(Malformed, match="too large for a set or a key"):
        decode(encode(value))
    assert decode(encode([2**70, {1: 2**70}])) == [2**70, {1: 2**70}]


def test_mutated_bytes_never_raise_anything_else() -> None:
    rng = random.Random(0)
    base = encode([1, "two", {3: [4.0, None]}, {5}, (True, b"6")])
    for _ in range(5000):
        data = bytearray(base)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            decode(bytes(data))
        except Malformed:
            continue
