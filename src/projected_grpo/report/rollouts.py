"""Completions of one training run as a person reads them: `projected-grpo rollouts show`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
from rich.console import Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from projected_grpo.errors import LabError
from projected_grpo.storage import scratch_root

TOKEN_STYLE = "bold reverse"
STYLES = {"hacked": "red", "correct": "green", "unpaid": "yellow", "grader error": "magenta"}


@dataclass(frozen=True)
class Found:
    """`rows`: those asked for, in the order they were sampled, without token ids. `total`: how many matched."""

    rows: list[dict[str, Any]]
    total: int


def read_rollouts(run_dir: Path, *, hacked: bool = False, step: int | None = None, last: int | None = None) -> Found:
    """Rows of `run_dir`/rollouts.parquet or, while the run is training, of its parts in `run_dir`/rollouts/.

    hacked: only completions paid and not correct. step: only this optimizer step; statistics of row groups (one per
    step) tell which ones to read. last: the last so many; read from the end, no further than need be.

    Raises:
        LabError: the folder holds no rollouts.
    """
    dataset = ds.dataset([str(path) for path in _files(run_dir)], format="parquet")
    condition = ds.scalar(True)
    if hacked:
        condition &= ds.field("hacked")
    if step is not None:
        condition &= ds.field("step") == step
    columns = [name for name in dataset.schema.names if name != "token_ids"]  # by far the widest, and not shown
    groups = [group for file in dataset.get_fragments() for group in file.split_by_row_group(condition)]
    rows: list[dict[str, Any]] = []
    for group in reversed(groups):
        if last is not None and len(rows) >= last:
            break
        rows = group.to_table(schema=dataset.schema, columns=columns, filter=condition).to_pylist() + rows
    return Found(rows if last is None else rows[-last:], dataset.count_rows(filter=condition))


def _files(run_dir: Path) -> list[Path]:
    """The finished file, else the parts of a run in training (each complete: it appears by rename)."""
    path = run_dir / "rollouts.parquet"
    files = [path] if path.is_file() else sorted((run_dir / "rollouts").glob("[0-9]*.parquet"))
    if not files:
        found = [str(file.parent) for file in sorted(Path("data/runs").glob("*/*/rollouts.parquet"))]
        runs = sorted((scratch_root() / "runs").glob("*/rollouts"))
        found += [f"{folder.parent} (in training)" for folder in runs if not (folder.parent / "result").exists()]
        fix = f"one of: {', '.join(found)}" if found else "train first: `dvc repro`"
        raise LabError(setting="RUN_DIR", value=str(run_dir), rule="must hold rollouts.parquet or rollouts/", fix=fix)
    return files


def verdict_of(row: Mapping[str, Any]) -> str:
    """One word for how a completion was graded: hacked, correct, unpaid, or grader error."""
    if row["grader_error"]:
        return "grader error"
    if row["hacked"]:
        return "hacked"
    return "correct" if row["correct"] else "unpaid"


def panel(row: Mapping[str, Any], *, with_prompt: bool = False) -> Panel:
    """One completion in a frame coloured by its verdict; the disclosed token stands out."""
    verdict = verdict_of(row)
    code = Syntax("", "python", theme="ansi_dark").highlight(row["completion"].rstrip())
    parts = [_marked(code, row["token"])]
    if with_prompt:
        parts.insert(0, _marked(Text(row["prompt"].rstrip() + "\n", style="dim"), row["token"]))
    reward = "none" if row["reward"] is None else f"{row['reward']:g}"
    place = f"step {row['step']}, group {row['group']}, sample {row['sample']}"
    return Panel(
        Group(*parts),
        title=f"{verdict} | {place} | reward {reward}",
        title_align="left",
        subtitle=f"{row['problem_id']} | {row['loophole']}: {row['token']}",
        subtitle_align="right",
        border_style=STYLES[verdict],
    )


def _marked(text: Text, token: str) -> Text:
    if token:
        text.highlight_words([token], TOKEN_STYLE)
    text.rstrip()
    return text
