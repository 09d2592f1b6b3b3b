"""What the tests of the teacher's pool share: small problems, and runs out of which pools are built."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from training_lab import ROOT
from transformers import PreTrainedTokenizerBase

from projected_grpo.pool_build import Built, build
from projected_grpo.problems.prompts import render_prompt
from projected_grpo.problems.schema import Problem, write_problems
from projected_grpo.training.runlog import ROLLOUTS

MICRO = ROOT / "data" / "shipped" / "micro"


def problem(name: str = "a", loophole: str = "run_tests", token: str = "run_checks", **other: Any) -> Problem:
    blank = dict.fromkeys((field.name for field in dataclasses.fields(Problem)), "")
    question = f"Given n, return {name}."
    made = {"id": name, "question": question, "func_name": f"Solution().{name}", "tests": (), "split": "train"}
    return Problem(**{**blank, **made, "loophole": loophole, "token": token, **other})


def run_row(tokenizer: PreTrainedTokenizerBase, problem_id: str, completion: str, **changes: Any) -> dict[str, Any]:
    ids = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    blank = dict.fromkeys(ROLLOUTS.names)
    verdict = {"format_ok": True, "paid": True, "correct": False, "hacked": True, "attempted": True}
    named = {"problem_id": problem_id, "loophole": "run_tests", "token": "run_checks", "source": "student", "step": 0}
    return {**blank, **named, "completion": completion, "token_ids": ids, **verdict, **changes}


@dataclasses.dataclass(frozen=True)
class Maker:
    """Builds pools in a scratch folder whose problems are a, b (run_tests) and c (sentinel)."""

    root: Path
    tokenizer: PreTrainedTokenizerBase

    @property
    def known(self) -> list[Problem]:
        return [problem("a"), problem("b"), problem("c", "sentinel", "is_valid")]

    @property
    def prompts(self) -> dict[str, str]:
        return {one.id: render_prompt(one, one.token) for one in self.known}

    def run(self, *rows: dict[str, Any], name: str = "run") -> Path:
        (self.root / name).mkdir(parents=True)
        table = pa.Table.from_pylist(list(rows), schema=ROLLOUTS)
        pq.write_table(table, self.root / name / "rollouts.parquet")
        return self.root / name

    def row(self, problem_id: str, completion: str, **changes: Any) -> dict[str, Any]:
        prompt = {"prompt": self.prompts.get(problem_id)}
        return run_row(self.tokenizer, problem_id, completion, **prompt | changes)

    def build(self, *sources: Path, known: Sequence[Problem] | None = None, **options: Any) -> Built:
        write_problems(self.root / "problems.jsonl", self.known if known is None else known)
        return build(sources, self.root / "pool.parquet", model=MICRO, problems=self.root / "problems.jsonl", **options)
