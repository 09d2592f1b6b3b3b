"""The `validate` stage: the same output for all valid parameters, and nothing touched by a refusal."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from scratch_lab import ROOT, change_params, write_inputs

from projected_grpo.storage import sha256_tree


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Inputs alone, without code: enough for this stage."""
    write_inputs(tmp_path)
    return tmp_path


def run(workspace: Path) -> subprocess.CompletedProcess[str]:
    script = ROOT / "stages/validate.py"
    return subprocess.run([sys.executable, script], cwd=workspace, capture_output=True, text=True, check=False)


def outputs(workspace: Path) -> dict[str, str]:
    files = [workspace / "data/validated.json", *(workspace / "data/inputs").glob("*")]
    return {file.name: file.read_text() for file in files if file.exists()}


def test_output_is_the_same_for_all_valid_parameters(workspace):
    assert run(workspace).returncode == 0
    first = outputs(workspace)
    assert json.loads(first["validated.json"]) == {"valid": True}
    assert json.loads(first["direction.json"]) == {"sha256": None}
    assert json.loads(first["pairs.json"]) == {"sha256": sha256_tree(workspace / "data/shipped/pairs.yaml")}
    assert json.loads(first["base.json"]) == {"sha256": sha256_tree(workspace / "data/shipped/model")}
    change_params(workspace, lambda params: params.update(method="projected", scale="smoke"))
    assert run(workspace).returncode == 0
    assert outputs(workspace) == first


def test_other_pairs_change_their_hash_alone(workspace):
    run(workspace)
    first = outputs(workspace)
    (workspace / "data/shipped/pairs.yaml").write_text("[{}]\n")
    run(workspace)
    changed = {name for name, text in outputs(workspace).items() if text != first[name]}
    assert changed == {"pairs.json"}


def test_another_tokenizer_changes_the_hash_of_the_base(workspace):
    run(workspace)
    first = outputs(workspace)
    (workspace / "data/shipped/model/tokenizer.json").write_text("{}")
    run(workspace)
    changed = {name for name, text in outputs(workspace).items() if text != first[name]}
    assert changed == {"base.json"}


def test_a_refusal_says_why_and_touches_nothing(workspace):
    run(workspace)
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    shutil.copy(workspace / "params.yaml", workspace / "params.good")
    change_params(workspace, lambda params: params.update(method="nobody", scal="micro"))
    done = run(workspace)
    assert done.returncode == 1
    assert "2 settings refused; nothing was run" in done.stderr
    assert "method: 'nobody'\n    rule: must name an arm" in done.stderr
    assert "did you mean `scale`?" in done.stderr
    assert "Traceback" not in done.stderr
    after = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    own = {workspace / "params.yaml", workspace / "params.good", workspace}
    assert {path for path in after if after[path] != before.get(path)} <= own


def test_it_loads_nothing_of_the_training_stack(workspace):
    """The files of all families come with torch, which their options do not need; what takes long stays out."""
    script = ROOT / "stages/validate.py"
    code = f"import runpy, sys; runpy.run_path({str(script)!r}, run_name='stage')['main'](); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=workspace, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "projected_grpo.interventions.erase" in loaded
    assert not {"transformers", "trl", "peft", "pandas", "pyarrow", "datasets"} & loaded
    assert not [name for name in loaded if name.startswith("projected_grpo.training")]


@pytest.mark.parametrize(
    ("arm", "setting"),
    [
        ({"intervention": "erase", "direction": "hack", "axes": {"kk": 3}}, "arms.other.axes.kk: 3"),
        ({"intervention": "erase"}, "arms.other.direction: null"),
        ({"intervention": "measure", "options": {"strength": 1}}, "arms.other.options.strength: 1"),
    ],
    ids=["axes", "direction", "options"],
)
def test_the_settings_of_a_family_are_checked_before_any_work(workspace, arm, setting):
    change_params(workspace, lambda params: params["arms"].update(other=arm))
    done = run(workspace)
    assert done.returncode == 1
    assert "1 setting refused; nothing was run" in done.stderr
    assert setting in done.stderr
    assert not outputs(workspace)
