"""Scratch copies of the pipeline: the real code and parameters, stand-ins for the shipped files."""

import json
import runpy
import shutil
import subprocess
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from projected_grpo.settings.loader import read_params
from projected_grpo.storage import sha256_file

ROOT = Path(__file__).resolve().parents[2]
Change = Callable[[dict[str, Any]], object]


def write_inputs(root: Path) -> None:
    """params.yaml of the repository with stand-ins for the files it names: valid, and small."""
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    weights = root / "data/shipped/model/model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (root / "data/shipped/pairs.yaml").write_text("[]\n")
    shutil.copy(ROOT / "hypotheses.yaml", root)
    for scale in params["scales"].values():
        scale["base"].update(path="data/shipped/model", sha256=sha256_file(weights), rebuild=False)
        scale["extract"].update(pairs="data/shipped/pairs.yaml", direction_file=None)
    for study in params["studies"].values():
        if "extract" in study:
            study["extract"]["pairs"] = "data/shipped/pairs.yaml"
        if "base" in study:
            study["base"].update(path="data/shipped/model", sha256=sha256_file(weights))
    params.update(scale="micro", method="vanilla")
    (root / "params.yaml").write_text(json.dumps(params))  # JSON is YAML 1.2


def change_params(root: Path, change: Change) -> None:
    """Apply `change` to the parameters of a scratch copy."""
    params = json.loads((root / "params.yaml").read_text())
    change(params)
    (root / "params.yaml").write_text(json.dumps(params))


def copy_pipeline(root: Path) -> Path:
    """A Git and DVC repository at `root` with the code and dvc.yaml of this one; nothing has run in it."""
    root.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "requirements-training.lock", "hypotheses.lock"):
        shutil.copy(ROOT / name, root / name)
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc" / name)
    write_inputs(root)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def run_validate(root: Path) -> None:
    """The `validate` stage's script, in this process."""
    with chdir(root):
        assert runpy.run_path("stages/validate.py", run_name="stage")["main"]() == 0


def record_as_done(root: Path) -> None:
    """Make up the outs of every stage and let DVC record them as up to date."""
    run_validate(root)
    with chdir(root), Repo(str(root)) as repo:
        stages = repo.index.stages
        for item in (item for stage in stages for item in (*stage.deps, *stage.outs)):
            _make_up(Path(item.fs_path))
        repo.commit(force=True)


def _make_up(path: Path) -> None:
    """An artifact in the place of one that does not exist: a file by its suffix, else a folder."""
    if not path.suffix and not path.exists():
        path /= "content"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
