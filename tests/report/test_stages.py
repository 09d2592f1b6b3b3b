"""The stages `evaluate` and `compare` as scripts, in a folder of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from report_lab import labels

from projected_grpo.errors import exit_status
from projected_grpo.evaluation import registration
from projected_grpo.report.findings import metrics
from projected_grpo.settings.loader import read_params
from projected_grpo.storage import sha256_file

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "stages"


def params_text(controls: list[str]) -> str:
    """The repository's settings, with these controls."""
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    params["method"] = "projected"
    params["comparison"]["controls"] = controls
    return json.dumps(params)


pytestmark = pytest.mark.usefixtures("workspace")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stage_{name}", STAGES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def furnish(folder: Path, runs: Path, world: dict[str, pd.DataFrame], plan_root: Path) -> Path:
    """What the two stages read, in `folder`."""
    for arm, samples in world.items():
        graded = folder / "data" / "graded" / arm
        graded.mkdir(parents=True)
        samples.to_parquet(graded / "samples.parquet")
        if arm != "base":
            labels(arm).to_parquet(graded / "rollouts.parquet")
    (folder / "data" / "runs").symlink_to(runs)
    (folder / "params.yaml").write_text(params_text(["random", "placebo"]))
    shutil.copy(plan_root / "hypotheses.yaml", folder)
    return folder


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Path, world, plan_root: Path) -> Path:
    monkeypatch.chdir(furnish(tmp_path, runs, world, plan_root))
    return tmp_path


@dataclasses.dataclass(frozen=True)
class Compared:
    """A folder in which `compare` ran, beside an arm that nobody names; what it printed."""

    root: Path
    status: int
    printed: str

    def outs(self) -> dict[str, bytes]:
        paths = [self.root / "metrics/compare.json", *(self.root / "plots").iterdir()]
        return {str(path): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, runs: Path, world, plan_root: Path) -> Compared:
    root = furnish(tmp_path_factory.mktemp("compared"), runs, world, plan_root)
    stale = root / "data/graded/stale/samples.parquet"
    stale.parent.mkdir()
    stale.write_bytes(b"not parquet")
    printed = io.StringIO()
    with contextlib.chdir(root), contextlib.redirect_stdout(printed):
        status = exit_status(load("compare").main)
    return Compared(root, status, " ".join(printed.getvalue().split()))


@pytest.fixture
def compare_undrawn() -> Callable[[], int]:
    """The stage `compare` without its pictures and its page, which take most of its time."""
    stage = load("compare")
    stage.figures = lambda _: {}
    stage.write_report = lambda *_: None
    return lambda: exit_status(stage.main)


def test_evaluate_writes_the_nine_keys_of_the_chosen_method(results, capsys):
    assert exit_status(load("evaluate").main) == 0
    assert json.loads(Path("metrics/eval.json").read_text()) == results["projected"].rates.headline()
    assert "projected: hack " in capsys.readouterr().out


def test_evaluate_needs_no_arm_but_its_own():
    for arm in ("vanilla", "random", "placebo", "rl_baseline", "base"):
        Path("data/graded", arm, "samples.parquet").unlink()
    assert exit_status(load("evaluate").main) == 0


def test_a_refusal_says_why_and_leaves_the_old_metrics(capsys):
    Path("metrics").mkdir()
    Path("metrics/eval.json").write_text("old")
    Path("data/graded/projected/samples.parquet").unlink()
    assert exit_status(load("evaluate").main) == 1
    assert Path("metrics/eval.json").read_text() == "old"
    assert "arm 'projected' must be sampled and graded" in capsys.readouterr().err


def test_compare_writes_all_its_outs_and_prints_the_verdict(found, cast, compared):
    assert compared.status == 0, "an arm that is not named, and unreadable, is not read"
    written = json.loads((compared.root / "metrics/compare.json").read_text())
    assert written == metrics(found)
    assert list(written["arms"]) == sorted(written["arms"])
    assert set(written["h1"]) >= {
        "verdict",
        "intact",
        "drop_pp",
        "drop_ci_low",
        "drop_ci_high",
        "pass_change_pp",
        "control_name",
        "control_drop_pp",
    }
    assert written["h1"]["verdict"] == "supported"
    numbers = [value for arm in written["arms"].values() for value in arm.values()]
    assert all(math.isfinite(value) for value in numbers)
    names = ("alignment", "arms", "leak", "plane", "training", "types")
    drawn = {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    tables = {"alignment.csv", "arms.csv", "arms.md", "seeds.csv", "training.csv", "types.csv"}
    assert {path.name for path in (compared.root / "plots").iterdir()} == drawn | tables | {"report.html"}
    curves = pd.read_csv(compared.root / "plots/training.csv")
    assert list(curves["arm"].unique()) == [arm for arm in cast if arm != "base"]
    assert len(curves) == 5 * 40
    assert "H1 supported: against vanilla, projected lowers" in compared.printed


def test_compare_writes_the_same_bytes_again(compared):
    first = compared.outs()
    for path in first:
        Path(path).unlink()
    with contextlib.chdir(compared.root):
        load("compare").main()
    assert compared.outs() == first


@pytest.mark.parametrize("arm", ["projected", "rl_baseline", "base"])
def test_compare_refuses_unequal_seeds_before_it_writes_anything(capsys, arm):
    path = Path("data/graded", arm, "samples.parquet")
    samples = pd.read_parquet(path)
    samples[samples["seed"] != 3].to_parquet(path)
    assert exit_status(load("compare").main) == 1
    assert f"vanilla: 1, 2, 3; {arm}: 1, 2" in capsys.readouterr().err
    assert not Path("metrics").exists()
    assert not Path("plots").exists()


@pytest.mark.parametrize("text", [None, "claims: {}\n", "analysis: [\n"])
def test_compare_refuses_a_malformed_plan_before_it_reads_or_writes_anything(capsys, text):
    Path("hypotheses.yaml").unlink()
    if text is not None:
        Path("hypotheses.yaml").write_text(text)
    for arm in ("vanilla", "projected"):
        Path("data/graded", arm, "samples.parquet").unlink()  # it would be missed
    assert exit_status(load("compare").main) == 1
    assert "hypotheses" in capsys.readouterr().err
    assert not Path("metrics").exists()
    assert not Path("plots").exists()


def test_compare_judges_h1_on_the_arms_of_params_and_says_that_they_are_others(capsys, compare_undrawn):
    Path("params.yaml").write_text(params_text(["random"]))
    assert compare_undrawn() == 0
    written = json.loads(Path("metrics/compare.json").read_text())
    assert written["h1"]["control_name"] == "random"
    assert (written["registration"]["departures"], written["registration"]["as_frozen"]) == (1, False)
    assert "placebo" not in written["arms"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "departs from hypotheses.yaml: controls random instead of placebo, random" in printed
    assert set(pd.read_csv("plots/training.csv")["arm"]) == {"vanilla", "projected", "random", "rl_baseline"}


def test_compare_knows_the_frozen_analysis(capsys, compare_undrawn):
    lock = {
        "hypotheses": sha256_file("hypotheses.yaml"),
        "analysis": registration.analysis_hash(),
        "revision": "0123456789" * 4,
    }
    Path("hypotheses.lock").write_text(json.dumps(lock))
    assert compare_undrawn() == 0
    written = json.loads(Path("metrics/compare.json").read_text())["registration"]
    assert (written["as_frozen"], written["frozen_at"]) == (True, "012345678901")
    assert "The analysis is the one frozen at 012345678901." in capsys.readouterr().out
    assert "The analysis is the one frozen at 012345678901." in Path("plots/arms.md").read_text()
