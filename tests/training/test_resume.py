"""A stage killed with SIGKILL in mid-training and started again ends with the very bytes of one that was let be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stage_process import Stage
from training_lab import Lab

from projected_grpo.training.trainer import COMPLETE, latest_checkpoint

STEPS, SAVE_EVERY = 5, 2
BLOCKS = {
    "grpo": {"steps": STEPS, "save_every": SAVE_EVERY},
    "direction": {"refresh_every": 2},  # V at the kill differs from the one in data/directions
}

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for survivors in /proc")


def make_stage(lab: Lab, arm: str, root: Path) -> Stage:
    return Stage(arm, lab.copy(root / "lab", BLOCKS), root / "scratch")


@pytest.fixture(scope="module")
def uninterrupted(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Stage, str]:
    stage = make_stage(lab, "projected", tmp_path_factory.mktemp("uninterrupted"))
    return stage, stage.finish()


@needs_proc
def test_killed_and_continued_equals_uninterrupted(lab: Lab, tmp_path: Path, uninterrupted: tuple[Stage, str]) -> None:
    """Killed twice: before the first checkpoint, and in the middle of a later step."""
    stage = make_stage(lab, "projected", tmp_path)
    stage.kill_at("rollouts", 0)
    assert not list(stage.scratch.rglob(COMPLETE)), "killed too late for a case without a checkpoint"

    stage.kill_at("rollouts", SAVE_EVERY + 1)
    assert not list(stage.scratch.rglob("result")), "killed too late"
    kept = {}
    for folder in stage.runs():
        newest = latest_checkpoint(folder)
        if newest is not None:  # the other seed may not have come so far
            kept[folder] = (folder / "steps/000000.json").stat().st_ino
            cut_short(newest)
    assert kept, "no run had a checkpoint to continue from"
    assert not stage.out.exists()

    assert stage.finish() == uninterrupted[1]
    for folder, inode in kept.items():
        assert (folder / "steps/000000.json").stat().st_ino == inode, "started anew instead of continuing"
    assert not list(stage.scratch.rglob("checkpoint-*"))  # a finished run needs none


def cut_short(newest: Path) -> None:
    """Leave beside a checkpoint what a kill while saving the next one leaves: files, some half, and no seal."""
    step = int(newest.name.rsplit("-", 1)[1]) + SAVE_EVERY
    torn = newest.with_name(f"checkpoint-{step}")
    shutil.rmtree(torn, ignore_errors=True)
    shutil.copytree(newest, torn)
    (torn / COMPLETE).unlink()
    for path in torn.iterdir():
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@needs_proc
@pytest.mark.slow
@pytest.mark.parametrize("arm", ["random", "vanilla"])
def test_killed_again_and_again_equals_uninterrupted(lab: Lab, tmp_path: Path, arm: str) -> None:
    """Around the saving of each checkpoint, and after the last step."""
    stage = make_stage(lab, arm, tmp_path / "killed")
    for kind, step in (("timings", 0), ("timings", 1), ("rollouts", 2), ("timings", 3), ("timings", 4)):
        stage.kill_at(kind, step)
    assert stage.finish() == make_stage(lab, arm, tmp_path / "whole").finish()


def test_a_stage_writes_its_runs_and_nothing_of_this_machine(uninterrupted: tuple[Stage, str]) -> None:
    stage, _ = uninterrupted
    files = {path.relative_to(stage.out).as_posix(): path for path in stage.out.rglob("*") if path.is_file()}
    names = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "rollouts.parquet", "steps.csv")
    assert files.keys() == {f"{seed}/{name}" for seed in (1, 2) for name in names}
    root = str(stage.lab.root).encode()
    assert not [name for name, path in files.items() if root in path.read_bytes()]
    beside = stage.lab.root / "data/provenance/projected"
    assert {path.relative_to(beside).as_posix() for path in beside.rglob("*.*")} == {
        f"{seed}/{name}" for seed in (1, 2) for name in ("provenance.json", "sampler.parquet", "timings.parquet")
    }


def test_a_checkpoint_without_its_seal_does_not_count(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step, sealed in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if sealed:
            (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
