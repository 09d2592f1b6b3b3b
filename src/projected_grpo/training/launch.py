"""The seeds of one arm one after another, each spread over processes that `accelerate launch` starts.

For a model that fills a device. Where it does not, whole seeds side by side (`training.seeds`) use a machine better.
This module is both ends: `launch_seeds` in the stage, and the body of each process, `python -m` this.
"""

from __future__ import annotations

import collections
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from projected_grpo.errors import LabError
from projected_grpo.training.seeds import RunFailed
from projected_grpo.training.spec import RunSpec

SHOWN = 200  # last lines of the launcher's output in which its report of a failure is looked for


def launch_seeds(specs: Sequence[RunSpec], config: Path, machine: int = 0) -> dict[int, Path]:
    """Train every spec; returns seed -> result folder as `training.seeds.train_seeds`, nothing on machines but 0.

    Args:
        config: of `accelerate launch`. machine: rank of this one, where the file names several; the same call must
            run on each of them.

    Raises:
        RunFailed: a rank ended without a result, and all others with it.
    """
    found = {spec.seed: _launch(spec, config, machine) for spec in specs}
    return {seed: result for seed, result in found.items() if result is not None}


def _launch(spec: RunSpec, config: Path, machine: int) -> Path | None:
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "spec"
        task.write_bytes(pickle.dumps(spec))
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        rank = ["--machine_rank", str(machine)] if machine else []
        body = ["-m", "projected_grpo.training.launch", str(task)]
        with subprocess.Popen([*accelerate, *rank, *body], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                tail = _passed_on(process.stderr)
            finally:
                process.terminate()  # it takes its processes with it; one that has ended does not mind
        if process.returncode:
            raise RunFailed(failure(tail, spec, process.returncode))
        result = task.with_suffix(".result")
        return Path(result.read_text()) if result.exists() else None


def _passed_on(lines: Iterable[str]) -> list[str]:
    """Show what the processes say as it comes; returns the end of it."""
    tail: collections.deque[str] = collections.deque(maxlen=SHOWN)
    for line in lines:
        sys.stderr.write(line)
        sys.stderr.flush()
        tail.append(line)
    return list(tail)


def failure(tail: Sequence[str], spec: RunSpec, code: int) -> str:
    """Which rank ended first, by the report of the launcher, and how to go on."""
    report = "".join(tail).rpartition("Root Cause")[2]
    ended = re.search(r"rank\s*: (\d+).*?exitcode\s*: (-?\d+)", report, re.DOTALL)
    who = f"rank {ended[1]}" if ended else "the launcher"
    number = int(ended[2]) if ended else code
    how = f"was killed by {signal.Signals(-number).name}" if number < 0 else f"ended with exit code {number}"
    return (
        f"seed {spec.seed} of {spec.arm}: {who} {how}; all its processes were stopped. What they said stands above.\n"
        "Start the same command again, with as many processes: the run goes on from its last checkpoint "
        f"(every {spec.grpo.save_every} steps)."
    )


def main() -> int:
    """One rank. Its result's place is written by rank 0."""
    from projected_grpo.grading.sandbox import confine

    confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)  # or a killed launcher would leave it running
    import torch

    from projected_grpo.training.display import Display
    from projected_grpo.training.ranks import take_over_sharding
    from projected_grpo.training.run import train_run

    take_over_sharding()
    task, rank = Path(sys.argv[1]), int(os.environ.get("RANK", "0"))
    spec: RunSpec = pickle.loads(task.read_bytes())
    try:
        with Display([spec]) as display:  # rank 0 alone has something to show
            result = train_run(spec, lambda step, figures: display.step(spec.seed, step, figures))
    except LabError as refusal:
        print(f"rank {rank}: {refusal}", file=sys.stderr)
        return 1
    if rank == 0:
        task.with_suffix(".result").write_text(str(result))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
