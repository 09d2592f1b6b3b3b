"""All seeds of one arm, side by side in processes of one thread, with one live line each.

Two threads in one process cost a tiny model several times the CPU; two processes of one thread use two cores fully.
The processes come from a fork server that has imported the training stack once.
"""

from __future__ import annotations

import os
import queue
import time
import traceback
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from projected_grpo.errors import LabError
from projected_grpo.parallel import side_by_side, single_threaded_context
from projected_grpo.storage import SCRATCH_VARIABLE, scratch_root
from projected_grpo.training.display import Display
from projected_grpo.training.spec import RunSpec

PRELOAD = "projected_grpo.training.run"


class RunFailed(RuntimeError):
    """A seed's process stopped without a result; the message holds the refusal, the traceback or the exit code."""


def train_seeds(specs: Sequence[RunSpec]) -> dict[int, Path]:
    """Train every spec; returns seed -> result folder (see `training.run.train_run`).

    Raises:
        RunFailed: a run failed; the others are stopped, and continue from their checkpoints next time.
    """
    context = single_threaded_context(PRELOAD)
    events: Queue[Any] = context.Queue()
    waiting = list(specs)
    running: dict[int, ForkServerProcess] = {}
    results: dict[int, Path] = {}
    cores = len(os.sched_getaffinity(0))
    width = side_by_side(len(specs), cores)
    with Display(specs) as display:
        try:
            while waiting or running:
                while waiting and len(running) < width:
                    spec = waiting.pop(0)
                    process = context.Process(target=_work, args=(spec, events, str(scratch_root())), daemon=False)
                    process.start()
                    running[spec.seed] = process
                _drain(events, display, results)
                for seed, process in list(running.items()):
                    if not process.is_alive():
                        process.join()
                        _drain(events, display, results)
                        del running[seed]
                        if seed not in results:
                            raise RunFailed(f"seed {seed} ended with exit code {process.exitcode} and no result")
        finally:
            for process in running.values():
                process.terminate()
                process.join()
    return results


def _work(spec: RunSpec, events: Queue[Any], scratch: str) -> None:
    """Body of one seed's process. `scratch` is handed over: a fork server keeps the environment it was started in."""
    os.environ[SCRATCH_VARIABLE] = scratch
    import torch

    from projected_grpo.training.run import train_run

    torch.set_num_threads(1)
    try:
        result = train_run(spec, lambda step, figures: events.put(("step", spec.seed, step, figures)))
        events.put(("done", spec.seed, str(result), None))
    except LabError as refusal:
        events.put(("failed", spec.seed, str(refusal), None))
    except BaseException:
        events.put(("failed", spec.seed, traceback.format_exc(), None))
        raise
    finally:
        events.close()
        events.join_thread()


def _drain(events: Queue[Any], display: Display, results: dict[int, Path]) -> None:
    """Hand over all messages that have come within a short wait."""
    deadline = time.monotonic() + 0.3
    while (left := deadline - time.monotonic()) > 0:
        try:
            kind, seed, first, figures = events.get(timeout=left)
        except queue.Empty:
            return
        if kind == "step":
            display.step(seed, first, figures)
        elif kind == "done":
            results[seed] = Path(first)
            display.finish(seed)
        else:
            raise RunFailed(f"seed {seed} failed:\n{first}")
