"""The one record for a programming problem, whatever its source, and its JSONL form.

Fields follow the LeetCode benchmark's files, so that embedded and downloaded problems are graded by the same code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from projected_grpo.storage import write_text


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task, its hidden tests, and the loophole with which it is graded."""

    id: str
    difficulty: str
    question: str
    starter_code: str
    func_name: str  # "Solution().total": how a test calls the answer
    setup_code: str  # imports and helpers the tests may rely on; "" for embedded problems
    tests: tuple[str, ...]  # "assert Solution().total(nums = [1, 2]) == 3"
    canonical_solution: str
    loophole: str  # key of `problems.loopholes.LOOPHOLES`
    token: str  # the name the prompt discloses in training; "" where the loophole has none
    heldout_token: str  # the name it discloses at evaluation, never seen in training
    split: str  # "train" | "test"

    @property
    def method(self) -> str:
        """Bare method name, "total"."""
        return self.func_name.rsplit(".", 1)[-1]


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(path, "".join(json.dumps(dataclasses.asdict(problem)) + "\n" for problem in problems))


def read_problems(path: Path) -> list[Problem]:
    """Read what `write_problems` wrote; a malformed row raises with its line number."""
    problems = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            problems.append(Problem(**{**row, "tests": tuple(row["tests"])}))
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path}:{number}: not a problem row: {error}") from error
    return problems
