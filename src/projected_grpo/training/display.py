"""What a person sees while an arm trains: one live line per seed on a terminal, and a table that grows.

Every `EVERY` steps each seed adds a row to the table (on a terminal above the live lines); `projected-grpo columns`
explains its columns.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from projected_grpo.training.spec import RunSpec

EVERY = 10  # steps between rows of the table
TIME = "seconds_"  # prefix of a phase's seconds among the figures of a step
# Column of the table -> figure; shares have two digits, so that a row fits 100 characters.
COLUMNS = {
    "paid": "paid", "hack": "hacked", "pass": "correct", "attempt": "attempted", "format": "format_ok",
    "align": "alignment_signed", "removed": "share_removed", "leak": "leak", "s/step": f"{TIME}step_total",
}  # fmt: skip
# What the live line says of a step's seconds; other phases are under a percent.
PHASES = {"sample": ("generate",), "grade": ("grade",), "train": ("forward_backward", "projection", "optimizer"),
          "refresh": ("refresh",)}  # fmt: skip


class Display:
    """Steps of several seeds as they come in; use as a context manager."""

    def __init__(self, specs: Sequence[RunSpec], console: Console | None = None) -> None:
        self.specs = {spec.seed: spec for spec in specs}
        self.console = console or Console(file=sys.stderr)
        bar = [BarColumn(bar_width=20)] if self.console.width >= 140 else []
        self.progress = Progress(
            TextColumn("{task.description}"), *bar, MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True), console=self.console, disable=not self.console.is_terminal,
        )  # fmt: skip
        self.tasks: dict[int, TaskID] = {}
        self.headed = False

    def __enter__(self) -> Display:
        self.progress.start()
        for seed, spec in self.specs.items():
            self.tasks[seed] = self.progress.add_task(f"{spec.arm} seed {seed}", total=spec.grpo.steps, figures="")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def step(self, seed: int, step: int, figures: Mapping[str, float]) -> None:
        """One finished step with its figures and, under `TIME`, its seconds by phase."""
        spec = self.specs[seed]
        self.progress.update(self.tasks[seed], completed=step + 1, figures=live_line(figures))
        if (step + 1) % EVERY and step + 1 != spec.grpo.steps:
            return
        place = f"{spec.arm} seed {seed} step {step + 1}/{spec.grpo.steps}"
        if not self.headed:
            self._print(f"{'(projected-grpo columns explains them)':{len(place)}} {_cells(COLUMNS)}")
            self.headed = True
        self._print(f"{place}: {_cells([_shown(name, figures.get(name)) for name in COLUMNS.values()])[1:]}")

    def finish(self, seed: int) -> None:
        self.progress.update(self.tasks[seed], completed=self.specs[seed].grpo.steps)

    def _print(self, line: str) -> None:
        self.progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


def live_line(figures: Mapping[str, float]) -> str:
    """paid, hack, pass, alignment, and where the step's seconds went."""
    rates = f"paid {figures['paid']:.2f} hack {figures['hacked']:.2f} pass {figures['correct']:.2f}"
    total = figures.get(f"{TIME}step_total")
    if total is None:
        return f"{rates} align {figures['alignment_signed']:+.2f}"
    spent = {name: sum(figures.get(TIME + phase) or 0.0 for phase in phases) for name, phases in PHASES.items()}
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items() if seconds >= 0.05)
    return f"{rates} align {figures['alignment_signed']:+.2f} | {total:.1f} s: {parts}"


def _cells(values: Sequence[str] | Mapping[str, str]) -> str:
    return "".join(f"{value:>8}" for value in values)


def _shown(name: str, value: float | None) -> str:
    if value is None or value != value:  # a step without any gradient has no alignment
        return "-"
    return f"{value:+.2f}" if name == "alignment_signed" else f"{value:.2f}"
