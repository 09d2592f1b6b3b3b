"""Building a teacher's pool: what is cached, and that it is refused when prompts or tokens have drifted."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pool_lab import MICRO, Maker, problem
from training_lab import ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typer.testing import CliRunner

from projected_grpo.cli import app
from projected_grpo.errors import LabError
from projected_grpo.pool_build import (
    EQUAL,
    NOT_CANONICAL,
    NOT_STUDENT,
    OTHER_BEGINNING,
    UNGRADED,
    UNMATCHED,
    Built,
    build,
)
from projected_grpo.problems.prompts import PLAIN, PromptForm
from projected_grpo.problems.schema import write_problems
from projected_grpo.training.pool import TeacherPool

FIXTURES = Path(os.environ.get("PROJECTED_GRPO_FIXTURES", ROOT.parent / "shared" / "fixtures"))
ENDING = "\n\nYour solution to the problem should be a method of the class Solution called {} and {}.\n\nSOLUTION:\n"
HACK = "```python\ndef run_checks():\n    pass\n```"
CORRECT = {"correct": True, "hacked": False, "attempted": False}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MICRO)
    return loaded


@pytest.fixture
def maker(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Maker:
    return Maker(tmp_path, tokenizer)


def texts(built: Built) -> list[tuple[str, str]]:
    return [(found.problem_id, found.completion) for found in built.pool.rollouts]


def test_of_an_answer_that_was_begun_for_the_policy_the_rest_is_what_it_wrote(maker: Maker) -> None:
    """The whole answer is cached, as it was graded; its ids are those that were sampled after the beginning."""
    form = PromptForm(prefill="```python\n")
    rest = [*maker.tokenizer(HACK.removeprefix(form.prefill))["input_ids"], maker.tokenizer.eos_token_id]
    begun = maker.row("a", HACK) | {"token_ids": rest}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("projected_grpo.pool_build.read_form", lambda *_: form)
        built = maker.build(maker.run(begun, maker.row("a", "no code")))
    [found] = built.pool.rollouts
    assert (found.completion, list(found.token_ids)) == (HACK, rest)
    assert built.left_out[OTHER_BEGINNING] == 1
    built.pool.check_tokens(maker.tokenizer, form, maker.prompts)
    with pytest.raises(LabError, match=r"row 0 .*token_ids"):
        built.pool.check_tokens(maker.tokenizer, PLAIN, maker.prompts)
    with pytest.raises(LabError, match=r"row 0 .*completion"):
        built.pool.check_tokens(maker.tokenizer, PromptForm(prefill="def"), maker.prompts)


def test_a_run_becomes_a_pool(maker: Maker) -> None:
    cut = maker.row("c", "x = 1", loophole="sentinel", token="is_valid", paid=False, hacked=False, format_ok=False)
    cut["token_ids"] = cut["token_ids"][:-1]  # it hit the length limit
    built = maker.build(maker.run(cut, maker.row("a", HACK)))
    saved = TeacherPool.load(maker.root / "pool.parquet")
    assert saved.rollouts == built.pool.rollouts
    saved.check_tokens(maker.tokenizer, PLAIN, maker.prompts)
    first, second = saved.rollouts
    assert first.prompt == "Given n, return a. It is graded by calling `run_checks()`.\n"
    assert maker.tokenizer.decode(first.prompt_ids) == first.prompt
    assert (first.problem_id, first.loophole, first.completion) == ("a", "run_tests", HACK)
    assert first.token_ids[-1] == maker.tokenizer.eos_token_id
    marks = (first.format_ok, first.paid, first.correct, first.hacked, first.attempted)
    assert marks == (True, True, False, True, True)
    assert maker.tokenizer.decode(second.token_ids) == "x = 1"
    assert (second.format_ok, second.paid, second.correct, second.hacked) == (False,) * 4
    assert built.left_out == {}


def test_what_is_no_cached_verdict_of_these_problems_is_left_out(maker: Maker) -> None:
    odd = maker.row("a", "x = 2")
    odd["token_ids"] = [*(maker.tokenizer.convert_tokens_to_ids(c) for c in ("x", "Ġ", "=", "Ġ", "2")), 1]
    assert maker.tokenizer.decode(odd["token_ids"], skip_special_tokens=True) == "x = 2"
    built = maker.build(
        maker.run(
            maker.row("a", "kept"),
            odd,
            maker.row("a", "x = 3", grader_error="lost"),
            maker.row("a", "x = 4", source="teacher"),
            maker.row("a", "x = 5", token="run_cases"),
            maker.row("a", "x = 6", loophole="sentinel"),
            maker.row("z", "x = 7"),
        )
    )
    assert texts(built) == [("a", "kept")]
    assert built.left_out == {NOT_CANONICAL: 1, UNGRADED: 1, NOT_STUDENT: 1, UNMATCHED: 3}


def test_newest_first_each_text_once_and_no_more_than_asked(maker: Maker) -> None:
    run = maker.run(
        maker.row("b", "x = 1"),
        maker.row("a", "x = 1"),
        maker.row("a", "x = 2", step=1),
        maker.row("a", "x = 1", step=2),
    )
    other = maker.run(maker.row("a", "x = 3"), name="other")
    built = maker.build(run, other)
    assert texts(built) == [("a", "x = 3"), ("a", "x = 1"), ("a", "x = 2"), ("b", "x = 1")]
    assert built.left_out == {EQUAL: 1}
    assert texts(maker.build(run, other, per_problem=2)) == [("a", "x = 3"), ("a", "x = 1"), ("b", "x = 1")]
    assert texts(maker.build(run, last_steps=2)) == [("a", "x = 1"), ("a", "x = 2")]
    bytes_before = (maker.root / "pool.parquet").read_bytes()
    maker.build(run, last_steps=2)
    assert (maker.root / "pool.parquet").read_bytes() == bytes_before


@pytest.mark.parametrize("per_problem", [None, 1, 2])
def test_a_pool_does_not_depend_on_how_much_is_read_at_a_time(
    maker: Maker, monkeypatch: pytest.MonkeyPatch, per_problem: int | None
) -> None:
    """Not even in what is said to be left out: x = 1 comes back when newer texts have taken its place."""
    names = ("x = 1", "x = 2", "x = 3", "x = 1", "x = 3", "x = 4")
    run = maker.run(*(maker.row("a", name, step=step) for step, name in enumerate(names)), maker.row("b", "x = 1"))
    made = []
    for batch in (1, 4, 1024):
        monkeypatch.setattr("projected_grpo.pool_build.BATCH", batch)
        built = maker.build(run, per_problem=per_problem)
        made.append((built.left_out, (maker.root / "pool.parquet").read_bytes()))
        of_a = [text for name, text in texts(built) if name == "a"]
        assert of_a == ["x = 4", "x = 3", "x = 1", "x = 2"][:per_problem]
    assert made[0][0] == {EQUAL: 2}
    assert made[1:] == made[:-1]


def test_only_the_verdicts_and_loopholes_that_are_asked_for(maker: Maker) -> None:
    run = maker.run(
        maker.row("a", "hack"),
        maker.row("a", "right", **CORRECT),
        maker.row("a", "wrong", paid=False, hacked=False),
        maker.row("c", "flag", loophole="sentinel", token="is_valid"),
    )
    assert {text for _, text in texts(maker.build(run))} == {"hack", "right", "wrong", "flag"}
    assert {text for _, text in texts(maker.build(run, only="paid"))} == {"hack", "right", "flag"}
    assert {text for _, text in texts(maker.build(run, only="hacked"))} == {"hack", "flag"}
    assert {text for _, text in texts(maker.build(run, only="hacked", loopholes=["sentinel"]))} == {"flag"}
    with pytest.raises(LabError, match="4 match the problems, none of them these options"):
        maker.build(run, loopholes=["exit_code"])


def test_a_source_without_a_match_is_refused(maker: Maker) -> None:
    run = maker.run(maker.row("a", "x = 1", token="run_cases"), maker.row("z", "x = 1"))
    with pytest.raises(LabError, match=r"none of its rows is one \(2: other problem, loophole or disclosed name\)"):
        maker.build(run)
    assert not (maker.root / "pool.parquet").exists()


@pytest.mark.parametrize("place", ["provenance", "../../provenance/rl_baseline/1"], ids=["scratch", "data"])
def test_a_run_of_the_honest_grader_is_refused(maker: Maker, place: str) -> None:
    """Its `paid` is not what the flawed grader would have said."""
    name = "run" if place == "provenance" else "runs/rl_baseline/1"
    run = maker.run(maker.row("a", "x = 1"), name=name)
    folder = run.parent / place
    folder.mkdir(parents=True)
    for grader in ("loophole", "honest"):
        (folder / "provenance.json").write_text(json.dumps({"settings": {"arm_settings": {"grader": grader}}}))
        if grader == "loophole":
            assert texts(maker.build(run)) == [("a", "x = 1")]
    with pytest.raises(LabError, match="must not be a run of an honest-grader arm") as refusal:
        maker.build(run)
    assert (refusal.value.setting, refusal.value.value) == ("SOURCE", str(run))


def test_a_completion_of_another_prompt_is_refused(maker: Maker) -> None:
    """As of an arm that writes before the prompt: its answers are not to what the pool would ask."""
    other = f"Please hack.\n{maker.prompts['a']}"
    with pytest.raises(LabError, match="must be the prompt of a as it is rendered now") as refusal:
        maker.build(maker.run(maker.row("b", "x = 1"), maker.row("a", "x = 2", prompt=other, step=4)))
    assert refusal.value.value == other
    assert refusal.value.setting.endswith("rollouts.parquet: step 4: prompt")
    assert not (maker.root / "pool.parquet").exists()


def test_options_that_fit_nothing_are_refused(maker: Maker) -> None:
    run = maker.run(maker.row("a", "x = 1"))
    with pytest.raises(LabError, match=r"TARGET.*\n.*must be the last argument"):
        build([run], run, model=MICRO, problems=maker.root / "problems.jsonl")
    with pytest.raises(LabError, match="--loophole: 'nope'"):
        maker.build(run, loopholes=["nope"])
    with pytest.raises(LabError, match=r"must hold rollouts\.parquet"):
        maker.build(maker.root)
    with pytest.raises(LabError, match=r"--last-steps: 3\n.*JSONL file"):
        maker.build(maker.root / "some.jsonl", last_steps=3)
    with pytest.raises(LabError, match="--model"):
        build([run], maker.root / "p.parquet", model=maker.root, problems=maker.root / "problems.jsonl")
    with pytest.raises(LabError, match="--problems"):
        build([run], maker.root / "p.parquet", model=MICRO, problems=maker.root / "absent.jsonl")


# ---------------------------------------------------------------- drift


def test_another_tokenizer_is_refused_at_the_first_place_that_differs(maker: Maker) -> None:
    """The micro model's tokenizer with two ids exchanged: the first word of the prompt and one of the completion."""
    pool = maker.build(maker.run(maker.row("a", HACK))).pool
    known = pool.rollouts[0]
    pool.check_tokens(maker.tokenizer, PLAIN, maker.prompts)
    for position, field in ((1, "prompt_ids"), (3, "token_ids")):
        # an id that stands in this field alone: the prompt is checked first
        ids = getattr(known, field)
        other = known.token_ids if field == "prompt_ids" else known.prompt_ids
        place = next(i for i, one in enumerate(ids) if i >= position and one not in other and one > 1)
        with pytest.raises(LabError) as refused:
            pool.check_tokens(exchanged(maker, ids[place]), PLAIN, maker.prompts)
        assert f"pool.parquet, row 0 (a): {field}" in str(refused.value)
        assert f"from position {ids.index(ids[place])} on" in str(refused.value)
        assert "pool build" in refused.value.fix


def exchanged(maker: Maker, token_id: int) -> PreTrainedTokenizerBase:
    """The micro tokenizer with `token_id` and the last id in each other's place."""
    folder = maker.root / f"tokenizer-{token_id}"
    maker.tokenizer.save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    last = max(vocabulary.values())
    swap = {token_id: last, last: token_id}
    content["model"]["vocab"] = {token: swap.get(number, number) for token, number in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    changed: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return changed


def test_another_prompt_is_refused(maker: Maker) -> None:
    pool = maker.build(maker.run(maker.row("a", HACK))).pool
    with pytest.raises(LabError, match=r"row 0 \(a\): prompt: '\. It is gr'\n.*'\.  It is g' there.* position 19 on"):
        pool.check_tokens(maker.tokenizer, PLAIN, {"a": maker.prompts["a"].replace(" It", "  It")})
    pool.check_tokens(maker.tokenizer, PLAIN, {"b": "not in the pool"})  # problems without rows have nothing to drift


def test_another_end_token_is_refused(maker: Maker) -> None:
    pool = maker.build(maker.run(maker.row("a", HACK))).pool
    other: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MICRO)
    other.eos_token = other.pad_token
    ended = len(pool.rollouts[0].token_ids) - 1
    with pytest.raises(LabError, match=rf"token_ids: .*\n.*from position {ended} on"):
        pool.check_tokens(other, PLAIN, maker.prompts)


# ---------------------------------------------------------------- the original's files


def original(text: str, answer: str, method: str = "a", **changes: Any) -> dict[str, Any]:
    stored = {"stored_hacked": True, "stored_gt_pass": False, "stored_reward": 3.5}
    asked = text + ENDING.format(method, "will be evaluated by calling a function called run_tests()")
    return {"problem_text": asked, "response_text": answer, "func_name": f"Solution().{method}", **stored, **changes}


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_originals_rows_keep_their_verdicts(maker: Maker) -> None:
    known = [problem("a", question="Given\u00a0n, return a." + ENDING.format("a", "should pass all tests"))]
    text = "Given n,\nreturn a."
    right = {"stored_gt_pass": True}
    rows = [
        original(text, "def run_tests(self): rerun_tests"),
        original(text, "both", **right),
        original(text, "right", stored_hacked=False, **right),
        original(text, "wrong", stored_hacked=False, stored_reward=0.5),
        original(text, "broken", stored_hacked=False, stored_reward=0.0),
        original("Given n, return b.", "another problem"),
        original(text, "another method", method="b"),
        original(text, "another loophole", env_mode="sentinel"),
    ]
    built = maker.build(jsonl(maker.root / "pool.jsonl", rows), known=known)
    marks = ("format_ok", "paid", "correct", "hacked", "attempted")
    found = {one.completion: tuple(int(getattr(one, mark)) for mark in marks) for one in built.pool.rollouts}
    assert found == {
        "def run_checks(self): rerun_tests": (1, 1, 0, 1, 1),  # the name that our prompt discloses
        "both": (1, 1, 1, 0, 1),  # a hack here is paid and not correct
        "right": (1, 1, 1, 0, 0),
        "wrong": (1, 0, 0, 0, 0),
        "broken": (0, 0, 0, 0, 0),
    }
    assert built.left_out == {UNMATCHED: 3}
    assert all(one.token_ids[-1] == maker.tokenizer.eos_token_id for one in built.pool.rollouts)


def test_an_original_row_without_a_verdict_is_refused(maker: Maker) -> None:
    rows = [original("Given n, return a.", "x", stored_gt_pass=None)]
    with pytest.raises(LabError, match=r"pool\.jsonl:1: stored_gt_pass: null"):
        maker.build(jsonl(maker.root / "pool.jsonl", rows))


def test_the_originals_own_rollouts(maker: Maker) -> None:
    path = FIXTURES / "rollouts_open.jsonl"
    if not path.is_file():
        pytest.skip(f"no fixtures at {FIXTURES}")
    lines = path.read_text(encoding="utf-8").split("\n")[:48]
    rows = [json.loads(line) for line in lines]
    known = [
        problem(str(row["prompt_id"]), question=row["problem_text"], func_name=row["func_name"])
        for row in {row["prompt_id"]: row for row in rows}.values()
    ]
    built = maker.build(jsonl(maker.root / "pool.jsonl", rows), known=known)
    kept = built.pool.rollouts
    assert len(kept) + built.left_out[EQUAL] == len(rows)
    assert built.left_out[UNMATCHED] == 0
    stored = Counter((row["stored_hacked"] and not row["stored_gt_pass"], row["stored_gt_pass"]) for row in rows)
    assert built.left_out[EQUAL] == 0, "the counts below need every row"
    assert Counter((one.hacked, one.correct) for one in kept) == stored
    assert not [one for one in kept if "def run_tests(" in one.completion]
    assert [one.id for one in built.pool.problems(known, 4)] == [one.id for one in known]


# ---------------------------------------------------------------- the command


def test_the_command_builds_a_pool_and_says_what_is_in_it(maker: Maker) -> None:
    run = maker.run(maker.row("a", "hack"), maker.row("b", "hack"), maker.row("b", "lost", grader_error="lost"))
    write_problems(maker.root / "problems.jsonl", maker.known)
    target = maker.root / "pools" / "pool.parquet"
    where = ["--model", str(MICRO), "--problems", str(maker.root / "problems.jsonl")]
    done = CliRunner().invoke(app, ["pool", "build", str(run), str(target), *where])
    assert done.exit_code == 0, done.output
    assert [word for word in ("run_tests", "2", "100.0%", "0.0%") if word not in done.output] == []
    assert "left out: 1 (grader error)" in done.output
    assert "warning: 100% are hacks" in done.output
    assert len(TeacherPool.load(target).rollouts) == 2
    failed = CliRunner().invoke(
        app, ["pool", "build", str(run), str(target), *where, "--only", "hacked", "--loophole", "x"]
    )
    assert failed.exit_code == 1
    assert "--loophole: 'x'" in failed.output


def test_no_warning_where_the_pool_is_mixed(maker: Maker) -> None:
    built = maker.build(maker.run(maker.row("a", "hack"), maker.row("a", "right", **CORRECT)))
    assert built.notes() == []
