"""`projected-grpo status`: which stages run, which may follow, and how long that takes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from dvc.repo import Repo
from rich.console import Console

from projected_grpo.errors import LabError
from projected_grpo.status import State, duration, plan, read_status, seconds_of, summary, table, training_seconds

NEEDS = {"grade": ["train"], "make": [], "train": ["make"], "aside": []}
SECONDS = {"make": (5.0, False), "train": (180.0, True), "grade": (12.0, False), "aside": (None, False)}


def states(changes: dict, new: tuple[str, ...] = ()) -> dict[str, State]:
    return {stage.name: stage.state for stage in plan(NEEDS, changes, new, SECONDS)}


def test_stages_come_in_run_order():
    assert list(states({})) == ["make", "train", "grade", "aside"]


def test_what_depends_on_a_stale_stage_follows():
    changed = {"train": [{"changed deps": {"src/projected_grpo/training": "modified"}}]}
    assert states(changed) == {
        "make": State.CURRENT, "train": State.STALE, "grade": State.FOLLOWS, "aside": State.CURRENT,
    }  # fmt: skip
    assert states({}, ("aside",))["aside"] is State.NEW


def test_reasons_name_what_changed():
    changes = [
        {"changed deps": {"params.yaml": {"grpo.steps": "modified", "seeds": "new"}}},
        {"changed outs": {"data/runs": "deleted"}},
        {"changed deps": {f"src/projected_grpo/{name}": "modified" for name in "abcde"}},
        "changed command",
    ]
    stage = plan({"a": []}, {"a": changes}, (), {"a": (None, False)})[0]
    assert stage.reasons == (
        "deps: grpo.steps, seeds",
        "missing: data/runs",
        "deps: a, b, c and 2 more",
        "changed command",
    )


def test_the_summary_counts_what_runs_and_what_may_follow():
    changed = {"train": [{"changed deps": {"x": "modified"}}]}
    said = summary(plan(NEEDS, changed, (), SECONDS))
    assert said == "`dvc repro` runs 1 of 4 stages, about 3 min; with all that may follow 2, about 3 min."
    assert "runs 2 of 4 stages, at least 3 min" in summary(plan(NEEDS, changed, ("aside",), SECONDS))
    assert "runs 1 of 4 stages, time unknown" in summary(plan(NEEDS, {}, ("aside",), SECONDS))
    assert summary(plan(NEEDS, {}, (), SECONDS)) == "Everything is up to date: `dvc repro` has nothing to do."


def test_times_are_measured_where_a_run_was_and_typical_elsewhere(tmp_path: Path):
    for arm, seed, wall in (("vanilla", 1, 100.0), ("vanilla", 2, 160.0), ("placebo", 1, 200.0)):
        folder = tmp_path / arm / str(seed)
        folder.mkdir(parents=True)
        (folder / "provenance.json").write_text(json.dumps({"wall_seconds": wall}))
    (tmp_path / "placebo/1/provenance.json").with_name("other.json").write_text("{")
    broken = tmp_path / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "provenance.json").write_text("{")
    measured = training_seconds(tmp_path)
    assert measured == {"vanilla": 160.0, "placebo": 200.0}
    assert seconds_of("grpo_vanilla", measured) == (160.0, True)
    assert seconds_of("grpo_reference@placebo", measured) == (200.0, True)
    assert seconds_of("grpo_reference@random", measured) == (180.0, False)
    assert seconds_of("grpo_vanilla", {}) == (None, False)
    assert seconds_of("sample@vanilla", measured)[1] is False
    assert seconds_of("sample@vanilla", measured, typical=False) == (None, False)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (59, "59 s"), (61, "1 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_durations_read_well(seconds, said):
    assert duration(seconds) == said


def test_the_table_fits_80_columns():
    changed = {"train": [{"changed deps": {"src/projected_grpo/" + "x" * 90: "modified"}}]}
    stream = io.StringIO()
    Console(file=stream, width=80).print(table(plan(NEEDS, changed, ("aside",), SECONDS)))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert next(line for line in lines if "never ran" in line).split() == ["aside", "never", "ran", "?"]
    assert any("~5 s" in line for line in lines)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_pipeline_is_read_as_dvc_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("scale: micro\n")
    Path("in").write_text("1")
    Path("dvc.yaml").write_text(
        "stages:\n"
        "  make: {cmd: cat in > out, deps: [in], outs: [out]}\n"
        "  copy: {cmd: cat out > end, deps: [out], outs: [end]}\n"
        "  later: {cmd: cat in > last, deps: [in], outs: [last]}\n"
    )
    with Repo.init(no_scm=True) as repo:
        repo.reproduce("copy")
    Path("in").write_text("2")
    found = {stage.name: stage for stage in read_status()}
    assert {name: stage.state for name, stage in found.items()} == {
        "make": State.STALE, "copy": State.FOLLOWS, "later": State.NEW,
    }  # fmt: skip
    assert found["make"].reasons == ("deps: in",)


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(LabError, match="run it in the project's folder"):
        read_status(tmp_path)
