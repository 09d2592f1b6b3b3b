"""A wrong parameter stops `dvc repro` before any work and leaves a workspace full of results alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scratch_lab import change_params

KEPT = ("dvc.lock", "metrics", "plots", "data")


def dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # stages call `python`
    return subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": paths},
    )


def results(root: Path) -> dict[str, bytes]:
    paths = [path for name in KEPT for path in [root / name, *(root / name).rglob("*")]]
    shipped = root / "data/shipped"
    return {str(path): path.read_bytes() for path in paths if path.is_file() and not path.is_relative_to(shipped)}


def alien_direction(root: Path) -> None:
    header = json.dumps({"__metadata__": {"base_hash": "f" * 64}}).encode()
    (root / "data/shipped/alien.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    def use(params: dict) -> None:
        params["scales"]["micro"]["extract"]["direction_file"] = "data/shipped/alien.safetensors"
        params["scales"]["micro"]["direction"]["refresh_every"] = 0

    change_params(root, use)


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown key": (
        lambda root: change_params(root, lambda p: p["scales"]["micro"]["grpo"].update(stepz=3)),
        "scales.micro.grpo.stepz: 3\n    rule: no such setting\n    fix:  did you mean `steps`?",
    ),
    "bad range": (
        lambda root: change_params(root, lambda p: p["scales"]["micro"]["grpo"].update(samples=1)),
        "scales.micro.grpo.samples: 1\n    rule: must be at least 2",
    ),
    "unknown arm": (
        lambda root: change_params(root, lambda p: p.update(method="projekted")),
        "method: 'projekted'\n    rule: must name an arm",
    ),
    "unknown scale": (
        lambda root: change_params(root, lambda p: p.update(scale="mikro")),
        "scale: 'mikro'\n    rule: must name a block of `scales`\n    fix:  did you mean `micro`?",
    ),
    "missing file": (
        lambda root: (root / "data/shipped/pairs.yaml").unlink(),
        "scales.micro.extract.pairs: 'data/shipped/pairs.yaml'\n    rule: the file must exist",
    ),
    "changed weights": (
        lambda root: (root / "data/shipped/model/model.safetensors").write_bytes(b"other"),
        "rule: must be the sha256 of data/shipped/model/model.safetensors",
    ),
    "direction of another base": (alien_direction, f"it belongs to {'f' * 64}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_is_refused_before_any_work(lab, case):
    spoil, message = WRONG[case]
    before = results(lab)
    spoil(lab)
    done = dvc(lab, "repro")
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout.count("Running stage") == 1
    assert "Running stage 'validate'" in done.stdout
    assert results(lab) == before


def test_the_same_workspace_is_up_to_date_when_nothing_is_wrong(lab):
    done = dvc(lab, "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout
    assert "up to date" in done.stdout


def test_a_stage_imports_the_code_of_its_own_workspace(lab):
    """`dvc exp run --temp` runs in a clone; the installed package is another one."""
    command = "PYTHONPATH=src python -c 'import projected_grpo; print(projected_grpo.__file__)'"
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        shell=True,
        cwd=lab,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": paths},
    )
    assert Path(done.stdout.strip()) == lab / "src/projected_grpo/__init__.py"
