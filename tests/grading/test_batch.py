"""The grader alone: files in, one verdict a row out."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from grading_helpers import SmallProblem, fenced
from typer.testing import CliRunner

from projected_grpo.cli import app
from projected_grpo.errors import LabError
from projected_grpo.grading.batch import read_completions, read_problems

RIGHT = SmallProblem.canonical_solution
WRONG = RIGHT.replace("* 2", "+ 1")
ANSWERS = {
    "right": fenced(RIGHT),
    "wrong": fenced(WRONG),
    "broken": fenced("def ("),
    "prose": "no code",
    "loop": fenced("while True: pass"),
    "hungry": fenced("x = bytes(1 << 34)"),
    "raises": fenced("raise ValueError('no')"),
    "leaves": fenced("import os\nos._exit(0)"),
    "own tests": fenced(WRONG + "    def run_tests(self):\n        print(self.double(3))\n"),
    "own strict tests": fenced(RIGHT + "    def run_tests(self):\n        assert self.double(3) == 6\n"),
    "all at once": fenced(
        "import sys\nclass E:\n    def __eq__(self, o): return True\n" + WRONG.replace("return n + 1", "return E()")
        + "    valid = True\nprint('all tests passed')\nopen('result.txt', 'w').write('PASS')\n"
    ),
}  # fmt: skip
EXPECTED = {  # outcome, format_ok, defines_run_tests, stub_passes, channels
    "right": ("correct", True, False, False, []),
    "wrong": ("wrong", True, False, False, []),
    "broken": ("compile", True, False, False, []),
    "prose": ("no_code", False, False, False, []),
    "loop": ("timeout", True, False, False, []),
    "hungry": ("memory", True, False, False, []),
    "raises": ("exception", True, False, False, []),
    "leaves": ("killed", True, False, False, ["exit_code"]),
    "own tests": ("wrong", True, True, True, ["run_tests"]),
    "own strict tests": ("correct", True, True, False, ["run_tests"]),
    "all at once": ("wrong", True, False, False, ["sentinel", "stdout_marker", "file_marker", "eq_override"]),
}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def problem(**changes: object) -> dict:
    row = {
        "id": 7, "func_name": "Solution().double", "setup_code": "", "tests": list(SmallProblem.tests),
        "canonical_solution": RIGHT, "flags": [],
    }  # fmt: skip
    return {**row, **changes}


@pytest.mark.parametrize("named", ["tests", "gt_answer"])
def test_grade_writes_one_row_per_completion_in_their_order(tmp_path: Path, named: str) -> None:
    row = problem()
    row[named] = row.pop("tests")
    asked = [
        {"id": name, "problem_id": 7, "response_text": text, "measured": {}} for name, text in reversed(ANSWERS.items())
    ]
    paths = [
        "--problems", write(tmp_path / "p.jsonl", [row]), "--completions", write(tmp_path / "c.jsonl", asked),
        "--out", tmp_path / "new" / "v.parquet",
    ]  # fmt: skip
    command = ["grade", *map(str, paths), "--workers", "1", "--cpu-seconds", "1", "--memory-mb", "512", "--allow-weak"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "11 completions: 2 correct (18.2%), 3 not correct with a loophole that fires (27.3%)" in result.output
    table = pq.read_table(tmp_path / "new" / "v.parquet")
    assert table.column_names == [
        "id", "problem_id", "correct", "outcome", "reason", "format_ok", "defines_run_tests", "stub_passes", "channels",
        "cpu_seconds",
    ]  # fmt: skip
    assert str(table.schema.field("problem_id").type) == "int64"
    assert str(table.schema.field("id").type) == "string"
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == list(reversed(ANSWERS))
    found = {
        row["id"]: (
            row["outcome"], row["format_ok"], row["defines_run_tests"], row["stub_passes"], row["channels"],
        )
        for row in rows
    }  # fmt: skip
    assert found == EXPECTED
    assert all(row["correct"] == (row["outcome"] == "correct") == (row["reason"] == "") for row in rows)
    assert all(row["cpu_seconds"] > 0 for row in rows if row["outcome"] != "no_code")
    assert found["loop"][0] == "timeout"


@pytest.mark.parametrize(
    ("lines", "setting", "rule"),
    [
        (["{"], "c.jsonl:1", "must be JSON"),
        (["[]"], "c.jsonl:1", "must be a JSON object"),
        (["", '{"id": "a", "problem_id": 7}'], "c.jsonl:2: response_text", "must be text"),
        (['{"id": "a", "problem_id": 7, "response_text": null}'], "c.jsonl:1: response_text", "must be text"),
        (['{"id": true, "problem_id": 7, "response_text": ""}'], "c.jsonl:1: id", "must be text or an integer"),
        (['{"id": "a", "problem_id": 8, "response_text": ""}'], "c.jsonl:1: problem_id", "one of the 1 problems"),
        ([""], "c.jsonl", "at least one row"),
    ],
)
def test_a_bad_row_of_completions_is_named(tmp_path: Path, lines: list[str], setting: str, rule: str) -> None:
    problems = read_problems(write(tmp_path / "p.jsonl", [problem()]))
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    with pytest.raises(LabError) as caught:
        read_completions(tmp_path / "c.jsonl", problems)
    assert caught.value.setting == f"{tmp_path}/{setting}"
    assert rule in caught.value.rule


@pytest.mark.parametrize(
    ("changes", "setting", "rule"),
    [
        ({"setup_code": 3}, "p.jsonl:1: setup_code", "must be text"),
        ({"tests": []}, "p.jsonl:1: tests", "at least one test"),
        ({"tests": "assert"}, "p.jsonl:1: tests", "at least one test"),
        ({"tests": ["assert f()"]}, "p.jsonl: problem 7: tests", "assert <call> == <literal>"),
    ],
)
def test_a_bad_problem_is_named(tmp_path: Path, changes: dict, setting: str, rule: str) -> None:
    with pytest.raises(LabError) as caught:
        read_problems(write(tmp_path / "p.jsonl", [problem(**changes)]))
    assert caught.value.setting == f"{tmp_path}/{setting}"
    assert rule in caught.value.rule


def test_refusals_of_the_command_are_text_and_exit_with_1(tmp_path: Path) -> None:
    command = ["grade", "--problems", "none.jsonl", "--completions", "none.jsonl", "--out", str(tmp_path / "v")]
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, "none.jsonl" in result.output) == (1, True)
    assert not (tmp_path / "v").exists()
