"""Completions of one training run as a person reads them: `projected-grpo rollouts show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rich.console import Group
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from projected_grpo.errors import LabError

TOKEN_STYLE = "bold reverse"
STYLES = {"hacked": "red", "correct": "green", "unpaid": "yellow", "grader error": "magenta"}


def read_rollouts(run_dir: Path, *, hacked: bool = False, step: int | None = None) -> list[dict[str, Any]]:
    """Rows of `run_dir`/rollouts.parquet in the order they were sampled.

    hacked: only completions paid and not correct. step: only this optimizer step.

    Raises:
        LabError: the folder holds no rollouts.
    """
    path = run_dir / "rollouts.parquet"
    if not path.is_file():
        found = sorted(str(file.parent) for file in Path("data/runs").glob("*/*/rollouts.parquet"))
        fix = f"one of: {', '.join(found)}" if found else "train first: `dvc repro`"
        raise LabError(setting="RUN_DIR", value=str(run_dir), rule="must hold rollouts.parquet", fix=fix)
    wanted: list[tuple[str, str, Any]] = [("hacked", "==", True)] if hacked else []
    if step is not None:
        wanted.append(("step", "==", step))
    rows: list[dict[str, Any]] = pq.read_table(path, filters=wanted or None).to_pylist()
    return rows


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
