"""A scratch copy of the pipeline in which every stage is up to date."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scratch_lab import ROOT, change_params, copy_pipeline, record_as_done

from projected_grpo.settings.hypotheses import read_hypotheses

KEPT = (
    "src",
    "data",
    "metrics",
    "plots",
    "dvc.yaml",
    "dvc.lock",
    "params.yaml",
    "hypotheses.yaml",
    "requirements-training.lock",
)


@pytest.fixture(scope="session")
def done_lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy_pipeline(tmp_path_factory.mktemp("lab") / "lab")
    change_params(root, main_pipeline_only)
    record_as_done(root)
    return root


def main_pipeline_only(params: dict[str, Any]) -> None:
    """Without what the main pipeline does not read: DVC reads the file anew for every stage."""
    roles = params["comparison"]
    arms = {roles["treatment"], roles["reference"], roles["honest"], *roles["controls"]}
    arms |= {arm for claim in read_hypotheses(ROOT / "hypotheses.yaml").claims.values() for arm in claim.arms}
    params["arms"] = {name: arm for name, arm in params["arms"].items() if name in arms}
    params["scales"] = {name: scale for name, scale in params["scales"].items() if name in ("micro", "smoke")}
    params["studies"] = {}


@pytest.fixture
def lab(done_lab: Path) -> Iterator[Path]:
    """The copy, put back to what it was after the test."""
    before = contents(done_lab)
    yield done_lab
    for path in contents(done_lab).keys() - before.keys():
        path.unlink()
    for path, content in before.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def contents(root: Path) -> dict[Path, bytes]:
    """Every file that a test or a stage may touch."""
    files = [path for name in KEPT for path in ((root / name).rglob("*") if (root / name).is_dir() else [root / name])]
    return {path: path.read_bytes() for path in files if path.is_file()}
