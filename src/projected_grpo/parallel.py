"""Processes of one thread, side by side: the shape in which small models use a machine's cores fully.

They come from a fork server that has imported the heavy libraries once, so that each costs milliseconds to start.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import ForkServerContext
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# PASSIVE: threads that wait do not spin, which costs a tiny model on shared cores a factor of ten.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}


def single_threaded_context(preload: str) -> ForkServerContext:
    """A fork-server context whose processes compute in one thread; `preload` is the module imported once for all."""
    os.environ.update(SINGLE_THREADED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    return context


def side_by_side(runs: int, cores: int) -> int:
    """Seeds that train at the same time. One more than cores fills what runs leave idle: waiting for the sandbox,
    unequal lengths."""
    return min(runs, cores + 1)


def map_processes(
    function: Callable[[Item], Result], items: Sequence[Item], preload: str, one_by_one: bool = False
) -> list[Result]:
    """`function` over `items` in as many processes as there are cores; results in order, the first error raised.

    one_by_one: a process of its own for each, one after another, for work that fills a device.
    """
    workers = 1 if one_by_one else min(len(items), os.cpu_count() or 1)
    context = single_threaded_context(preload)
    with ProcessPoolExecutor(workers, context, max_tasks_per_child=1 if one_by_one else None) as pool:
        return list(pool.map(function, items))
