from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from projected_grpo.problems.families import make_problems
from projected_grpo.problems.schema import Problem, read_problems, write_problems


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    made = make_problems(4, 3, "train", ("run_tests", "none"), seed=0)
    return [*made[:3], dataclasses.replace(made[3], question='Grüße,\n "quoted" \u2028 line')]


def test_what_is_written_is_read_back(tmp_path: Path, problems: list[Problem]) -> None:
    path = tmp_path / "new" / "train.jsonl"  # folders are made
    write_problems(path, problems)
    assert read_problems(path) == problems
    assert isinstance(read_problems(path)[0].tests, tuple)
    assert [path.name for path in path.parent.iterdir()] == ["train.jsonl"]


def test_one_json_object_per_line(tmp_path: Path, problems: list[Problem]) -> None:
    write_problems(tmp_path / "train.jsonl", problems)
    lines = (tmp_path / "train.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line)["id"] for line in lines] == [problem.id for problem in problems]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, problems: list[Problem]) -> None:
    path = tmp_path / "train.jsonl"
    write_problems(path, problems)

    def broken():
        yield problems[0]
        raise RuntimeError("no more problems")

    with pytest.raises(RuntimeError, match="no more problems"):
        write_problems(path, broken())
    assert read_problems(path) == problems


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"id": "x"}', "tests"),
        ("[1, 2]", "list"),
        ('{"id": ', "Expecting value"),
        (None, "colour"),
    ],
    ids=["missing fields", "no object", "cut off", "unknown field"],
)
def test_a_malformed_row_is_refused_by_its_number(
    row: str | None, said: str, tmp_path: Path, problems: list[Problem]
) -> None:
    path = tmp_path / "train.jsonl"
    write_problems(path, problems[:1])
    if row is None:
        row = json.dumps({**dataclasses.asdict(problems[0]), "colour": "red"})
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ValueError, match=rf"train\.jsonl:2: not a problem row: .*{said}"):
        read_problems(path)


def test_the_bare_method_name(problems: list[Problem]) -> None:
    assert dataclasses.replace(problems[0], func_name="Solution().total").method == "total"
    assert dataclasses.replace(problems[0], func_name="total").method == "total"
