"""A pool of cached completions that were graded once, and the draw of some of them into the groups of a step.

What is cached keeps its verdict. Nothing is promised about how the completions came about: see `docs/teacher.md` for
what follows from training on another policy's text.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from projected_grpo.errors import ABSENT, LabError
from projected_grpo.problems.prompts import PromptForm
from projected_grpo.problems.schema import Problem
from projected_grpo.storage import atomic_file

SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("loophole", pa.string()),
        ("prompt", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("format_ok", pa.bool_()),
        ("paid", pa.bool_()),
        ("correct", pa.bool_()),
        ("hacked", pa.bool_()),
        ("attempted", pa.bool_()),
    ]
)
BUILD = "build the pool again: `projected-grpo pool build SOURCE TARGET`"


@dataclasses.dataclass(frozen=True)
class TeacherRollout:
    """One cached completion with its frozen verdict.

    token_ids: of the completion, with the end token if it ended itself. hacked: paid and not correct.
    """

    problem_id: str
    loophole: str
    prompt: str
    prompt_ids: tuple[int, ...]
    completion: str
    token_ids: tuple[int, ...]
    format_ok: bool
    paid: bool
    correct: bool
    hacked: bool
    attempted: bool


def teacher_count(group_size: int, mix: float) -> int:
    """Cached completions in a group: round(group_size * mix), halves to the even number.

    Raises:
        LabError: that is none of the group, or all of it.
    """
    count = round(group_size * mix)
    if not 0 < count < group_size:
        rule = f"must leave the teacher and the student at least one completion each of {group_size}, not {count}"
        raise LabError(setting="teacher.mix", value=mix, rule=rule, fix=f"such as {1 / group_size:.3g}")
    return count


class TeacherPool:
    """Cached completions by their problem, in the order of the file."""

    def __init__(self, rollouts: Iterable[TeacherRollout], name: str = "pool") -> None:
        self.rollouts = tuple(rollouts)
        self.name = name  # what errors call it
        self._of: dict[str, list[TeacherRollout]] = {}
        for rollout in self.rollouts:
            self._of.setdefault(rollout.problem_id, []).append(rollout)

    @classmethod
    def load(cls, path: Path, loopholes: Sequence[str] | None = None, each: bool = True) -> TeacherPool:
        """The pool that `save` wrote; of these loopholes only, if any are named. each: it must have something for each.

        Raises:
            LabError: no such file, not a pool, an empty one, a verdict that contradicts itself, or a loophole that it
                has nothing for.
        """
        rollouts = [_rollout(path, number, row) for number, row in enumerate(_read(path))]
        if not rollouts:
            raise LabError(setting=str(path), value="(empty)", rule="must hold at least one completion", fix=BUILD)
        known = {rollout.loophole for rollout in rollouts}
        for loophole in loopholes or ():
            if each and loophole not in known:
                rule = f"must name loopholes that {path} has: {', '.join(sorted(known))}"
                raise LabError(setting="teacher.loopholes", value=loophole, rule=rule, fix="remove it")
        return cls((r for r in rollouts if loopholes is None or r.loophole in loopholes), str(path))

    def save(self, path: Path) -> None:
        """Write the pool as Parquet, atomically."""
        rows = [dataclasses.asdict(rollout) for rollout in self.rollouts]
        with atomic_file(path) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)

    def problems(self, wanted: Sequence[Problem], per_group: int) -> list[Problem]:
        """Those of `wanted`, in their order, that have at least `per_group` completions under their loophole.

        Raises:
            LabError: there is none.
        """
        enough = [
            problem
            for problem in wanted
            if sum(r.loophole == problem.loophole for r in self._of.get(problem.id, ())) >= per_group
        ]
        if not enough:
            most = max((len(found) for found in self._of.values()), default=0)
            rule = f"must hold {per_group} completions for at least one problem; the most it has for any is {most}"
            raise LabError(setting="teacher.pool", value=self.name, rule=rule, fix="a larger pool or a smaller mix")
        return enough

    def check_tokens(self, tokenizer: PreTrainedTokenizerBase, form: PromptForm, prompts: Mapping[str, str]) -> None:
        """Refuse a pool made for other prompts or with another tokenizer: training on its ids would be on other text.

        form: in which the policy is asked now. prompts: problem id -> the prompt as it is rendered now, of all that may
        be trained on.

        Raises:
            LabError: naming the row and the first place where what is stored differs from what is made now.
        """
        rows = [(number, r) for number, r in enumerate(self.rollouts) if r.problem_id in prompts]
        for number, rollout in rows:
            self._same(number, "prompt", rollout.prompt, prompts[rollout.problem_id])
        prompt_ids = _tokenized(tokenizer, {r.prompt for _, r in rows}, special=True)  # as TRL does
        written = {r.completion: self._written(number, r, form) for number, r in rows}
        completion_ids = _tokenized(tokenizer, set(written.values()), special=False)
        for number, rollout in rows:
            self._same(number, "prompt_ids", rollout.prompt_ids, prompt_ids[rollout.prompt])
            live = completion_ids[written[rollout.completion]]
            if rollout.token_ids != live:  # else it was cut at the length limit
                self._same(number, "token_ids", rollout.token_ids, (*live, tokenizer.eos_token_id))

    def _written(self, number: int, rollout: TeacherRollout, form: PromptForm) -> str:
        try:
            return form.written(rollout.completion)
        except ValueError as error:
            setting = f"{self.name}, row {number} ({rollout.problem_id}): completion"
            raise LabError(setting=setting, value=rollout.completion, rule=str(error), fix=BUILD) from None

    def _same(self, number: int, field: str, stored: Sequence[Any], live: Sequence[Any]) -> None:
        if stored == live:
            return
        pairs = enumerate(zip(stored, live, strict=False))
        place = next((i for i, (one, other) in pairs if one != other), min(len(stored), len(live)))
        span = slice(max(0, place - 2), place + 8)
        rule = f"must equal what is made now, {live[span]!r} there; they differ from position {place} on"
        setting = f"{self.name}, row {number} ({self.rollouts[number].problem_id}): {field}"
        raise LabError(setting=setting, value=stored[span], rule=rule, fix=BUILD)

    def draw(
        self, problem_ids: Sequence[str], group_size: int, mix: float, seed: int, step: int, each: bool = True
    ) -> dict[int, TeacherRollout]:
        """Row of the step -> cached completion: the last rows of each group, distinct within it.

        problem_ids: of every row of the step, groups side by side. each: no group may go without; else one whose
        problem has too few completions does. A function of its arguments alone.

        Raises:
            LabError: see `teacher_count`. ValueError: rows that are no groups, or a problem with too few completions.
        """
        count = teacher_count(group_size, mix)
        rng = random.Random(f"{seed}:{step}")  # text is hashed, so that neighbouring steps have nothing in common
        drawn: dict[int, TeacherRollout] = {}
        for start in range(0, len(problem_ids), group_size):
            group = problem_ids[start : start + group_size]
            if len(group) < group_size or len(set(group)) > 1:
                raise ValueError(f"rows {start} to {start + group_size - 1} are not one group: {list(group)}")
            found = self._of.get(group[0], [])
            if len(found) < count and not each:
                continue
            if len(found) < count:
                raise ValueError(f"{self.name} has {len(found)} completions for {group[0]}; a group takes {count}")
            drawn |= zip(range(start + group_size - count, start + group_size), rng.sample(found, count), strict=True)
        return drawn


def _tokenized(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], special: bool) -> dict[str, tuple[int, ...]]:
    """Text -> its ids, each text once."""
    known = sorted(texts)
    if not known:
        return {}
    ids = tokenizer(known, add_special_tokens=special)["input_ids"]
    return {text: tuple(row) for text, row in zip(known, ids, strict=True)}


def _read(path: Path) -> list[dict[str, Any]]:
    """Rows of the file, with exactly the columns of a pool."""
    if not path.is_file():
        raise LabError(setting=str(path), value=ABSENT, rule="must be a file of cached completions", fix=BUILD)
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        rule = f"must be Parquet: {str(error).splitlines()[0]}"
        raise LabError(setting=str(path), value="(unreadable)", rule=rule, fix=BUILD) from None
    try:
        rows: list[dict[str, Any]] = table.select(SCHEMA.names).cast(SCHEMA).to_pylist()
    except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        rule = f"must have the columns {', '.join(SCHEMA.names)}: {error}"
        raise LabError(setting=str(path), value=table.column_names, rule=rule, fix=BUILD) from None
    return rows


def _rollout(path: Path, number: int, row: dict[str, Any]) -> TeacherRollout:
    missing = [name for name, value in row.items() if value is None]
    if missing:
        raise LabError(setting=f"{path}, row {number}: {missing[0]}", value=None, rule="must be known", fix=BUILD)
    if not row["token_ids"]:
        raise LabError(setting=f"{path}, row {number}: token_ids", value=[], rule="must not be empty", fix=BUILD)
    if row["hacked"] != (row["paid"] and not row["correct"]):
        rule = "must be true where `paid` is and `correct` is not, and nowhere else"
        raise LabError(setting=f"{path}, row {number}: hacked", value=row["hacked"], rule=rule, fix=BUILD)
    return TeacherRollout(**{**row, "prompt_ids": tuple(row["prompt_ids"]), "token_ids": tuple(row["token_ids"])})
