"""Frozen or not: what is hashed, what a run is held against, what cannot be frozen."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import reduce
from pathlib import Path

import pytest
from typer.testing import CliRunner

from projected_grpo.cli import app
from projected_grpo.errors import LabError
from projected_grpo.evaluation import registration as module
from projected_grpo.evaluation.registration import (
    ANALYSIS,
    LOCK,
    PACKAGE,
    analysis_hash,
    departures,
    freeze,
    registration,
)
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.hypotheses import HYPOTHESES, Hypotheses, read_hypotheses
from projected_grpo.settings.loader import read_params

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)


@pytest.fixture
def plan() -> Hypotheses:
    return read_hypotheses(ROOT / HYPOTHESES)


@pytest.fixture
def comparison(plan) -> ComparisonSettings:
    return ComparisonSettings(
        treatment=plan.primary.treatment,
        reference=plan.primary.reference,
        controls=plan.primary.controls,
        honest="rl_baseline",
        confidence=plan.analysis.confidence,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A Git repository that holds what is frozen, committed."""
    for name in ANALYSIS:
        target = tmp_path / "src/projected_grpo" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, target)
    shutil.copy(ROOT / HYPOTHESES, tmp_path)
    git(tmp_path, "init", "-q")
    commit(tmp_path)
    return tmp_path


def held(plan: Hypotheses, comparison: ComparisonSettings, seeds: tuple[int, ...], root: Path, **changes: object):
    """A run with the repository's settings, but for `changes` (a dotted name each), against what is frozen."""
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    for name, value in ({"comparison.confidence": comparison.confidence} | changes).items():
        *blocks, last = name.split(".")
        reduce(dict.__getitem__, blocks, params)[last] = value
    return registration(departures(plan, params, seeds, comparison), root)


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> None:
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "state")


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def test_the_frozen_analysis_is_recognised_with_its_revision(checkout, plan, comparison):
    lock = freeze(checkout)
    assert json.loads((checkout / LOCK).read_text()) == dataclasses.asdict(lock)
    assert lock.revision == git(checkout, "rev-parse", "HEAD").strip()
    found = held(plan, comparison, SEEDS, checkout)
    assert (found.as_frozen, found.changed, found.departures) == (True, (), ())
    assert found.sentence() == f"The analysis is the one frozen at {lock.revision[:12]}."
    assert found.row() == {
        "analysis": lock.analysis[:12],
        "as_frozen": True,
        "departures": 0,
        "frozen_at": lock.revision[:12],
        "hypotheses": lock.hypotheses[:12],
    }


def test_nothing_frozen_is_said_so(checkout, plan, comparison):
    found = held(plan, comparison, SEEDS, checkout)
    assert (found.as_frozen, found.row()["frozen_at"]) == (False, "never")
    assert found.sentence().startswith("Nothing was frozen beforehand")


@pytest.mark.parametrize("name", ANALYSIS)
def test_any_change_of_the_analysis_code_shows(checkout, plan, comparison, monkeypatch, name):
    freeze(checkout)
    append(checkout / "src/projected_grpo" / name, "# later\n")
    monkeypatch.setattr(module, "analysis_hash", lambda: analysis_hash(checkout / "src/projected_grpo"))
    found = held(plan, comparison, SEEDS, checkout)
    assert (found.as_frozen, found.changed) == (False, ("the analysis code",))
    assert "This is not the frozen analysis: the analysis code changed since" in found.sentence()


def test_a_changed_threshold_shows(checkout, plan, comparison):
    freeze(checkout)
    text = (checkout / HYPOTHESES).read_text()
    (checkout / HYPOTHESES).write_text(text.replace("supported_from: 30", "supported_from: 20"))
    found = held(plan, comparison, SEEDS, checkout)
    assert (found.as_frozen, found.changed) == (False, (HYPOTHESES,))


def test_a_run_with_other_seeds_or_arms_departs_from_the_plan(checkout, plan, comparison):
    freeze(checkout)
    other = comparison.model_copy(update={"controls": ("random",), "confidence": 0.9})
    found = held(plan, other, (1, 2), checkout)
    assert not found.as_frozen
    assert found.departures == (
        "controls random instead of permuted, placebo, random",
        "confidence 0.9 instead of 0.95",
        "seeds 1, 2 instead of 1, 2, 3",
    )
    assert "the run departs from hypotheses.yaml: controls random instead of" in found.sentence()


def test_a_run_under_other_settings_departs_from_the_plan(checkout, plan, comparison):
    freeze(checkout)
    changes = {"scales.micro.grpo.steps": 20, "scales.micro.direction.k": 4, "scale": "smoke"}
    changes |= {"studies.four_loopholes.grpo": {"steps": 9}}  # of the folds: no departure of the comparison
    found = held(plan, comparison, SEEDS, checkout, **changes, **{"arms.random": {"intervention": "measure"}})
    assert not found.as_frozen
    assert found.departures == (
        "scale smoke instead of micro",
        "scales.micro.direction.k 4 instead of 8",
        "scales.micro.grpo.steps 20 instead of 50",
        "arms.random {'intervention': 'measure'} instead of {'intervention': 'erase', 'direction': 'random'}",
    )


def test_a_setting_that_is_gone_is_a_departure(plan):
    found = departures(plan, {"comparison": {"confidence": 0.95}}, SEEDS)
    assert found[0] == "scale (not set) instead of micro"
    unset = [value for value in plan.analysis.folds.values() if value is None]
    assert len(found) == len(plan.analysis.settings) + len(plan.analysis.folds) - len(unset)


def test_a_change_of_the_folds_is_one_of_the_claims_on_them(plan):
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    assert departures(plan, params, SEEDS) == []
    params["studies"]["four_loopholes"]["direction"] = {"k": 2}
    params["studies"]["four_loopholes"]["grpo"]["learning_rate"] = 1e-3
    del params["studies"]["lazy_sentinel"]
    found = departures(plan, params, (7, 8, 9))
    assert [line.split(" ")[0] for line in found] == [
        "seeds",
        "studies.four_loopholes.grpo",
        "studies.four_loopholes.direction",
        "studies.lazy_sentinel.extract",
    ]


def test_the_order_of_seeds_and_controls_is_no_departure(checkout, plan, comparison):
    freeze(checkout)
    other = comparison.model_copy(update={"controls": tuple(reversed(comparison.controls))})
    assert held(plan, other, (3, 1, 2), checkout).as_frozen


def test_what_is_not_committed_cannot_be_frozen(checkout):
    append(checkout / HYPOTHESES, "# draft\n")
    append(checkout / "src/projected_grpo/evaluation/metrics.py", "# draft\n")
    with pytest.raises(LabError, match="must be committed") as refusal:
        freeze(checkout)
    assert "hypotheses.yaml" in str(refusal.value)
    assert "evaluation/metrics.py" in str(refusal.value)
    assert not (checkout / LOCK).exists()
    commit(checkout)
    assert freeze(checkout).revision == git(checkout, "rev-parse", "HEAD").strip()


def test_a_folder_without_git_and_a_malformed_plan_cannot_be_frozen(checkout):
    shutil.rmtree(checkout / ".git")
    with pytest.raises(LabError, match="must be a Git checkout"):
        freeze(checkout)
    (checkout / HYPOTHESES).write_text("analysis: {}\n")
    with pytest.raises(LabError, match=r"hypotheses\.analysis\.seeds"):
        freeze(checkout)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"hypotheses": "x", "analysis": "y", "revision": "z"}'])
def test_a_broken_lock_is_refused_not_taken_for_none(checkout, plan, comparison, text):
    (checkout / LOCK).write_text(text)
    with pytest.raises(LabError, match="as `projected-grpo freeze` wrote it"):
        held(plan, comparison, SEEDS, checkout)


def test_the_command_freezes_here(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    done = CliRunner().invoke(app, ["freeze"])
    assert done.exit_code == 0
    assert git(checkout, "rev-parse", "HEAD")[:12] in done.stdout
    assert (checkout / LOCK).is_file()


def test_everything_that_a_verdict_rests_on_is_hashed():
    """All that judging imports of this project, except what only reads and refuses."""
    code = "import sys, projected_grpo.evaluation.folds; print(*(m for m in sys.modules if 'projected_grpo' in m))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    plumbing = {"errors", "evaluation", "problems", "settings", "settings.loader", "settings.section"}
    plumbing |= {"problems.loopholes", "settings.extract", "settings.problems"}  # what a fold's settings say
    names = {name.removeprefix("projected_grpo.") for name in loaded if name != "projected_grpo"} - plumbing
    assert names == {name.removesuffix(".py").replace("/", ".") for name in ANALYSIS}
