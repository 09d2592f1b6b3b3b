"""`projected-grpo pool build`: cached completions out of finished runs, or out of the original experiment's JSONL.

Verdicts are taken over, nothing is graded again. Prompts are rendered and tokenised as training does it now. Sources
are read batch by batch; in memory is what goes into the pool.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.dataset as ds
from rich.table import Table
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from projected_grpo.errors import ABSENT, LabError
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.prompts import PromptForm, read_form
from projected_grpo.problems.rows import Kind, read_rows
from projected_grpo.problems.schema import Problem, read_problems
from projected_grpo.training.pool import TeacherPool, TeacherRollout

Only = Literal["hacked", "paid", "all"]
VERDICT = ("format_ok", "paid", "correct", "hacked", "attempted")
RUN_COLUMNS = (
    "step",
    "problem_id",
    "loophole",
    "token",
    "source",
    "prompt",
    "completion",
    "token_ids",
    "grader_error",
    *VERDICT,
)
BATCH = 1024  # completions read, and tokenised, at a time
EXTREME = 0.05  # share of hacks below which, or of others above which, a pool is warned about

# Reasons for which a row is left out, as the table names them.
UNMATCHED = "other problem, loophole or disclosed name"
UNGRADED = "grader error"
NOT_STUDENT = "a teacher's"
NOT_CANONICAL = "sampled as other tokens than its text gives"
OTHER_BEGINNING = "not begun as every answer of this base is"
EQUAL = "equal text"


@dataclasses.dataclass(frozen=True)
class Found:
    """One graded completion of a source. token_ids: as they were sampled; None where the source has text only."""

    problem: Problem
    completion: str
    token_ids: tuple[int, ...] | None
    format_ok: bool
    paid: bool
    correct: bool
    hacked: bool
    attempted: bool


@dataclasses.dataclass(frozen=True)
class Built:
    """A pool and the reasons for which other rows of its sources are not in it."""

    pool: TeacherPool
    left_out: Counter[str]

    def table(self) -> Table:
        """Problems, completions and their verdicts, by loophole."""
        table = Table("loophole", "problems", "completions", "hacked", "correct")
        names = sorted({rollout.loophole for rollout in self.pool.rollouts})
        groups = {name: {name} for name in names} | ({"all": set(names)} if len(names) > 1 else {})
        for name, chosen in groups.items():
            rows = [rollout for rollout in self.pool.rollouts if rollout.loophole in chosen]
            hacked, correct = (sum(getattr(row, mark) for row in rows) / len(rows) for mark in ("hacked", "correct"))
            count = len({rollout.problem_id for rollout in rows})
            table.add_row(name, str(count), str(len(rows)), f"{hacked:.1%}", f"{correct:.1%}")
        return table

    def notes(self) -> list[str]:
        """What was left out, and a warning where nearly all completions are of one kind."""
        notes = [f"left out: {count} ({reason})" for reason, count in sorted(self.left_out.items()) if count]
        share = sum(rollout.hacked for rollout in self.pool.rollouts) / len(self.pool.rollouts)
        if not EXTREME < share < 1 - EXTREME:
            notes.append(f"warning: {share:.0%} are hacks, so 'cached' and 'hacked' cannot be told apart in training")
        return notes


def build(
    sources: Sequence[Path],
    target: Path,
    *,
    model: Path,
    problems: Path,
    only: Only = "all",
    loopholes: Sequence[str] = (),
    per_problem: int | None = None,
    last_steps: int | None = None,
) -> Built:
    """Write the pool at `target`: problems in the order of their file, the newest completion of each first.

    only: which verdicts. loopholes: none means all. per_problem: at most so many of each problem. last_steps: of each
    run, only its last so many optimizer steps.

    Raises:
        LabError: a source, the model or the problems cannot be read; an option fits nothing; nothing is left.
    """
    _check(sources, target, loopholes, last_steps)
    known = _problems(problems)
    tokenizer = _tokenizer(model)
    form = read_form(model, tokenizer)
    left_out: Counter[str] = Counter()
    newest = Newest(per_problem, left_out)
    matched = 0
    for source in sources:
        before = matched
        found = (
            _of_run(source, known, form, last_steps, left_out)
            if source.is_dir()
            else _of_original(source, known, left_out)
        )
        while batch := list(itertools.islice(found, BATCH)):
            matched += len(batch)
            for rollout in _with_tokens(_chosen(batch, only, loopholes), tokenizer, form, left_out):
                newest.add(rollout)
        if matched == before:
            reasons = [reason for reason in sorted(left_out) if reason not in (NOT_CANONICAL, EQUAL)]
            counts = "; ".join(f"{left_out[reason]}: {reason}" for reason in reasons) or "it is empty"
            rule = f"must hold graded completions for the problems of {problems}; none of its rows is one ({counts})"
            raise LabError(setting="SOURCE", value=str(source), rule=rule, fix="name the problems of that run")
    kept = newest.rollouts(list(known))
    if not kept:
        rule = f"must leave completions; {matched} match the problems, none of them these options"
        raise LabError(setting="only, loophole", value=[only, *loopholes], rule=rule, fix="choose more")
    pool = TeacherPool(kept, str(target))
    pool.check_tokens(tokenizer, form, {key: form.render(problem, problem.token) for key, problem in known.items()})
    pool.save(target)
    return Built(pool, left_out)


def _check(sources: Sequence[Path], target: Path, loopholes: Sequence[str], last_steps: int | None) -> None:
    if target.suffix != ".parquet":
        rule = "must be the last argument and end with .parquet"
        raise LabError(setting="TARGET", value=str(target), rule=rule, fix="such as data/pools/vanilla.parquet")
    for loophole in loopholes:
        if loophole not in LOOPHOLES:
            rule = f"must be one of {', '.join(LOOPHOLES)}"
            raise LabError(setting="--loophole", value=loophole, rule=rule, fix="choose one of them")
    if last_steps is not None and not all(source.is_dir() for source in sources):
        rule = "must not be set for a JSONL file, which has no steps; it would be ignored"
        raise LabError(setting="--last-steps", value=last_steps, rule=rule, fix="remove it")


def _problems(path: Path) -> dict[str, Problem]:
    try:
        return {problem.id: problem for problem in read_problems(path)}
    except (OSError, ValueError) as error:
        rule = f"must be a file of problems: {error}"
        raise LabError(setting="--problems", value=str(path), rule=rule, fix="`dvc repro prepare` makes it") from None


def _tokenizer(model: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        rule = f"must be a folder with a tokenizer: {str(error).splitlines()[0]}"
        raise LabError(setting="--model", value=str(model), rule=rule, fix="name the base model's folder") from None
    return tokenizer


def _of_run(
    folder: Path, problems: Mapping[str, Problem], form: PromptForm, last_steps: int | None, left_out: Counter[str]
) -> Iterator[Found]:
    """What a run's own policy wrote, in the order it was sampled.

    A row counts only if its problem is still graded as it was: same loophole, same disclosed name.

    Raises:
        LabError: there are no rollouts, the run's grader was the honest one, or its prompts were other ones.
    """
    _check_grader(folder)
    path = folder / "rollouts.parquet"
    if not path.is_file():
        fix = "a folder of one run, such as data/runs/vanilla/1"
        raise LabError(setting="SOURCE", value=str(folder), rule="must hold rollouts.parquet", fix=fix)
    for row in _rows(path, last_steps):
        problem = problems.get(row["problem_id"])
        if row["source"] != "student":
            left_out[NOT_STUDENT] += 1
        elif row["grader_error"]:
            left_out[UNGRADED] += 1
        elif problem is None or (row["loophole"], row["token"]) != (problem.loophole, problem.token):
            left_out[UNMATCHED] += 1
        else:
            _check_prompt(path, row, form.render(problem, problem.token))
            verdict = {name: row[name] for name in VERDICT}
            yield Found(problem, row["completion"], tuple(row["token_ids"]), **verdict)


def _rows(path: Path, last_steps: int | None) -> Iterator[dict[str, Any]]:
    """`RUN_COLUMNS` of a log, in its order; of its last so many steps, other row groups are not read."""
    try:
        log = ds.dataset(path, format="parquet")
        condition = None
        if last_steps is not None and (steps := log.to_table(columns=["step"])["step"].unique().to_pylist()):
            condition = ds.field("step") >= max(steps) + 1 - last_steps
        batches = log.to_batches(columns=list(RUN_COLUMNS), filter=condition, batch_size=BATCH, batch_readahead=1)
        for batch in batches:
            yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        rule = f"must be the rollouts of a run: {str(error).splitlines()[0]}"
        raise LabError(setting="SOURCE", value=str(path), rule=rule, fix="train the run again") from None


def _check_grader(folder: Path) -> None:
    """What an honest grader paid for is not what the flawed one would have; a run's provenance tells which it had."""
    arm = folder.resolve().parent
    # data/runs/ARM/SEED has its own in data/provenance/ARM/SEED, a scratch folder in `provenance` beside `run`.
    for place in (arm.parent.parent / "provenance" / arm.name / folder.resolve().name, arm / "provenance"):
        if (file := place / "provenance.json").is_file():
            settings = json.loads(file.read_text(encoding="utf-8"))["settings"]["arm_settings"]
            if settings["grader"] == "honest":
                rule = (
                    f"must not be a run of an honest-grader arm, as {file} says: its `paid` is not the flawed grader's"
                )
                fix = "name a run of an arm with grader: loophole"
                raise LabError(setting="SOURCE", value=str(folder), rule=rule, fix=fix)
            return


def _check_prompt(path: Path, row: Mapping[str, Any], now: str) -> None:
    """A cached completion is put under the prompt as it is rendered now, so it must have answered that one."""
    if row["prompt"] != now:
        rule = f"must be the prompt of {row['problem_id']} as it is rendered now, {now!r}: it answers another one"
        fix = "name a run whose arm changes no prompt, trained with these problems; or train it again"
        raise LabError(setting=f"{path}: step {row['step']}: prompt", value=row["prompt"], rule=rule, fix=fix)


# ---------------------------------------------------------------- the original's JSONL

ORIGINAL: dict[str, Kind] = {"problem_text": str, "response_text": str, "func_name": str}
DISCLOSED = "run_tests"  # the one name that the original's prompts disclose
_ENDING = "Your solution to the problem should be"  # the benchmark's last paragraph, which differs between its prompts


def _of_original(path: Path, problems: Mapping[str, Problem], left_out: Counter[str]) -> Iterator[Found]:
    """Completions of the original experiment's pools, matched by the text of the problem.

    Not by the method's name alone: different problems share names. The name that the completion calls its tests by
    becomes the one that our prompt discloses; its verdict does not depend on the name. `stored_hacked` there means
    that its own tests pass a stub, and a correct answer may have that too; here a hack is paid and not correct.
    """
    by_text = {_statement(problem.question): problem for problem in problems.values()}
    for number, row in read_rows(path, ORIGINAL):
        fooled, correct = (_flag(path, number, row, name) for name in ("stored_hacked", "stored_gt_pass"))
        problem = by_text.get(_statement(row["problem_text"]))
        if problem is None or not _same_task(problem, row):
            left_out[UNMATCHED] += 1
            continue
        completion = re.sub(rf"\b{DISCLOSED}\b", problem.token, row["response_text"])
        paid = fooled or correct
        reward = row.get("stored_reward")
        formatted = paid or (isinstance(reward, int | float) and reward > 0)  # it pays 0.5 for an answer that compiles
        yield Found(problem, completion, None, formatted, paid, correct, paid and not correct, fooled)


def _same_task(problem: Problem, row: Mapping[str, Any]) -> bool:
    named = row["func_name"] == problem.func_name
    return named and problem.loophole == DISCLOSED == row.get("env_mode", DISCLOSED)


def _statement(text: str) -> str:
    """A problem's text without its last paragraph, white space made equal."""
    return " ".join(text.split(_ENDING)[0].split())


def _flag(path: Path, number: int, row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name, ABSENT)
    if not isinstance(value, bool):
        fix = "verdicts are taken over, not made: `projected-grpo grade` makes them"
        raise LabError(setting=f"{path}:{number}: {name}", value=value, rule="must be true or false", fix=fix)
    return value


# ---------------------------------------------------------------- which of them, and their tokens


def _chosen(found: Iterable[Found], only: Only, loopholes: Sequence[str]) -> list[Found]:
    return [
        one
        for one in found
        if (only == "all" or (one.hacked if only == "hacked" else one.paid))
        and (not loopholes or one.problem.loophole in loopholes)
    ]


def _with_tokens(
    found: Sequence[Found], tokenizer: PreTrainedTokenizerBase, form: PromptForm, left_out: Counter[str]
) -> list[TeacherRollout]:
    """Ids as the tokenizer makes them of the text. A completion that was sampled as others is left out: it would be
    other data than what was graded, and could not be checked against drift."""
    fitting = [one for one in found if one.completion.startswith(form.prefill)]
    if len(fitting) < len(found):
        left_out[OTHER_BEGINNING] += len(found) - len(fitting)
    prompts = {one.problem.id: form.render(one.problem, one.problem.token) for one in fitting}
    if not fitting:
        return []
    prompt_ids = dict(zip(prompts, tokenizer(list(prompts.values()))["input_ids"], strict=True))
    texts = tokenizer([form.written(one.completion) for one in fitting], add_special_tokens=False)["input_ids"]
    rollouts = []
    for one, ids in zip(fitting, texts, strict=True):
        ended = (*ids, tokenizer.eos_token_id)
        sampled = ended if one.token_ids is None else one.token_ids  # text from outside is taken to have ended
        if not sampled or sampled not in (ended, tuple(ids)):
            left_out[NOT_CANONICAL] += 1
            continue
        key = one.problem.id
        labels = {name: getattr(one, name) for name in VERDICT}
        shown = (key, one.problem.loophole, prompts[key], tuple(prompt_ids[key]), one.completion)
        rollouts.append(TeacherRollout(*shown, token_ids=sampled, **labels))
    return rollouts


class Newest:
    """The newest completions of each problem, each text once, at most `limit` of a problem (None: all).

    Older ones are forgotten as newer ones come; whether a text has been there before stays known by its hash.
    """

    def __init__(self, limit: int | None, left_out: Counter[str]) -> None:
        self._limit, self._left_out = limit, left_out
        self._kept: dict[str, dict[str, TeacherRollout]] = {}  # by problem and text, oldest first
        self._seen: set[bytes] = set()

    def add(self, rollout: TeacherRollout) -> None:
        """Take a rollout that is newer than all before it."""
        digest = hashlib.sha256(f"{rollout.problem_id}\0{rollout.completion}".encode()).digest()
        if digest in self._seen:
            self._left_out[EQUAL] += 1
        self._seen.add(digest)
        texts = self._kept.setdefault(rollout.problem_id, {})
        texts.pop(rollout.completion, None)
        texts[rollout.completion] = rollout
        if self._limit is not None and len(texts) > self._limit:
            del texts[next(iter(texts))]

    def rollouts(self, order: Sequence[str]) -> list[TeacherRollout]:
        """Problem by problem in this order, the newest first."""
        return [rollout for key in order for rollout in reversed(self._kept.get(key, {}).values())]
