"""`projected-grpo status`: which stages run, which may follow, and how long that takes."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from dvc.dependency import param
from dvc.repo import Repo
from rich.console import Console

from projected_grpo.errors import LabError
from projected_grpo.settings.loader import read_params
from projected_grpo.status import (
    MAIN,
    STUDIES,
    State,
    _table,
    duration,
    plan,
    read_status,
    seconds_of,
    study_line,
    summary,
    table,
    training_seconds,
)

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
    assert seconds_of("study/dvc.yaml:train_core@placebo", measured) == (200.0, True)
    assert seconds_of("study/dvc.yaml:train_fold@heldout_a_lazy-vanilla", measured) == (160.0, True)
    assert seconds_of("study/dvc.yaml:sample_core@vanilla", measured) == seconds_of("sample@vanilla", measured)
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
    found = {stage.name: stage for stage in read_status()[MAIN]}
    assert {name: stage.state for name, stage in found.items()} == {
        "make": State.STALE, "copy": State.FOLLOWS, "later": State.NEW,
    }  # fmt: skip
    assert found["make"].reasons == ("deps: in",)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parameters_are_parsed_once_for_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("scale: micro\na: 1\nb: 2\n")
    Path("dvc.yaml").write_text(
        "stages:\n  first: {cmd: echo > x, params: [a], outs: [x]}\n  second: {cmd: echo > y, params: [b], outs: [y]}\n"
    )
    with Repo.init(no_scm=True) as repo:
        repo.reproduce()
    Path("params.yaml").write_text("scale: micro\na: 1\nb: 3\n")
    parsed = []
    load = param.load_path

    def counted(path: str, *rest: object, **options: object) -> object:
        parsed.append(path)
        return load(path, *rest, **options)

    monkeypatch.setattr(param, "load_path", counted)
    assert {stage.name: stage.reasons for stage in read_status()[MAIN]} == {"first": (), "second": ("deps: b",)}
    assert len(parsed) == 1
    assert param.load_path is counted, "DVC is left as it was"


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(LabError, match="run it in the project's folder"):
        read_status(tmp_path)


def study_stages(trained: dict[str, str], others: str = "") -> list:
    """A study's line on made-up changes: arm -> change of its training, "" for none."""
    needs = {f"{STUDIES}train_core@{arm}": [] for arm in trained}
    needs[f"{STUDIES}table@core"] = list(needs)
    changes = {f"{STUDIES}train_core@{arm}": [change] for arm, change in trained.items() if change}
    changes |= {f"{STUDIES}table@core": [others]} if others else {}
    return plan(needs, changes, (), dict.fromkeys(needs, (120.0, True)))


def test_a_study_is_one_line():
    done = {"vanilla": "", "projected": "", "random": ""}
    assert study_line("core", study_stages(done)) == "core: recorded, nothing stale"
    stale = study_stages(done | {"random": "changed command"})
    assert study_line("core", stale) == "core: 1 of 3 arms to train, about 2 min"
    assert (
        study_line("core", study_stages(done, "changed command")) == "core: trained; 1 of 4 stages to run, about 2 min"
    )
    upstream = plan({"a": [], "b": ["a"]}, {}, ["a"], {"a": (1.0, True), "b": (1.0, True)})
    assert study_line("core", upstream) == "core: trained; 1 of 2 stages to run, about 1 s"
    folds = f"{STUDIES}train_fold@core"
    fold = plan({f"{folds}-vanilla": []}, {}, [f"{folds}-vanilla"], {f"{folds}-vanilla": (60.0, False)})
    assert study_line("core", fold) == "core: 1 of 1 arms to train, about 1 min"
    four = f"{STUDIES}train_four@core-a"
    assert study_line("core", plan({four: []}, {}, [four], {four: (60.0, False)})) == study_line("core", fold)


def test_every_study_of_the_project_has_a_stage_that_shows_it():
    root = Path(__file__).resolve().parents[1]
    with Repo(str(root)) as repo:
        needs = {f"{STUDIES}{stage.name}": [] for stage in repo.stage.collect(str(root / "study/dvc.yaml"))}
    for study in read_params(root / "params.yaml")["studies"]:
        wanted = "folds" if study.startswith(("heldout_", "lazy_")) else f"table@{study}"
        assert _table(study, needs) == f"{STUDIES}{wanted}"


def test_a_summary_names_the_command():
    stages = study_stages({"vanilla": ""})
    assert "`dvc repro study/dvc.yaml:table@core` has nothing to do" in summary(stages, "core")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_study_is_read_with_all_that_it_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    grpo = "{steps: 50}"
    Path("params.yaml").write_text(
        f"scale: micro\nscales: {{micro: {{grpo: {grpo}}}}}\nstudies: {{long: {{arms: [a], grpo: {{steps: 200}}}}}}\n"
    )
    Path("in").write_text("1")
    Path("dvc.yaml").write_text(
        "stages:\n  make: {cmd: cat in > out, deps: [in], outs: [out]}\n"
        "  aside: {cmd: cat in > x, deps: [in], outs: [x]}\n"
    )
    Path("study").mkdir()
    Path("study/dvc.yaml").write_text(
        "stages:\n  train_long:\n    matrix: {arm: [a]}\n    cmd: cat ../out > a\n    deps: [../out]\n    outs: [a]\n"
        "  table:\n    matrix: {study: [long]}\n    cmd: cat a > t\n    deps: [a]\n    outs: [t]\n"
    )
    record = tmp_path / "data/provenance/b/1/provenance.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"wall_seconds": 100.0}))
    with Repo.init(no_scm=True):
        pass
    found = read_status(wanted=[MAIN, "long"])
    assert {stage.name for stage in found[MAIN]} == {"make", "aside"}
    assert [stage.name for stage in found["long"]] == [
        "make",
        "study/dvc.yaml:train_long@a",
        "study/dvc.yaml:table@long",
    ]
    train = found["long"][1]
    assert (train.state, train.seconds, train.measured) == (State.NEW, 400.0, False), "four times the steps"
    with pytest.raises(LabError, match="name one of long"):
        read_status(wanted=["other"])
