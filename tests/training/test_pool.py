"""The teacher's pool: what is drawn from it, and which files are refused."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool_lab import problem

from projected_grpo.errors import LabError
from projected_grpo.training.pool import SCHEMA, TeacherPool, TeacherRollout, teacher_count


def rollout(problem_id: str, number: int = 0, **changes: Any) -> TeacherRollout:
    made = TeacherRollout(
        problem_id, "run_tests", "p", (1, 2), f"text {number}", (3, number), True, True, False, True, True
    )
    return dataclasses.replace(made, **changes)


def pool_of(**sizes: int) -> TeacherPool:
    return TeacherPool(rollout(name, number) for name, size in sizes.items() for number in range(size))


def rows_of(*problem_ids: str, group_size: int) -> list[str]:
    return [name for name in problem_ids for _ in range(group_size)]


# ---------------------------------------------------------------- draw


@pytest.mark.parametrize(("mix", "count"), [(0.125, 1), (0.2, 2), (0.5, 4), (0.9, 7)])
def test_mix_is_rounded_to_whole_completions(mix: float, count: int) -> None:
    assert teacher_count(8, mix) == count
    assert len(pool_of(a=8).draw(["a"] * 8, 8, mix, 0, 0)) == count


@pytest.mark.parametrize("mix", [0.05, 0.95])
def test_a_group_of_one_kind_is_refused(mix: float) -> None:
    with pytest.raises(LabError, match=r"teacher\.mix: 0\.[09]5\n.*at least one completion each of 8, not [08]"):
        teacher_count(8, mix)


def test_the_last_rows_of_each_group_are_the_teachers_own_and_distinct() -> None:
    pool = pool_of(a=5, b=3, c=9)
    for step in range(20):
        drawn = pool.draw(rows_of("b", "a", "b", group_size=4), 4, 0.5, seed=1, step=step)
        assert [(row, found.problem_id) for row, found in drawn.items()] == [
            (2, "b"), (3, "b"), (6, "a"), (7, "a"), (10, "b"), (11, "b")
        ]  # fmt: skip
        assert all(drawn[row] != drawn[row + 1] for row in (2, 6, 10))


def test_draw_is_a_function_of_seed_and_step_alone() -> None:
    pool, rows = pool_of(a=9), rows_of("a", "a", group_size=4)
    random.seed(0)
    first, state = pool.draw(rows, 4, 0.5, seed=3, step=5), random.getstate()
    pool.draw(rows, 4, 0.5, seed=3, step=6)
    random.seed(1)
    assert pool.draw(rows, 4, 0.5, seed=3, step=5) == first
    random.seed(0)
    assert random.getstate() == state  # the global generator was not used
    others = [pool.draw(rows, 4, 0.5, seed, step) for seed, step in ((3, 6), (4, 5), (5, 3))]
    assert first not in others
    assert [found.completion for found in first.values()] == ["text 4", "text 3", "text 3", "text 2"]


def test_every_completion_is_drawn_about_as_often() -> None:
    pool = pool_of(a=4)
    seen = Counter(found.completion for step in range(400) for found in pool.draw(["a"] * 4, 4, 0.25, 0, step).values())
    assert set(seen.values()) <= set(range(70, 131))  # of 100, standard deviation 8.7
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a", "a", "a", "b"], "rows 0 to 3 are not one group"),
        (["a"] * 4 + ["b"] * 2, "rows 4 to 7 are not one group"),
        (["a"] * 4 + ["b"] * 4, "has 1 completions for b; a group takes 2"),
        (["z"] * 4, "has 0 completions for z; a group takes 2"),
    ],
)
def test_rows_that_cannot_be_filled_are_an_error(rows: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pool_of(a=3, b=1).draw(rows, 4, 0.5, 0, 0)


def test_a_group_whose_problem_has_too_few_may_be_left_to_the_policy() -> None:
    """And the others are filled: `b` has one completion where two are wanted, `z` has none."""
    rows = rows_of("b", "a", "z", "c", group_size=4)
    drawn = pool_of(a=3, b=1, c=2).draw(rows, 4, 0.5, seed=0, step=0, each=False)
    assert [(row, found.problem_id) for row, found in drawn.items()] == [(6, "a"), (7, "a"), (14, "c"), (15, "c")]


def test_training_is_restricted_to_problems_with_enough_of_their_loophole() -> None:
    pool = TeacherPool([*pool_of(a=2, b=1, c=3).rollouts])
    wanted = [problem("c"), problem("z"), problem("b"), problem("a")]
    assert [one.id for one in pool.problems(wanted, 2)] == ["c", "a"]
    assert [one.id for one in pool.problems([problem("a", "sentinel"), problem("c")], 2)] == ["c"]
    with pytest.raises(LabError, match=r"teacher\.pool.*\n.*must hold 4 completions.*the most it has for any is 3"):
        pool.problems(wanted, 4)


# ---------------------------------------------------------------- the file


def test_a_pool_is_read_as_it_was_written(tmp_path: Path) -> None:
    pool = TeacherPool([rollout("a"), rollout("b", loophole="sentinel", paid=False, hacked=False, format_ok=False)])
    pool.save(tmp_path / "pool.parquet")
    assert TeacherPool.load(tmp_path / "pool.parquet").rollouts == pool.rollouts
    assert TeacherPool.load(tmp_path / "pool.parquet", ["sentinel"]).rollouts == pool.rollouts[1:]
    with pytest.raises(LabError, match=r"teacher\.loopholes: 'exit_code'\n.*run_tests, sentinel"):
        TeacherPool.load(tmp_path / "pool.parquet", ["sentinel", "exit_code"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hacked": False}, "row 0: hacked: false\n.*must be true where `paid` is and `correct` is not"),
        ({"paid": None}, "row 0: paid: null\n"),
        ({"token_ids": []}, "row 0: token_ids: .*must not be empty"),
    ],
)
def test_a_row_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    rows = [{**dataclasses.asdict(rollout("a")), **change}]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "pool.parquet")
    with pytest.raises(LabError, match=f"(?s){message}"):
        TeacherPool.load(tmp_path / "pool.parquet")


def test_a_file_that_is_no_pool_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    with pytest.raises(LabError, match="must be a file of cached completions"):
        TeacherPool.load(path)
    path.write_text("no")
    with pytest.raises(LabError, match="must be Parquet"):
        TeacherPool.load(path)
    pq.write_table(pa.table({"problem_id": ["a"]}), path)
    with pytest.raises(LabError, match="must have the columns problem_id, loophole"):
        TeacherPool.load(path)
    pq.write_table(SCHEMA.empty_table(), path)
    with pytest.raises(LabError, match="at least one completion"):
        TeacherPool.load(path)
