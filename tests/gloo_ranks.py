"""Ranks of gloo on this machine, for the tests of what is spread over processes."""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from unittest.mock import patch

import torch

from projected_grpo.parallel import single_threaded_context

PATIENCE_S = 300.0


def join(index: int, count: int, port: int, **more: str) -> None:
    """The environment in which `accelerate launch` starts a rank, on the loopback interface."""
    os.environ |= {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",  # by default the interface of the host's name, which need not reach itself
        **more,
    }  # fmt: skip
    torch.set_num_threads(1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def watched(body: Callable[..., None], *arguments: object) -> None:
    """`body`, or after PATIENCE_S where each of its threads waits, and a failure: ranks can wait for each other."""
    faulthandler.dump_traceback_later(PATIENCE_S, exit=True, file=sys.__stderr__)
    body(*arguments)


def in_ranks(body: Callable[..., None], *arguments: object, count: int = 2) -> None:
    """Run body(index, count, port, *arguments) in `count` processes; none may fail."""
    port = free_port()
    with patch.dict(os.environ):  # the context writes into it
        context = single_threaded_context("projected_grpo.training.run")
        ranks = [context.Process(target=watched, args=(body, index, count, port, *arguments)) for index in range(count)]
        try:
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join(2 * PATIENCE_S)
            assert [rank.exitcode for rank in ranks] == [0] * count
        finally:
            for rank in ranks:
                rank.kill()  # one that is left would keep the tests from ending
