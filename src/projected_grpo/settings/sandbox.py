"""`scales.<scale>.sandbox`: limits within which answers run."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from projected_grpo.settings.section import Count, Positive, Rate, Section, broken_rule


class SandboxSettings(Section):
    """Limits hold for each execution of an answer."""

    workers: Count | None
    """answers that run at the same time, per training or grading process; null: as many as there are cores"""

    cpu_seconds: Positive
    """CPU time of one execution, seconds"""

    wall_seconds: Positive
    """elapsed time of one execution, seconds; not under `cpu_seconds`"""

    memory_mb: Count
    """address space of one execution, MiB"""

    output_kb: Count
    """captured output of one execution, KiB; the rest is cut"""

    max_error_share: Rate
    """share of executions that may fail by the sandbox's own fault before the stage gives up"""

    allow_weak: bool
    """run even where the host offers less isolation than asked for"""

    @model_validator(mode="after")
    def _wall_covers_cpu(self) -> Self:
        if self.wall_seconds < self.cpu_seconds:
            raise broken_rule(
                "wall_seconds",
                self.wall_seconds,
                f"must not be under cpu_seconds ({self.cpu_seconds})",
                "raise wall_seconds or lower cpu_seconds",
            )
        return self
