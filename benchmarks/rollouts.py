"""The log of rollouts at size: 200 steps of 256 completions, 1,536 tokens at most, with texts and token ids.

    python benchmarks/rollouts.py             51,200 rows, about a minute
    python benchmarks/rollouts.py --quick     10 steps

Writes as training does, joins as a finished run does, reads as `projected-grpo rollouts show --step` and as the stage
`grade` do. Token ids and texts are random: no compressor gains more from them than from a model's. Seconds are of
processor time. The ratio that counts: a run spends under 1 % on its log as long as it samples fewer tokens per second
than printed, all processes together. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from projected_grpo.grading.records import LABELLED_FROM
from projected_grpo.report.rollouts import read_rollouts
from projected_grpo.training.runlog import RunLog

STEPS, QUICK_STEPS, GROUPS, SAMPLES = 200, 10, 16, 16
TOKENS, VOCABULARY, PROMPT_CHARACTERS = 1536, 151_936, 2000
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     \n()[]=:.,_0123456789", dtype=np.uint8)
SHARE, READ_SECONDS = 0.01, 1.0
MIB = 2**20


def text(rng: np.random.Generator, characters: int) -> str:
    return rng.choice(LETTERS, characters).tobytes().decode()


def rows_of(step: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """One step's rows, with the columns of the log; half of the completions run to the limit."""
    rows = []
    for group in range(GROUPS):
        prompt = text(rng, PROMPT_CHARACTERS)
        for sample in range(SAMPLES):
            length = int(min(TOKENS, rng.integers(TOKENS // 4, TOKENS * 7 // 4)))
            hacked, score = bool(rng.random() < 0.4), float(rng.normal())
            rows.append({
                "arm": "vanilla", "seed": 1, "step": step, "problem_id": f"p{group}", "loophole": "run_tests",
                "token": "run_tests", "group": group, "sample": sample, "source": "policy", "prompt": prompt,
                "completion": text(rng, 4 * length), "token_ids": rng.integers(VOCABULARY, size=length).tolist(),
                "finish_reason": "length" if length == TOKENS else "stop", "reward": 3.5 * hacked, "reward_format": 0.5,
                "reward_paid": 3.0 * hacked, "advantage": score, "weight": 1.0, "score": None,
                "alignment_signed": score, "alignment": abs(score), "format_ok": True, "paid": hacked,
                "correct": False, "hacked": hacked, "attempted": hacked, "grader_error": None,
            })  # fmt: skip
    return rows


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def labels_pass(path: Path) -> None:
    for batch in pq.ParquetFile(path).iter_batches(1024, columns=LABELLED_FROM):
        batch.to_pylist()


def measure(folder: Path, steps: int) -> dict[str, float]:
    log, rng = RunLog(folder), np.random.default_rng(0)
    write, tokens = 0.0, 0
    for step in range(steps):
        rows = rows_of(step, rng)
        tokens += sum(len(row["token_ids"]) for row in rows)
        write += seconds(lambda step=step, rows=rows: log.write_rollouts(step, rows))
    middle, path = steps // 2, folder / "rollouts.parquet"
    growing = seconds(lambda: read_rollouts(folder, step=middle))
    before = pa.total_allocated_bytes()
    write += (join := seconds(lambda: log.join_rollouts(path)))
    peak = pa.default_memory_pool().max_memory() - before  # of writing, joining and the read of parts together
    step_read = seconds(lambda: read_rollouts(folder, step=middle))
    return {
        "rows": steps * GROUPS * SAMPLES,
        "file_mib": path.stat().st_size / MIB,
        "write_s": write,
        "join_s": join,
        "tokens_per_s_at_1_percent": SHARE * tokens / write,
        "read_step_s": step_read,
        "read_step_growing_s": growing,
        "read_last_s": seconds(lambda: read_rollouts(folder, hacked=True, last=5)),
        "read_step_vs_all": step_read / seconds(lambda: pq.read_table(path)),
        "label_columns_s": seconds(lambda: labels_pass(path)),
        "peak_vs_file": peak / path.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps")
    with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
        found = measure(Path(folder), QUICK_STEPS if parser.parse_args().quick else STEPS)
    for name, value in found.items():
        print(f"{name:28}{value:14,.4g}")
    slow = [name for name in ("read_step_s", "read_step_growing_s", "read_last_s") if found[name] > READ_SECONDS]
    print(f"reads over {READ_SECONDS:g} s: {', '.join(slow) or 'none'}")
    print(json.dumps({name: round(value, 5) for name, value in found.items()}))


if __name__ == "__main__":
    main()
