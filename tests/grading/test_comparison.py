"""The rules by which a value equals what a test expects."""

from __future__ import annotations

import math
import random

import pytest

from projected_grpo.grading.sandbox.wire import Opaque
from projected_grpo.grading.verdict.comparison import HiddenTest, MalformedTest, read_test, same

EQUAL = [
    (None, None), (True, True), (3, 3), (10**30, 10**30), ("a", "a"), ([1, [2]], [1, [2]]), ((1,), (1,)),
    (2.0, 2.0), (2, 2.0), (2.0, 2), ([1.0, 2], [1, 2.0]), (-0.0, 0),
    (2.0000001, 2.0), (0.0, -0.0), (1e-10, 0.0), (math.inf, math.inf),
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ({1, 2}, {2, 1}), ([0.5, 1], [0.5, 1.0]),
    ({1: 0.30000001}, {1: 0.3}),
]  # fmt: skip
DIFFERENT = [
    (0, None), (1, True), (True, 1), (2.0000001, 2), (math.nan, 2), (1e300, 10**300),
    (3, 4), ("a", "b"), ("1", 1), ((1, 2), [1, 2]), ([1], [1, 2]),
    ([1, 2], [2, 1]), (2.1, 2.0), (True, 1.0), (math.nan, math.nan), (math.nan, 1.0), (-math.inf, math.inf),
    (10**400, 1.0), (1e-3, 0.0), ({"a": 1}, {"a": 2}), ({1: 0}, {True: 0}), ({1, 2}, {1}),
    ({1}, {1.0}),
    (Opaque("int"), 3), (Opaque("Always"), None), ([Opaque("x")], [1]), ("2.0", 2.0), (None, 2.0),
]  # fmt: skip


@pytest.mark.parametrize(("got", "expected"), EQUAL, ids=repr)
def test_equal(got: object, expected: object) -> None:
    assert same(got, expected)


@pytest.mark.parametrize(("got", "expected"), DIFFERENT, ids=repr)
def test_different(got: object, expected: object) -> None:
    assert not same(got, expected)


@pytest.mark.parametrize(
    ("text", "test"),
    [
        ("assert Solution().f(x = 1) == 2", HiddenTest("Solution().f(x = 1)", 2)),
        ("assert Solution().f(x = ['a']) == [None, -1.5]", HiddenTest("Solution().f(x = ['a'])", [None, -1.5])),
        ("assert Solution().f() == -inf", HiddenTest("Solution().f()", -math.inf)),
        ("assert Solution().f() == [inf, {1: (2,)}]", HiddenTest("Solution().f()", [math.inf, {1: (2,)}])),
        ("assert Solution().f(s = 'a == b') == 'c == d'", HiddenTest("Solution().f(s = 'a == b')", "c == d")),
        (" assert Solution().f(s = 'äö→', n = 1) == 'ß' ", HiddenTest("Solution().f(s = 'äö→', n = 1)", "ß")),
        ("assert (Solution().f(x = 1)) == [\n1]", HiddenTest("Solution().f(x=1)", [1])),
        ("assert Solution().f(root = tree([1])) == 1", HiddenTest("Solution().f(root = tree([1]))", 1)),
    ],
)  # fmt: skip
def test_a_test_is_split_into_call_and_value(text: str, test: HiddenTest) -> None:
    assert read_test(text) == test


@pytest.mark.parametrize(
    "text",
    ["", "assert", "Solution().f() == 1", "assert Solution().f()", "assert f() != 1", "assert 1 == 1",
     "assert Solution().f() == g()", "assert a() == 1 == 1", "assert a() == 1; assert b() == 2",
     "assert f() == {[1]: 2}", "assert f() == " + "-" * 5000 + "1", "assert f() == " + "1+" * 30_000 + "1"],
)  # fmt: skip
def test_other_tests_are_refused(text: str) -> None:
    with pytest.raises(MalformedTest):
        read_test(text)


def test_random_values_equal_themselves_and_not_their_neighbours() -> None:
    rng = random.Random(0)

    def value(depth: int) -> object:
        kind = rng.randrange(7 if depth else 4)
        leaf = [rng.randint(-9, 9), rng.random(), rng.choice("abc"), rng.choice([None, True, False])]
        if kind < 4:
            return leaf[kind]
        items = [value(depth - 1) for _ in range(rng.randint(0, 3))]
        return [items, tuple(items), dict(enumerate(items))][kind - 4]

    for _ in range(500):
        one = value(3)
        assert same(one, one)
        assert not same([one], [one, one])
        assert not same([one], (one,))
