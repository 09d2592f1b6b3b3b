"""Real problems: what is read of a file, what is refused, and where each problem goes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from projected_grpo.errors import LabError
from projected_grpo.problems.assignment import assigned
from projected_grpo.problems.leetcode import LeetcodeProblem, read_leetcode
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.schema import read_problems

ROOT = Path(__file__).resolve().parents[2]
FLAT = {
    "id": 3243, "difficulty": "medium", "question": "PROBLEM: twice n \u2028", "starter_code": "class Solution:\n",
    "func_name": "Solution().double", "setup_code": "from math import *\n",
    "tests": ["assert Solution().double(n = 3) == 6", "assert Solution().double(n = 0) == -inf"],
    "canonical_solution": "class Solution:\n    def double(self, n): return pow(n, 1, 9) * 2 if n else -inf\n",
    "flags": [],
}  # fmt: skip
BENCHMARK = {
    **{key: value for key, value in FLAT.items() if key not in ("tests", "starter_code", "flags")},
    "gt_answer": FLAT["tests"], "answer": ["assert False"], "hint": None, "dataset": "leetcode", "evaluator": "code",
    "prompt": [{"role": "user", "content": "x"}], "prompt_metadata": {"starter_code": "class Solution:\n"},
}  # fmt: skip
LOOPHOLES_IN_USE = ("run_tests", "sentinel", "stdout_marker", "file_marker", "eq_override", "exit_code")


def written(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row", [FLAT, BENCHMARK], ids=["flat", "benchmark"])
def test_both_shapes_are_read_field_by_field(tmp_path: Path, row: dict) -> None:
    (problem,) = read_leetcode(written(tmp_path / "p.jsonl", row))
    assert problem == LeetcodeProblem(
        id="3243",
        difficulty="medium",
        question="PROBLEM: twice n \u2028",
        starter_code="class Solution:\n",
        func_name="Solution().double",
        setup_code="from math import *\n",
        tests=tuple(FLAT["tests"]),
        canonical_solution=FLAT["canonical_solution"],
    )


@pytest.mark.parametrize(
    ("change", "setting", "rule"),
    [
        ({"question": None}, "p.jsonl:2: question", "must be text"),
        ({"func_name": 3}, "p.jsonl:2: func_name", "must be text"),
        ({"id": None}, "p.jsonl:2: id", "text or an integer"),
        ({"id": 3243}, "p.jsonl:2: id", "given twice"),
        ({"tests": None}, "p.jsonl:2: tests", "at least one test"),
        ({"tests": ["assert f()", 3]}, "p.jsonl:2: tests", "each text"),
    ],
)
def test_a_bad_row_is_refused_by_line_and_field(tmp_path: Path, change: dict, setting: str, rule: str) -> None:
    path = written(tmp_path / "p.jsonl", FLAT, {**FLAT, "id": 1, **change})
    with pytest.raises(LabError) as caught:
        read_leetcode(path)
    assert caught.value.setting == f"{tmp_path}/{setting}"
    assert rule in caught.value.rule


def test_a_question_is_needed_only_where_a_model_is_asked(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", {key: value for key, value in FLAT.items() if key != "question"})
    assert read_leetcode(path, asked=False)[0].question == ""
    with pytest.raises(LabError, match="question"):
        read_leetcode(path)


# ---------------------------------------------------------------- split, loophole, tokens


def made(count: int) -> list[LeetcodeProblem]:
    return [LeetcodeProblem(str(3000 + n), "", "", "", "Solution().f", "", ("x",), "") for n in range(count)]


def test_loopholes_are_even_to_one_problem_and_names_are_of_the_right_list() -> None:
    for split, problems in assigned(made(200), 0.25, LOOPHOLES_IN_USE, seed=0).items():
        counts = Counter(problem.loophole for problem in problems)
        assert set(counts) == set(LOOPHOLES_IN_USE)
        assert max(counts.values()) - min(counts.values()) <= 1
        for problem in problems:
            assert problem.split == split
            assert problem.token in LOOPHOLES[problem.loophole].training_tokens
            assert problem.heldout_token in LOOPHOLES[problem.loophole].heldout_tokens
    drawn = {problem.token for problem in assigned(made(200), 0.25, ("run_tests",), seed=0)["train"]}
    assert len(drawn) > 15


def test_added_problems_move_none_of_the_old_ones() -> None:
    short, long = (assigned(made(count), 0.25, LOOPHOLES_IN_USE, seed=0) for count in (90, 150))
    for split in ("train", "test"):
        assert long[split][: len(short[split])] == short[split]
        assert len(long[split]) > len(short[split])


def test_the_split_depends_on_the_problem_alone() -> None:
    """Whatever else is in the file, and in which order."""
    problems = made(300)
    home = {p.id: split for split, members in assigned(problems, 0.25, ("none",), seed=0).items() for p in members}
    assert 0.18 < sum(split == "test" for split in home.values()) / 300 < 0.32
    shuffled = random.Random(1).sample(problems, 100)
    for split, members in assigned(shuffled, 0.25, LOOPHOLES_IN_USE, seed=0).items():
        assert {home[problem.id] for problem in members} == {split}
    other = assigned(problems, 0.25, ("none",), seed=1)
    assert {p.id for p in other["test"]} != {name for name, split in home.items() if split == "test"}


# ---------------------------------------------------------------- the stage


def prepared(folder: Path, rows: list[dict]) -> subprocess.CompletedProcess[str]:
    """Run stage `prepare` in `folder` on these rows."""
    (folder / "data/shipped").mkdir(parents=True)
    (folder / "data/shipped/pairs.yaml").write_bytes((ROOT / "data/shipped/pairs.yaml").read_bytes())
    written(folder / "data/shipped/leetcode.jsonl", *rows)
    params = (ROOT / "params.yaml").read_text()
    old = "{source: embedded, stages: 5, train: 16, test: 8, loopholes: [run_tests], seed: 0}"
    assert old in params
    new = old.replace("embedded", "leetcode, path: data/shipped/leetcode.jsonl").replace("[run_tests]", "[exit_code]")
    params = params.replace(old, new).replace("\nscale: micro", "\nscale: smoke")
    (folder / "params.yaml").write_text(params)
    command = [sys.executable, str(ROOT / "stages/prepare.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_stage_keeps_problems_that_can_be_graded_and_names_the_others(tmp_path: Path) -> None:
    rows = [{**FLAT, "id": number} for number in range(30)]
    rows[4]["canonical_solution"] = "class Solution:\n    def double(self, n): return 1\n"
    done = prepared(tmp_path, rows)
    assert done.returncode == 0, done.stderr
    assert "problem 4 is refused: its canonical solution is not graded correct: wrong, test 1 of 2" in done.stdout
    train, test = (read_problems(tmp_path / f"data/problems/{split}.jsonl") for split in ("train", "test"))
    assert len(train) == 16
    assert 1 <= len(test) <= 8
    assert "4" not in {problem.id for problem in [*train, *test]}
    assert {problem.loophole for problem in [*train, *test]} == {"exit_code"}
    assert train[0].tests == tuple(FLAT["tests"])


def test_the_stage_refuses_a_file_that_leaves_a_split_empty(tmp_path: Path) -> None:
    done = prepared(tmp_path, [{**FLAT, "canonical_solution": "x = 1\n"}])
    assert done.returncode == 1
    assert "none of the" in done.stderr
    assert not (tmp_path / "data/problems").exists()
