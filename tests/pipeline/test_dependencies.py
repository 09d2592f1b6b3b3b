"""dvc.yaml lists exactly the code that each stage imports: nothing forgotten, nothing too much."""

import re
from pathlib import Path

import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage
from import_closure import imported_files

from projected_grpo.evaluation.registration import ANALYSIS
from projected_grpo.settings.hypotheses import read_hypotheses
from projected_grpo.settings.loader import read_params

ROOT = Path(__file__).resolve().parents[2]
INTERVENTIONS = ROOT / "src/projected_grpo/interventions"
TRAINING_LOCK = "requirements-training.lock"
NUMERICS = {"peft", "torch", "transformers", "trl"}  # what trained numbers depend on
TRAINED = ("grpo_", "extract", "base_model", "sample@")  # stages that run the model


def main_stages() -> list[PipelineStage]:
    """Those of dvc.yaml; a pipeline in a folder of its own has tests of its own."""
    with Repo(str(ROOT)) as repo:
        return list(repo.stage.collect(str(ROOT / "dvc.yaml")))


def code_dependencies(stage: PipelineStage) -> set[str]:
    return {path for path in paths(stage) if path.split("/")[0] in ("src", "stages")}


def paths(stage: PipelineStage) -> set[str]:
    return {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}


def parameters(stage: PipelineStage) -> set[str]:
    return {name for dep in stage.deps if isinstance(dep, ParamsDependency) for name in dep.params}


PLAN = read_hypotheses(ROOT / "hypotheses.yaml")
COLLECTED = {stage.name: stage for stage in main_stages()}  # once: DVC takes seconds to read the lock
STAGES = {name: (stage.cmd, code_dependencies(stage)) for name, stage in COLLECTED.items()}


def needed_files(command: str) -> set[str]:
    """Project files that a command imports; an arm's family is loaded by its name in params.yaml, by `validate` all."""
    [script] = re.findall(r"stages/\w+\.py", command)
    files = imported_files(ROOT / script, ROOT)
    arm = re.search(r"--arm (\w+)", command)
    if script == "stages/grpo.py" and arm:
        intervention = read_params(ROOT / "params.yaml")["arms"][arm[1]]["intervention"]
        files |= imported_files(INTERVENTIONS / f"{intervention}.py", ROOT)
    if script == "stages/validate.py":  # it reads their Options, for which what else they import does not matter
        files |= {path.relative_to(ROOT).as_posix() for path in INTERVENTIONS.glob("*.py")}
    if script == "stages/compare.py":  # it tells whether they are as they were frozen
        files |= {f"src/projected_grpo/{name}" for name in ANALYSIS}
    return files


def covered(dependency: str) -> set[str]:
    """The source files under one dependency."""
    path = ROOT / dependency
    files = path.rglob("*.py") if path.is_dir() else [path]
    return {file.relative_to(ROOT).as_posix() for file in files}


@pytest.mark.parametrize("stage", STAGES)
def test_lists_exactly_what_it_imports(stage):
    command, listed = STAGES[stage]
    needed = needed_files(command)
    found = set().union(*map(covered, listed))
    assert not needed - found, f"{stage} imports these, dvc.yaml lacks them under deps"
    assert not found - needed, f"{stage} does not import these, dvc.yaml has them under deps"


@pytest.mark.parametrize("stage", STAGES)
def test_every_listed_file_exists(stage):
    assert not [path for path in STAGES[stage][1] if not (ROOT / path).exists()]


@pytest.mark.parametrize("stage", STAGES)
def test_lists_exactly_the_settings_it_reads(stage):
    """By section of the scale; a stage may narrow one to the fields it uses."""
    command = STAGES[stage][0]
    read, arm = sections_read(command)
    if arm and arm["intervention"] == "measure":
        read.discard("direction")  # read only by arms that act on one
    params = parameters(COLLECTED[stage])
    assert {name.split(".")[2] for name in params if name.startswith("scales.")} == read
    assert ("scale" in params) == bool(read), "a section is found by the name of the scale"


def test_the_comparison_waits_for_every_registered_setting():
    listed = parameters(COLLECTED["compare"])
    for name in PLAN.analysis.settings:
        assert any(name == known or name.startswith(f"{known}.") for known in listed), name


def sections_read(command: str) -> tuple[set[str], dict | None]:
    """Sections that a stage's script takes from the active scale, and its arm's settings, if it has one."""
    [script] = re.findall(r"stages/\w+\.py", command)
    arm = re.search(r"--arm (\w+)", command)
    arms = read_params(ROOT / "params.yaml")["arms"]
    names = re.findall(r'section\(params, "(\w+)"', (ROOT / script).read_text())
    if script == "stages/compare.py":  # it holds the run against what is registered
        names += [name.split(".")[2] for name in PLAN.analysis.settings if name.startswith("scales.")]
    return set(names), arms.get(arm[1]) if arm and script == "stages/grpo.py" else None


def test_every_command_runs_the_code_of_its_workspace():
    assert all(command.startswith("PYTHONPATH=src python stages/") for command, _ in STAGES.values())


def test_labels_never_train():
    """A new label or detector must not make a trained run stale."""
    for stage, (command, _) in STAGES.items():
        if stage.startswith(TRAINED):
            assert not [path for path in needed_files(command) if "grading/labels" in path], stage


def test_training_imports_neither_evaluation_nor_report():
    for stage, (command, _) in STAGES.items():
        if stage.startswith("grpo_"):
            walls = ("projected_grpo/evaluation/", "projected_grpo/report/", "settings/params")
            assert not [path for path in needed_files(command) if any(wall in path for wall in walls)], stage


def test_each_arm_lists_its_own_intervention_alone():
    for stage, (command, listed) in STAGES.items():
        arm = re.search(r"stages/grpo\.py --arm (\w+)", command)
        if arm:
            own = read_params(ROOT / "params.yaml")["arms"][arm[1]]["intervention"]
            shared = {"__init__", "base", "registry"}
            modules = {Path(path).stem for path in listed if "/interventions/" in path} - shared
            assert modules == {own}, stage


def test_every_arm_of_the_comparison_has_its_stages():
    params = read_params(ROOT / "params.yaml")
    roles = params["comparison"]
    arms = {roles["treatment"], roles["reference"], roles["honest"], *roles["controls"]}
    assert arms <= params["arms"].keys()  # the others are the studies'

    def of(pattern: str) -> set[str]:
        return {match[1] for stage in STAGES if (match := re.fullmatch(pattern, stage))}

    assert of(r"grpo_(?!reference)(\w+)") | of(r"grpo_reference@(\w+)") == arms
    assert of(r"sample@(\w+)") == of(r"grade@(\w+)") == arms | {"base"}


def test_validate_is_upstream_of_everything():
    for name, stage in COLLECTED.items():
        if name != "validate":
            assert "data/validated.json" in paths(stage), name


class TestTrainingLock:
    def test_holds_what_trained_numbers_depend_on(self):
        assert set(pins(ROOT / TRAINING_LOCK)) == NUMERICS

    def test_agrees_with_the_lock_file(self):
        whole = pins(ROOT / "requirements.lock")
        assert pins(ROOT / TRAINING_LOCK) == {name: whole[name] for name in NUMERICS}

    def test_is_listed_by_every_stage_that_runs_the_model(self):
        users = {name for name, stage in COLLECTED.items() if TRAINING_LOCK in paths(stage)}
        assert users == {stage for stage in STAGES if stage.startswith(TRAINED)}


def pins(path: Path) -> dict[str, str]:
    """Package -> version of a lock file; a local suffix such as `+cpu` is left out."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;+\\]+)", path.read_text(), re.MULTILINE)
    return {name.lower(): version for name, version in lines}


class TestTheWalker:
    """The walker itself, on a made-up project."""

    @pytest.fixture
    def project(self, tmp_path):
        def write(name: str, text: str = "") -> None:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        write("src/projected_grpo/__init__.py")
        write("src/projected_grpo/a/__init__.py", "from .deep import x\n")
        write("src/projected_grpo/a/deep.py", "import os\nfrom ..b import thing\n")
        write("src/projected_grpo/b.py", "def f():\n    import projected_grpo.lazy\n")
        write("src/projected_grpo/lazy.py")
        write("src/projected_grpo/typed.py")
        write("src/projected_grpo/other.py")
        write("src/projected_grpo/a/unused.py")
        return tmp_path, write

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("import torch\n", set()),
            ("import projected_grpo.other\n", {"__init__", "other"}),
            ("from projected_grpo import other\n", {"__init__", "other"}),
            ("from projected_grpo.b import f\n", {"__init__", "b", "lazy"}),
            ("from projected_grpo.a import x\n", {"__init__", "a/__init__", "a/deep", "b", "lazy"}),
            (
                "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import projected_grpo.typed\n"
                "else:\n    import projected_grpo.other\n",
                {"__init__", "other"},
            ),
        ],
    )
    def test_follows(self, project, text, expected):
        root, write = project
        write("stages/s.py", text)
        files = {f"src/projected_grpo/{name}.py" for name in expected}
        assert imported_files(root / "stages/s.py", root) == files | {"stages/s.py"}
