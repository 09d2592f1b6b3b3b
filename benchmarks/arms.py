"""What each arm costs beyond the first, vanilla: ten training steps with one refresh, after one that is not counted.

Every arm trains in a process of its own, of one thread, on the data of the default pipeline (`make repro` first), with
the scale's own recipe. CPU seconds are those of the training process: grading runs in other processes and is the same
for every arm, and seconds by the clock hang on what else the machine does. Controls cost what their arms do. The first
arm is measured once more at the end: the difference of the two is the noise. All arms: 25 min of one core.

`--out FILE` keeps the figures as JSON: arm -> {"seconds": CPU seconds of a step, "memory": peak memory}, both in shares
of the first arm's, and "again", the first arm's second measurement. `--out benchmarks/arms.json` is what the table of
all studies shows (`dvc repro --single-item study/dvc.yaml:overview`; without the flag it trains what any study lacks).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import runpy
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from projected_grpo.parallel import single_threaded_context
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.loader import Params, parse, read_params
from projected_grpo.settings.studies import paths_of
from projected_grpo.storage import SCRATCH_VARIABLE, write_json
from projected_grpo.training.spec import RunSpec

ARMS = (
    "vanilla", "rl_baseline", "projected", "projected_static", "projected_both", "projected_update", "guarded",
    "routed", "routed_span", "rollout_routed", "rollout_routed_share", "absorbed", "trusted", "advantage",
    "advantage_additive", "gradient_advantage", "gradient_advantage_discriminant", "suppressed", "penalty_truth",
    "penalty_probe", "penalty_flags", "screening_probe", "screening_flags", "inoculated",
)  # fmt: skip
STEPS = 10


def run_spec(params: Params, arm: str) -> RunSpec:
    """The arm as its stage trains it, cut short."""
    build = runpy.run_path("stages/grpo.py")["spec"]
    spec: RunSpec = build(params, arm, parse(params, f"arms.{arm}", ArmSettings), 1, paths_of(params, None))
    grpo = spec.grpo.model_copy(update={"steps": 1 + STEPS, "save_every": STEPS})
    return dataclasses.replace(spec, grpo=grpo)


def train(arm: str, results: Connection) -> None:
    """Body of one process: CPU seconds of a step, and peak memory in MB."""
    import torch

    from projected_grpo.training.run import train_run

    torch.set_num_threads(1)
    clock: dict[int, float] = {}

    def on_step(step: int, figures: dict[str, float]) -> None:
        del figures
        clock[step] = time.process_time()

    with tempfile.TemporaryDirectory() as scratch:
        os.environ[SCRATCH_VARIABLE] = scratch
        train_run(run_spec(read_params(), arm), on_step)
    steps = sorted(clock)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results.send(((clock[steps[-1]] - clock[steps[0]]) / (len(steps) - 1), memory))


def measure(arm: str) -> tuple[float, float]:
    """`train` in a process that has trained nothing before."""
    context: Any = single_threaded_context("projected_grpo.training.run")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=train, args=(arm, sender))
    process.start()
    sender.close()
    try:
        found: tuple[float, float] = receiver.recv()
    except EOFError:
        raise SystemExit(f"{arm} ended without a result: see above, and run `make repro` first") from None
    process.join()
    return found


def main(arms: Sequence[str], out: Path | None) -> None:
    print(f"{'arm':34} {'CPU s a step':>12} {'/ first':>9} {'peak MB':>8} {'/ first':>9}")
    first: tuple[float, float] | None = None
    found: dict[str, dict[str, float]] = {}
    for place, arm in enumerate([*arms, arms[0]]):
        seconds, memory = measure(arm)
        first = first or (seconds, memory)
        name = "again" if place == len(arms) else arm
        ratio = {"seconds": round(seconds / first[0], 2), "memory": round(memory / first[1], 2)}
        found[name] = ratio
        print(f"{name:34} {seconds:12.3f} {ratio['seconds']:9.2f} {memory:8.0f} {ratio['memory']:9.2f}", flush=True)
    if out is not None:
        write_json(out, found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", default=ARMS, help="the first is what the others are set against")
    parser.add_argument("--out", type=Path, help="a file to keep the figures in, see above")
    given = parser.parse_args()
    if given.out is not None and given.arms != ARMS:
        parser.error("--out keeps the figures of all arms: name none")
    main(given.arms, given.out)
