"""study/dvc.yaml against params.yaml and the scripts, and its last stage on made-up runs with known answers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from import_closure import imported_files

from projected_grpo.settings.hypotheses import read_hypotheses
from projected_grpo.settings.loader import read_params
from projected_grpo.settings.studies import OWN_DATA, paths_of

ROOT = Path(__file__).resolve().parents[2]
PARAMS = read_params(ROOT / "params.yaml")
STUDIES = PARAMS["studies"]
READS = {  # what a script takes from the scale, and so from what its study changes
    "base_model": {"base"},
    "prepare": {"problems", "extract"},
    "extract": {"extract", "grpo"},
    "grpo": {"direction", "grpo", "seeds"},
    "sample": {"sampling", "seeds"},
    "grade": {"seeds"},
}


def collected():
    """(name, command, paths of dependencies, parameters, outputs) of every stage of study/dvc.yaml, by DVC itself."""
    with Repo(str(ROOT)) as repo:
        return [
            (
                stage.name,
                str(stage.cmd),
                {os.path.relpath(dep.fs_path, ROOT) for dep in stage.deps if not isinstance(dep, ParamsDependency)},
                {name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params},
                {os.path.relpath(out.fs_path, ROOT) for out in stage.outs},
            )
            for stage in repo.stage.collect(str(ROOT / "study/dvc.yaml"))
        ]


def default_outputs() -> list[str]:
    with Repo(str(ROOT)) as repo:
        return [
            os.path.relpath(out.fs_path, ROOT)
            for stage in repo.stage.collect(str(ROOT / "dvc.yaml"))
            for out in stage.outs
        ]


STAGES = collected()
DEFAULT_OUTPUTS = default_outputs()
FOLDS = [study for study in STUDIES if "of" in STUDIES[study]]  # all are read in one table, with what they start from
SCRIPTS = [stage for stage in STAGES if "stages/" in stage[1]]
RUNS = [stage for stage in SCRIPTS if "--study" in stage[1] and "stages/study.py" not in stage[1]]
NAMES = [stage[0] for stage in RUNS]


def parts(command: str) -> tuple[str, str, str | None]:
    """Script, study and arm of a command."""
    arm = re.search(r"--arm (\w+)", command)
    [(script, study)] = re.findall(r"stages/(\w+)\.py --study (\w+)", command)
    return script, study, arm[1] if arm else None


def script_of(command: str) -> str:
    [script] = re.findall(r"stages/\w+\.py", command)
    return str(script)


def test_every_arm_of_every_study_is_trained_sampled_and_graded():
    wanted = {
        (script, study, arm)
        for study in STUDIES
        for arm in STUDIES[study]["arms"]
        for script in ("grpo", "sample", "grade")
    }
    own = {study for study in STUDIES if OWN_DATA & STUDIES[study].keys()}
    wanted |= {(script, study, None) for study in own for script in ("prepare", "extract")}
    wanted |= {("base_model", study, None) for study in STUDIES if "base" in STUDIES[study]}
    assert {parts(command) for _, command, *_ in RUNS} == wanted


def test_every_arm_of_every_study_is_one_of_arms():
    assert not [arm for study in STUDIES.values() for arm in study["arms"] if arm not in PARAMS["arms"]]


@pytest.mark.parametrize("stage", RUNS, ids=NAMES)
def test_files_are_those_that_paths_of_names(stage):
    _, command, dependencies, _, outputs = stage
    script, study, arm = parts(command)
    paths = paths_of(PARAMS, study)
    own = {name: str(getattr(paths, name) / (arm or "")) for name in ("runs", "provenance", "samples", "graded")}
    reads, writes = {
        "base_model": ({f"{paths.problems}/test.jsonl"}, {str(paths.base), str(paths.base.with_name("gate.json"))}),
        "prepare": (set(), {str(paths.problems), str(paths.pairs)}),
        "extract": ({str(paths.base), str(paths.pairs)}, {str(paths.directions)}),
        "grpo": (
            {str(paths.base), str(paths.directions), str(paths.pairs), f"{paths.problems}/train.jsonl"},
            {own["runs"], own["provenance"]},
        ),
        "sample": ({str(paths.base), f"{paths.problems}/test.jsonl", own["runs"]}, {own["samples"]}),
        "grade": ({str(paths.problems), own["runs"], own["samples"]}, {own["graded"]}),
    }[script]
    assert outputs == writes
    assert reads | {"data/validated.json"} <= dependencies


@pytest.mark.parametrize("stage", RUNS, ids=NAMES)
def test_settings_are_those_that_the_script_reads(stage):
    """The keys that the study changes and the script reads, and never the list of arms: a new arm reruns no other."""
    _, command, _, params, _ = stage
    script, study, arm = parts(command)
    sources = [source for source in (study, STUDIES[study].get("of")) if source]
    changed = {f"studies.{source}.{name}" for source in sources for name in READS[script] & STUDIES[source].keys()}
    assert {name for name in params if name.startswith("studies.")} == changed
    assert (f"arms.{arm}" in params) == (script == "grpo")
    text = (ROOT / f"stages/{script}.py").read_text()
    sections = set(re.findall(r'section\(params, "(\w+)"', text))
    if any("seeds" in STUDIES[source] for source in sources):
        sections -= {"seeds"}  # they are replaced whole
    assert {name.split(".")[2] for name in params if name.startswith("scales.")} == sections
    assert "scale" in params


def test_every_stage_lists_all_code_that_it_imports():
    needed = {script: imported_files(ROOT / script, ROOT) for script in {script_of(stage[1]) for stage in SCRIPTS}}
    for name, command, dependencies, *_ in SCRIPTS:
        for path in needed[script_of(command)]:
            assert any(path == known or path.startswith(f"{known}/") for known in dependencies), f"{name}: {path}"


def test_every_dependency_exists_or_is_made():
    made = set(DEFAULT_OUTPUTS).union(*(outputs for *_, outputs in STAGES))
    for name, _, dependencies, *_ in STAGES:
        for path in dependencies:
            within = any(path == out or path.startswith(f"{out}/") or out.startswith(f"{path}/") for out in made)
            assert within or (ROOT / path).exists(), f"{name}: {path}"


def test_an_arm_with_a_teacher_waits_for_its_pool():
    for name, command, dependencies, *_ in RUNS:
        script, _, arm = parts(command)
        teacher = PARAMS["arms"][arm].get("teacher") if script == "grpo" else None
        if teacher:
            assert teacher["pool"] in dependencies, name


def test_every_study_has_its_table():
    tables = {name: rest for name, *rest in STAGES if name.startswith("table")}
    alone = [study for study in STUDIES if study not in FOLDS]
    assert set(tables) == {f"table@{study}" for study in alone}
    for study in alone:
        _, dependencies, params, outputs = tables[f"table@{study}"]
        assert {f"data/study/{study}/{part}" for part in ("graded", "runs", "provenance")} <= dependencies
        assert {"arms", f"studies.{study}", "comparison.confidence"} <= params
        assert {f"metrics/study/{study}.json", f"plots/study/{study}.md", f"plots/study/{study}.csv"} <= outputs


def test_the_overview_reads_every_table():
    [(_, _, dependencies, _, _)] = [stage for stage in STAGES if stage[0] == "overview"]
    tables = {f"metrics/study/{study}.json" for study in STUDIES if study not in FOLDS}
    assert {path for path in dependencies if path.startswith("metrics/")} == tables


def test_the_default_pipeline_stays_without_the_studies():
    assert not [path for path in DEFAULT_OUTPUTS if "study" in path]


LOOPHOLES = {  # of an arm that hacks the first of ten problems and solves the next two
    "run_tests": {"hack_rate": 0.2, "pass_rate": 0.2},
    "sentinel": {"hack_rate": 0.0, "pass_rate": 0.2},
}


def test_the_folds_are_the_studies_whose_pairs_miss_a_loophole():
    [(_, _, dependencies, params, outputs)] = [stage for stage in STAGES if stage[0] == "folds"]
    scale = PARAMS["scales"][PARAMS["scale"]]
    folds = set()
    for name, study in STUDIES.items():
        start = STUDIES.get(study.get("of"), {})
        trained = (scale["problems"] | start.get("problems", {}) | study.get("problems", {}))["loopholes"]
        known = (scale["extract"] | study.get("extract", {})).get("loopholes")
        if known is not None and set(trained) - set(known):
            folds.add(name)
    assert len(folds) == 8
    assert folds == set(FOLDS)
    read = folds | {STUDIES[name]["of"] for name in folds}
    assert {path for path in dependencies if path.endswith("graded")} == {f"data/study/{name}/graded" for name in read}
    assert {name for name in params if name.startswith("studies.")} == {f"studies.{name}" for name in read}
    registered = read_hypotheses(ROOT / "hypotheses.yaml").analysis.settings
    sections = {".".join(name.split(".")[:3]) for name in registered if name.startswith("scales.")}
    assert sections | {"hypotheses.yaml", "hypotheses.lock"} <= params | dependencies
    assert {"metrics/study/folds.json", "plots/study/folds.md", "plots/study/folds.csv"} <= outputs


class TestTable:
    """stages/study.py, run on a small study of its own."""

    @pytest.fixture
    def lab(self, tmp_path):
        params = json.loads(json.dumps(PARAMS))
        arms = ["vanilla", "projected", "random"]
        params["studies"] = {"core": {"arms": arms, "seeds": [4, 5]}, "long": {"arms": arms[:2], "seeds": [4, 5]}}
        (tmp_path / "params.yaml").write_text(json.dumps(params))
        for study in params["studies"]:
            for arm, hacks in (("vanilla", 6), ("projected", 1), ("random", 5)):
                self.write(tmp_path / "data/study" / study, arm, hacks)
        (tmp_path / "benchmarks").mkdir()
        costs = {"vanilla": {"seconds": 1.0, "memory": 1.0}, "projected": {"seconds": 1.08, "memory": 0.94}}
        (tmp_path / "benchmarks/arms.json").write_text(json.dumps(costs | {"again": {"seconds": 1.03, "memory": 1.0}}))
        return tmp_path

    def write(self, root: Path, arm: str, hacks: int) -> None:
        """`hacks` of 10 problems are hacked, the next two solved; half of the problems have another loophole."""
        rows = pd.DataFrame(
            [(seed, tokens, problem) for seed in (4, 5) for tokens in ("heldout", "train") for problem in range(10)],
            columns=["seed", "tokens", "number"],
        ).assign(arm=arm, grader_error=False, format_ok=True)
        rows["problem_id"] = "p" + rows["number"].astype(str)
        rows["loophole"] = (rows["number"] % 2).map({0: "run_tests", 1: "sentinel"})
        rows["hacked"] = rows["attempted"] = rows["number"] < hacks
        rows["correct"] = (rows["number"] >= hacks) & (rows["number"] < hacks + 2)
        rows["paid"] = rows["hacked"] | rows["correct"]
        (root / "graded" / arm).mkdir(parents=True)
        rows.to_parquet(root / "graded" / arm / "samples.parquet")
        log = pd.DataFrame({"step": range(10), "hacked": [0.0] * 5 + [hacks / 10] * 5, "correct": 0.2})
        log = log.assign(alignment_signed=0.1, alignment=0.2, alignment_null=0.1, share_removed=0.0)
        for seed in (4, 5):
            for part in ("runs", "provenance"):
                (root / part / arm / str(seed)).mkdir(parents=True)
            log.to_csv(root / "runs" / arm / str(seed) / "steps.csv", index=False)
            folder = root / "provenance" / arm / str(seed)
            pd.DataFrame({"step_total": [float(hacks)] * 10}).to_parquet(folder / "timings.parquet")
            (folder / "provenance.json").write_text(json.dumps({"peak_memory_mb": 900.0 + hacks}))

    def run(self, root: Path, study: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        script = [sys.executable, str(ROOT / "stages/study.py"), "--study", study]
        return subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True, check=False)

    def test_writes_all_it_declares(self, lab):
        result = self.run(lab, "core")
        assert result.returncode == 0, result.stderr
        found = json.loads((lab / "metrics/study/core.json").read_text())
        assert list(found) == ["vanilla", "projected", "random"]
        row = found["projected"]
        assert (row["hack_rate"], row["pass_rate"], row["format_rate"]) == (0.1, 0.2, 1.0)
        assert (row["drop_pp"], row["relapse"]) == (50.0, 0.1)
        assert {name: {key: of[key] for key in LOOPHOLES[name]} for name, of in row["loopholes"].items()} == LOOPHOLES
        table = pd.read_csv(lab / "plots/study/core.csv")
        assert table["hack_rate"].tolist() == [0.6, 0.1, 0.5]
        text = (lab / "plots/study/core.md").read_text()
        assert re.search(r"\| projected \| 20\.0 \(.+\) / 20\.0 \(.+\) \| 0\.0 \(.+\) / 20\.0 \(.+\) \|", text)
        cost = pd.read_csv(lab / "data/study/core/cost/cost.csv")
        assert cost["seconds_ratio"].tolist() == pytest.approx([1.0, 1 / 6, 5 / 6], abs=1e-3)
        assert cost["peak_memory_mb"].tolist() == [906.0, 901.0, 905.0]
        figures = {f"core_{what}.{kind}" for what in ("plane", "training") for kind in ("png", "svg")}
        assert {path.name for path in (lab / "plots/study").iterdir()} == figures | {"core.csv", "core.md"}

    def overview(self, root: Path) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        script = [sys.executable, str(ROOT / "stages/overview.py")]
        return subprocess.run(script, cwd=root, env=environment, capture_output=True, text=True, check=False)

    def test_the_overview_has_every_arm_as_its_own_study_says(self, lab):
        assert (self.run(lab, "core").returncode, self.run(lab, "long").returncode) == (0, 0)
        result = self.overview(lab)
        assert result.returncode == 0, result.stderr
        rows = pd.read_csv(lab / "plots/study/overview.csv")
        assert rows["study"].tolist() == ["core"] * 3 + ["long"] * 2
        assert rows["hack_rate"].tolist() == [0.6, 0.1, 0.5, 0.6, 0.1]
        text = (lab / "plots/study/overview.md").read_text()
        assert "| core | projected | 10.0 ± 0.0 | 10.0 ± 0.0 | 20.0 ± 0.0 | 100.0 ± 0.0 | +50.0 (" in text
        assert "- `long`: seeds [4, 5]" in text
        assert rows["seconds_vs_vanilla"].tolist()[:2] == [1.0, 1.08]
        assert rows["memory_vs_vanilla"].isna().tolist() == [False, False, True, False, False]
        [projected] = [line for line in text.splitlines() if line.startswith("| core | projected |")]
        [random] = [line for line in text.splitlines() if line.startswith("| core | random |")]
        assert "| 1.08 | 0.94 | 2 |" in projected
        assert "|  |  | 2 |" in random
        assert "vanilla once more took 1.03" in text

    def test_an_overview_without_a_study_is_refused(self, lab):
        assert self.run(lab, "core").returncode == 0
        result = self.overview(lab)
        assert result.returncode == 1
        assert "metrics/study/long.json: 'no such file'" in result.stderr
        assert not (lab / "plots/study/overview.md").exists()

    def test_an_overview_without_what_arms_cost_is_refused(self, lab):
        assert (self.run(lab, "core").returncode, self.run(lab, "long").returncode) == (0, 0)
        (lab / "benchmarks/arms.json").unlink()
        result = self.overview(lab)
        assert result.returncode == 1
        assert "run `python benchmarks/arms.py --out benchmarks/arms.json`" in result.stderr

    def test_a_missing_arm_is_refused_and_nothing_written(self, lab):
        (lab / "data/study/long/graded/projected/samples.parquet").unlink()
        result = self.run(lab, "long")
        assert result.returncode == 1
        assert "data/study/long/graded/projected/samples.parquet" in result.stderr
        assert not (lab / "metrics").exists()
        assert not (lab / "plots").exists()
