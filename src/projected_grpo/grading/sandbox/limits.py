"""What one execution may use, and when the sandbox gives up."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class SandboxLimits:
    """Limits of each execution. CPU time is the limit that decides; wall time only catches what sleeps."""

    workers: int | None = None  # executions that run at the same time; None: as many as there are cores
    cpu_seconds: float = 2.0  # CPU time of one execution
    wall_seconds: float = 6.0  # elapsed time after which an execution that hardly uses the CPU is stopped
    memory_mb: int = 512  # address space of one execution, MiB
    output_kb: int = 64  # captured output, and size of all returned values together, KiB
    max_error_share: float = 0.02  # share of executions that may fail by our own fault before grading gives up
    allow_weak: bool = False  # go on where the host offers no namespaces and no file or system call filter

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.memory_mb < 1 or self.output_kb < 1:
            raise ValueError(f"workers, memory_mb and output_kb must be at least 1: {self}")
        if not 0 < self.cpu_seconds <= self.wall_seconds:
            raise ValueError(f"0 < cpu_seconds <= wall_seconds must hold: {self}")
        if not 0 <= self.max_error_share <= 1:
            raise ValueError(f"max_error_share is a share, from 0 to 1: {self}")
