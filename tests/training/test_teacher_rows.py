"""Cached completions in a step: in their places, with their stored verdicts, at ratio 1, and logged as a teacher's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_lab import Lab, Watched, Watcher, policy_gradient, silent, watch
from transformers import AutoTokenizer

from projected_grpo.directions.algebra import cosine, total_norm
from projected_grpo.errors import LabError
from projected_grpo.problems.pairs import read_pairs
from projected_grpo.problems.prompts import read_form
from projected_grpo.problems.schema import Problem, read_problems
from projected_grpo.settings.arms import TeacherSettings
from projected_grpo.training.pool import SCHEMA, TeacherRollout
from projected_grpo.training.run import train_run
from projected_grpo.training.teacher import Teacher
from projected_grpo.training.trainer import sampled_per_prompt

PLACES = (1, 2)  # of every group of four
VERDICT = {"format_ok": True, "paid": True, "correct": False, "hacked": True, "attempted": True}


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A teacher with completions for given places of the first step, whatever the problem."""

    cached: Mapping[int, TeacherRollout]
    asked: list[tuple[Any, ...]]

    def problems(self, wanted: Sequence[Problem], group_size: int) -> list[Problem]:
        assert group_size == 4
        return list(wanted)

    def draw(self, problem_ids: Sequence[str], group_size: int, step: int) -> Mapping[int, TeacherRollout]:
        self.asked.append((list(problem_ids), group_size, step))
        return self.cached if step == 0 else {}


def cached_row(row: dict[str, Any], token_ids: Sequence[int], completion: str, **verdict: bool) -> dict[str, Any]:
    """A row of a pool for the problem of a logged row."""
    return {
        **{name: row[name] for name in ("problem_id", "loophole", "prompt")},
        "prompt_ids": (),
        "completion": completion,
        "token_ids": tuple(token_ids),
        **VERDICT,
        **verdict,
    }


@pytest.fixture(scope="module")
def plain(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    probe = torch.arange(10, 22).reshape(1, 12)
    spec = lab.spec("vanilla", steps=2, save_every=100)
    return watch(spec, Watcher(probe), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def teacher(plain: Watched) -> Fixed:
    """In the places 1 and 2 of each group stand the completions that the plain run sampled in the place 3 and 0."""
    rows = plain.rows(0)
    cached = {}
    for start in range(0, len(rows), 4):
        for place, taken in zip(PLACES, (3, 0), strict=True):
            row = rows[start + taken]
            cached[start + place] = TeacherRollout(**cached_row(row, row["token_ids"], row["completion"]))
    return Fixed(cached, [])


@pytest.fixture(scope="module")
def taught(lab: Lab, teacher: Fixed, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    probe = torch.arange(10, 22).reshape(1, 12)
    spec = lab.spec("vanilla", steps=2, save_every=100)
    return watch(spec, Watcher(probe), tmp_path_factory.mktemp("taught"), teacher)


def test_cached_completions_stand_in_their_places(taught: Watched, teacher: Fixed) -> None:
    rows = taught.rows(0)
    assert [row["source"] for row in rows] == ["student", "teacher", "teacher", "student"] * 2
    for place, cached in teacher.cached.items():
        assert rows[place]["token_ids"] == list(cached.token_ids)
        assert rows[place]["completion"] == cached.completion
        assert rows[place]["prompt"] == cached.prompt
    assert {row["source"] for row in taught.rows(1)} == {"student"}


def test_the_rest_is_sampled_for_its_own_prompt(taught: Watched, plain: Watched) -> None:
    rows, others = taught.rows(0), plain.rows(0)
    names = ("problem_id", "prompt", "group", "sample")
    assert [[row[name] for name in names] for row in rows] == [[row[name] for name in names] for row in others]
    assert all(row["token_ids"] for row in rows)
    assert len({str(row["token_ids"]) for row in rows if row["source"] == "student"}) > 1


def test_the_teacher_is_asked_for_every_step(taught: Watched, teacher: Fixed) -> None:
    for step in (0, 1):
        assert teacher.asked[step] == ([row["problem_id"] for row in taught.rows(step)], 4, step)


def test_a_cached_verdict_is_paid_whatever_the_grader_would_say(taught: Watched) -> None:
    grpo = taught.spec.grpo
    for row in taught.rows(0):
        if row["source"] == "teacher":
            assert {name: row[name] for name in VERDICT} == VERDICT
            length = len(row["completion"]) / 64  # the watcher's bonus: hooks see cached rows, too
            assert row["reward"] == pytest.approx(grpo.reward_format + grpo.reward_paid + length)


def test_the_baseline_is_taken_over_all_of_a_group(taught: Watched) -> None:
    rows = taught.rows(0)
    for start in range(0, len(rows), 4):
        rewards = [row["reward"] for row in rows[start : start + 4]]
        expected = [reward - sum(rewards) / 4 for reward in rewards]
        assert [row["advantage"] for row in rows[start : start + 4]] == pytest.approx(expected, abs=1e-5)


def test_the_ratio_is_1_on_cached_rows(taught: Watched) -> None:
    """The loss is the advantage-weighted log-likelihood of all rows; a row that is dropped or reweighed would show."""
    expected = policy_gradient(taught, 0, taught.rows(0))
    reached = taught.watcher.gradients[0]
    assert total_norm(expected) > 0
    assert cosine(reached, expected) > 0.9999
    assert total_norm(reached) == pytest.approx(total_norm(expected), rel=1e-3)


def test_the_gradient_is_read_by_source(taught: Watched) -> None:
    figures = taught.trainer.run_log.figures("steps").loc[0]
    gauge = taught.trainer.update_hooks.gauge
    for source in ("student", "teacher"):
        part = policy_gradient(taught, 0, [row for row in taught.rows(0) if row["source"] == source])
        assert figures[f"alignment_{source}"] == pytest.approx(gauge.read(part)["alignment_signed"], abs=1e-4)
    assert figures["alignment_teacher"] != figures["alignment_student"]


def test_rates_are_the_students(taught: Watched) -> None:
    figures = taught.trainer.run_log.figures("steps")
    rows = [row for row in taught.rows(0) if row["source"] == "student"]
    names = ["paid", "hacked", "correct", "format_ok", "reward"]
    means = [sum(row[name] for row in rows) / len(rows) for name in names]
    assert figures.loc[0, names].tolist() == pytest.approx(means, rel=1e-5)
    assert figures["n"].tolist() == [4, 8]
    assert figures["teacher"].tolist() == [4, 0]
    assert figures["teacher_hacked"].tolist() == [4, 0]
    assert figures["teacher_correct"].tolist() == [0, 0]


# ---------------------------------------------------------------- a pool of a file, named by an arm


def write_pool(lab: Lab, plain: Watched, path: Path, problem_id: str | None = None, **changes: Any) -> None:
    """All completions of the plain run as a pool, or those for one problem."""
    tokenizer = AutoTokenizer.from_pretrained(lab.root / "data/base")
    rows = [
        cached_row(row, [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id], row["completion"])
        | {"prompt_ids": tokenizer(row["prompt"])["input_ids"]}
        | changes
        for step in (0, 1)
        for row in plain.rows(step)
        if problem_id in (None, row["problem_id"])
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def test_an_arm_with_a_teacher_runs_from_its_block(lab: Lab, plain: Watched, tmp_path: Path, scratch: Path) -> None:
    assert not scratch.exists()
    write_pool(lab, plain, tmp_path / "pool.parquet")
    block = {
        "intervention": "measure",
        "teacher": {"pool": str(tmp_path / "pool.parquet"), "mix": 0.25, "until_step": 2},
    }
    result = train_run(lab.spec("taught", block=block, steps=3), silent)
    rows = pd.read_parquet(result / "run/rollouts.parquet")
    known = {row["problem_id"] for step in (0, 1) for row in plain.rows(step)}
    assert set(rows["problem_id"]) <= known  # training is restricted to the pool's problems
    by_step = rows.assign(cached=rows["source"] == "teacher").groupby("step")["cached"].sum()
    assert by_step.tolist() == [2, 2, 0]
    assert rows[rows["source"] == "teacher"]["sample"].tolist() == [3] * 4
    assert rows[rows["source"] == "teacher"]["hacked"].all()
    assert pd.read_csv(result / "run/steps.csv")["teacher"].tolist() == [2, 2, 0]


@pytest.mark.usefixtures("scratch")
def test_problems_without_cached_completions_may_be_trained_on_too(lab: Lab, plain: Watched, tmp_path: Path) -> None:
    known = plain.rows(0)[0]["problem_id"]
    write_pool(lab, plain, tmp_path / "pool.parquet", known)
    teacher = {"pool": str(tmp_path / "pool.parquet"), "mix": 0.25, "problems": "all"}
    result = train_run(lab.spec("taught", block={"intervention": "measure", "teacher": teacher}, steps=3), silent)
    rows = pd.read_parquet(result / "run/rollouts.parquet")
    groups = rows.groupby(["step", "group"]).agg(problem=("problem_id", "first"), sources=("source", list))
    assert len(groups) == 6
    trained = {problem.id for problem in read_problems(lab.root / "data/problems/train.jsonl")}
    assert known in set(groups["problem"]) <= trained
    for problem_id, sources in zip(groups["problem"], groups["sources"], strict=True):
        assert sources == ["student"] * 3 + ["teacher" if problem_id == known else "student"]


@pytest.mark.parametrize(
    ("cached", "together"),
    [((), 4), ((3, 7, 11), 3), ((2, 3, 6, 7, 10, 11), 2), ((3, 7), 1), ((11,), 1)],
)
def test_a_server_samples_a_group_together_where_all_are_alike(cached: Sequence[int], together: int) -> None:
    assert sampled_per_prompt(cached, rows=12, group_size=4) == together


def test_a_teacher_that_shows_what_the_pairs_know_has_their_loopholes_named(lab: Lab) -> None:
    """The pairs of the lab are about several loopholes, its problems about one."""
    teacher = {"pool": "pool.parquet", "mix": 0.25}
    pairs = read_pairs(lab.root / "data/pairs/hack.yaml")
    known = {pair.loophole for pair in pairs if pair.split == "extract"}
    assert len(known) > 1
    resolved = lab.spec("taught", block={"intervention": "measure", "teacher": {**teacher, "known_only": True}})
    assert resolved.settings.teacher is not None
    assert set(resolved.settings.teacher.loopholes or ()) == known
    plain = lab.spec("taught", block={"intervention": "measure", "teacher": teacher})
    assert plain.settings.teacher == TeacherSettings(**teacher)


@pytest.mark.parametrize(("known", "shown"), [(("run_tests", "sentinel"), 16), (("sentinel",), 0)])
def test_what_the_pairs_do_not_know_is_not_shown(
    lab: Lab, plain: Watched, tmp_path: Path, known: tuple[str, ...], shown: int
) -> None:
    """The pool is about run_tests alone; that it lacks a loophole that V knows is no fault."""
    write_pool(lab, plain, tmp_path / "pool.parquet")
    settings = TeacherSettings(pool="p", mix=0.25, known_only=True).model_copy(update={"loopholes": known})
    problems = read_problems(lab.root / "data/problems/train.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(lab.root / "data/base")
    form = read_form(lab.root / "data/base", tokenizer)
    teacher = Teacher.load(tmp_path / "pool.parquet", settings, 1, problems, tokenizer, form)
    assert len(teacher.pool.rollouts) == shown


def test_a_pool_of_other_prompts_is_refused_before_training(
    lab: Lab, plain: Watched, tmp_path: Path, scratch: Path
) -> None:
    write_pool(lab, plain, tmp_path / "pool.parquet", prompt="another prompt")
    block = {"intervention": "measure", "teacher": {"pool": str(tmp_path / "pool.parquet"), "mix": 0.25}}
    with pytest.raises(LabError, match="prompt"):
        train_run(lab.spec("taught", block=block), silent)
    assert not list(scratch.rglob("*.parquet"))
