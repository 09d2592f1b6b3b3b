"""A stage killed with SIGKILL in mid-training and started again ends with the very bytes of one that was let be."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from training_lab import Lab, environment

from projected_grpo.storage import sha256_tree
from projected_grpo.training.trainer import COMPLETE, latest_checkpoint

STEPS, SAVE_EVERY = 5, 2
BLOCKS = {
    "grpo": {"steps": STEPS, "save_every": SAVE_EVERY},
    "direction": {"refresh_every": 2},  # V at the kill differs from the one in data/directions
}
PATIENCE = 900.0  # seconds, on a crowded machine

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for survivors in /proc")


@dataclasses.dataclass(frozen=True)
class Stage:
    """`stages/grpo.py --arm ...` in a tree and with a scratch store of its own."""

    arm: str
    lab: Lab
    scratch: Path

    @property
    def out(self) -> Path:
        return self.lab.root / "data/runs" / self.arm

    def start(self) -> subprocess.Popen[bytes]:
        """The stage in a process group of its own, its output in output.log."""
        with open(self.lab.root / "output.log", "ab") as log:
            return subprocess.Popen(
                self.lab.command(self.arm), cwd=self.lab.root, env=environment(self.scratch),
                stdout=log, stderr=log, process_group=0,
            )  # fmt: skip

    def output(self) -> str:
        return (self.lab.root / "output.log").read_text()[-3000:]

    def finish(self) -> str:
        """Run the stage to its end; returns the hash of what it wrote."""
        process = self.start()
        try:
            code = process.wait(PATIENCE)
        finally:
            kill_group(process)
        assert code == 0, self.output()
        return sha256_tree(self.out)

    def kill_at(self, kind: str, step: int) -> None:
        """Start the stage and kill its group once the fastest seed has written this part; nothing may survive."""
        process = self.start()
        try:
            deadline = time.monotonic() + PATIENCE
            while not any(self.scratch.glob(f"runs/*/{kind}/{step:06d}.*")):
                assert process.poll() is None, self.output()
                assert time.monotonic() < deadline, f"no {kind} of step {step}"
                time.sleep(0.002)
            family = descendants(process.pid)
        finally:
            kill_group(process)
        deadline = time.monotonic() + 60
        while alive := [pid for pid in family if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, f"processes {alive} outlive the stage"
            time.sleep(0.05)

    def runs(self) -> list[Path]:
        """Scratch folders of the seeds that have begun."""
        return [path for path in (self.scratch / "runs").glob("*") if path.is_dir()]


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def descendants(root: int) -> set[int]:
    """Process ids below `root`: fork server, training processes, sandboxes (which have sessions of their own)."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may be gone
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found: set[int] = set()
    waiting = [root]
    while waiting:
        above = waiting.pop()
        below = [pid for pid, parent in parents.items() if parent == above]
        found.update(below)
        waiting += below
    return found


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
        f"{seed}/{name}" for seed in (1, 2) for name in ("provenance.json", "timings.parquet")
    }


def test_a_checkpoint_without_its_seal_does_not_count(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step, sealed in ((2, True), (10, True), (12, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if sealed:
            (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
