"""`stages/grpo.py` in a process of its own, to be killed at a chosen moment."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path

from training_lab import Lab, environment

from projected_grpo.storage import sha256_tree

PATIENCE = 900.0  # seconds, on a crowded machine


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
            self.await_part(process, kind, step)
            family = descendants(process.pid)
        finally:
            kill_group(process)
        assert_gone(family)

    def await_part(self, process: subprocess.Popen[bytes], kind: str, step: int) -> None:
        """Until the fastest seed has written this part."""
        deadline = time.monotonic() + PATIENCE
        while not any(self.scratch.glob(f"runs/*/{kind}/{step:06d}.*")):
            assert process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"no {kind} of step {step}"
            time.sleep(0.002)

    def runs(self) -> list[Path]:
        """Scratch folders of the seeds that have begun."""
        return [path for path in (self.scratch / "runs").glob("*") if path.is_dir()]


def kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def assert_gone(family: set[int]) -> None:
    """These processes end within a minute."""
    deadline = time.monotonic() + 60
    while alive := [pid for pid in family if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, f"processes {alive} outlive the stage"
        time.sleep(0.05)


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
