"""What a result came from and what it cost: kept beside it, never hashed into anything that later stages read."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from projected_grpo.storage import write_json

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "dvc", "numpy", "tokenizers")


def git_revision() -> str:
    """Commit of the working tree, "+dirty" if it differs, "unknown" outside Git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+dirty" if dirty else "")


def provenance(
    folder: Path, settings: dict[str, Any], inputs: dict[str, str], isolation: list[str], started: float
) -> None:
    """Write provenance.json. `started` is the wall clock at which this process began the run; a resumed run
    counts its last part only."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    write_json(
        folder / "provenance.json",
        {
            "settings": settings,
            "inputs": inputs,
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "git_revision": git_revision(),
            "host": {"machine": platform.machine(), "system": platform.platform(), "cores": os.cpu_count()},
            "threads": torch.get_num_threads(),
            "sandbox_isolation": isolation,
            "wall_seconds": round(time.time() - started, 3),
            "cpu_seconds": round(own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime, 3),
            "peak_memory_mb": round(own.ru_maxrss / 1024, 1),
        },
    )
