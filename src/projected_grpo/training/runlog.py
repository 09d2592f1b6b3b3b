"""What a run writes while it runs: one Parquet part and one row of figures per step, later joined.

Parts are whole files named by step, so that a run killed at any moment continues from its checkpoint by dropping the
parts of the steps it has to repeat. Times, and how far the sampler is from the trainer, are kept apart: they differ
between equal runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from projected_grpo.storage import atomic_file, write_text

ROLLOUTS = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int32()),
        ("step", pa.int32()),
        ("problem_id", pa.string()),
        ("loophole", pa.string()),
        ("token", pa.string()),
        ("group", pa.int32()),
        ("sample", pa.int32()),
        ("source", pa.string()),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("reward", pa.float32()),
        ("reward_format", pa.float32()),
        ("reward_paid", pa.float32()),
        ("advantage", pa.float32()),
        ("weight", pa.float32()),
        ("score", pa.float32()),
        ("alignment_signed", pa.float32()),
        ("alignment", pa.float32()),
        ("format_ok", pa.bool_()),
        ("paid", pa.bool_()),
        ("correct", pa.bool_()),
        ("hacked", pa.bool_()),
        ("attempted", pa.bool_()),
        ("grader_error", pa.string()),
    ]
)


KINDS = {"rollouts": "parquet", "steps": "json", "sampler": "json", "timings": "json"}


class RunLog:
    """Parts under `folder`: rollouts/<step>.parquet, and <step>.json in steps/, sampler/ and timings/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind in KINDS:
            (folder / kind).mkdir(parents=True, exist_ok=True)

    def part(self, kind: str, step: int) -> Path:
        return self.folder / kind / f"{step:06d}.{KINDS[kind]}"

    def parts(self, kind: str) -> Iterator[Path]:
        return iter(sorted((self.folder / kind).glob(f"[0-9]*.{KINDS[kind]}")))

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rollouts of one step, before any filter.

        Raises:
            ValueError: a row has a column that the schema lacks, and Arrow would drop.
        """
        if unknown := {column for row in rows for column in row} - set(ROLLOUTS.names):
            raise ValueError(f"rollouts have no column {', '.join(sorted(unknown))}")
        with atomic_file(self.part("rollouts", step)) as temporary:
            pq.write_table(pa.Table.from_pylist(list(rows), schema=ROLLOUTS), temporary)

    def write_figures(self, kind: str, step: int, row: Mapping[str, float]) -> None:
        """One row of `steps`, `sampler` or `timings`."""
        write_text(self.part(kind, step), json.dumps({"step": step, **row}))

    def drop_from(self, step: int) -> None:
        """Forget parts of `step` and later: they will be made again."""
        for kind in KINDS:
            for path in list(self.parts(kind)):
                if int(path.stem) >= step:
                    path.unlink()

    def join_rollouts(self, target: Path) -> None:
        """All parts in one file, one row group per step."""
        with atomic_file(target) as temporary, pq.ParquetWriter(temporary, ROLLOUTS) as writer:
            for path in self.parts("rollouts"):
                writer.write_table(pq.read_table(path, schema=ROLLOUTS))

    def figures(self, kind: str) -> pd.DataFrame:
        """All rows of `steps`, `sampler` or `timings`."""
        return pd.DataFrame([json.loads(path.read_text()) for path in self.parts(kind)])
