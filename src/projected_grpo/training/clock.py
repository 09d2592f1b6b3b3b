"""Seconds by phase of one training step."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Adds up wall seconds under names; `take` empties it."""

    def __init__(self) -> None:
        self._total: defaultdict[str, float] = defaultdict(float)
        self._running: dict[str, float] = {}

    def start(self, name: str) -> None:
        self._running[name] = time.perf_counter()

    def stop(self, name: str) -> None:
        self._total[name] += time.perf_counter() - self._running.pop(name)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block under `name`."""
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def add(self, name: str, seconds: float) -> None:
        self._total[name] += seconds

    def take(self) -> dict[str, float]:
        """Totals since the last call."""
        total, self._total = dict(self._total), defaultdict(float)
        return total
