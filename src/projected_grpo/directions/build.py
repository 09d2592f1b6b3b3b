"""All directions of a base model: hack, and the controls random and placebo, written to files."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from pathlib import Path

import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from projected_grpo.directions.extract import (
    ExtractionOptions,
    describe,
    extract_modules,
    pair_differences,
    random_modules,
    sign_accuracy,
)
from projected_grpo.directions.store import Direction, load_direction, save_direction
from projected_grpo.problems.pairs import Pair, read_pairs
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.spectral import SpectralConfig
from projected_grpo.storage import atomic_directory, sha256_file

RANDOM_SEED = 0  # of the stored random direction; training redraws it per seed and refresh


def build_directions(
    settings: ExtractSettings, loss_denominator: int, base: Path, pairs: Path, target: Path
) -> dict[str, dict[str, float]]:
    """Write target/{hack,placebo,random}.safetensors; returns figures per direction for people.

    Raises:
        ValueError: too few pairs, or a given direction of another base. FloatingPointError: a non-finite loss.
    """
    torch.set_num_threads(1)  # the same sums in the same order as in training
    base_hash = sha256_file(base / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, SpectralConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    options = ExtractionOptions(settings.k_max, loss_denominator)

    def extracted(name: str) -> Direction:
        path = pairs / f"{name}.yaml"
        rows = read_pairs(path)
        modules = extract_modules(model, tokenizer, _half(rows, "extract"), options)
        heldout = _half(rows, "heldout")
        accuracy = sign_accuracy(pair_differences(model, tokenizer, heldout, options), modules) if heldout else -1.0
        return Direction(name, base_hash, sha256_file(path), accuracy, modules)

    if settings.direction_file is not None:
        hack = load_direction(Path(settings.direction_file))
        hack.check_base(base_hash)
    else:
        hack = extracted("hack")
    random = Direction("random", base_hash, "", -1.0, random_modules(hack.modules, RANDOM_SEED))
    directions = {"hack": hack, "placebo": extracted("placebo"), "random": random}
    with atomic_directory(target) as folder:
        for name, direction in directions.items():
            save_direction(folder / f"{name}.safetensors", direction)
    return {name: describe(direction) for name, direction in directions.items()}


def _half(rows: list[Pair], split: str) -> list[Pair]:
    return [pair for pair in rows if pair.split == split]
