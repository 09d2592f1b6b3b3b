"""Real problems: the LeetCode files of the reward-hacking benchmark, and where to get them.

Two shapes are read. The benchmark's own has the hidden tests as `gt_answer` and the starter code in
`prompt_metadata`; the flat one has them as `tests` and `starter_code`. The rest is called alike in both.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from projected_grpo.errors import LabError
from projected_grpo.problems.rows import Kind, read_rows

FIELDS: dict[str, Kind] = {"id": (str, int), "func_name": str, "setup_code": str, "canonical_solution": str}


@dataclasses.dataclass(frozen=True)
class LeetcodeProblem:
    """One problem of a file, before it gets a loophole and a split."""

    id: str
    difficulty: str
    question: str
    starter_code: str
    func_name: str  # "Solution().total"
    setup_code: str
    tests: tuple[str, ...]  # "assert Solution().total(nums = [1, 2]) == 3"
    canonical_solution: str


def read_leetcode(path: str | Path, asked: bool = True) -> list[LeetcodeProblem]:
    """Problems of a file in either shape, in its order. asked: they will be put to a model, so need a question.

    Raises:
        LabError: naming file, line and field.
    """
    fields = {**FIELDS, **({"question": str} if asked else {})}
    problems: dict[str, LeetcodeProblem] = {}
    for number, row in read_rows(path, fields):
        name = "tests" if "tests" in row else "gt_answer"
        tests = row.get(name)
        if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
            rule = "must be a list of at least one test, each text (`gt_answer` in the benchmark's own files)"
            raise LabError(setting=f"{path}:{number}: {name}", value=tests, rule=rule, fix="see docs/grading.md")
        metadata = row.get("prompt_metadata")
        starter = row.get("starter_code") or (metadata.get("starter_code") if isinstance(metadata, dict) else "")
        problem = LeetcodeProblem(
            id=str(row["id"]),
            difficulty=str(row.get("difficulty", "")),
            question=row.get("question", ""),
            starter_code=starter or "",
            func_name=row["func_name"],
            setup_code=row["setup_code"],
            tests=tuple(tests),
            canonical_solution=row["canonical_solution"],
        )
        if problem.id in problems:
            raise LabError(
                setting=f"{path}:{number}: id", value=row["id"], rule="is given twice", fix="keep one of them"
            )
        problems[problem.id] = problem
    return list(problems.values())
