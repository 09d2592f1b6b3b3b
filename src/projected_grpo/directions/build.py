"""All directions of a base model: hack and its controls, written to files by one pass over the pairs."""

from __future__ import annotations

import os

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import dataclasses
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.directions.extract import (
    PairGradients,
    axis_accuracy,
    check_count,
    describe,
    direction_rows,
    module_directions,
    pair_gradients,
    random_modules,
    sign_accuracy,
)
from projected_grpo.directions.options import TEXTS_PER_PASS, ExtractionOptions
from projected_grpo.directions.store import Direction, load_direction, save_direction
from projected_grpo.policy import load_policy
from projected_grpo.problems.pairs import Pair, read_pairs
from projected_grpo.problems.prompts import PromptForm, read_form
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.storage import atomic_directory, sha256_file


@dataclasses.dataclass(frozen=True)
class _Contrast:
    """Pairs of one contrast and what was computed of them: gradients to extract from, held-out differences."""

    pairs_hash: str
    extract: PairGradients
    heldout: dict[str, torch.Tensor]

    def direction(self, name: str, base_hash: str, options: ExtractionOptions) -> Direction:
        modules = module_directions(self.extract, options)
        # How well it tells the sides apart, which the clean answers' own span is not for.
        accuracy = sign_accuracy(self.heldout, modules) if options.rows != "clean" else -1.0
        return Direction(name, base_hash, self.pairs_hash, accuracy, modules, options)


def build_directions(
    settings: ExtractSettings, compute: ComputeSettings, loss_denominator: int, base: Path, pairs: Path, target: Path
) -> dict[str, dict[str, float]]:
    """Write target/<name>.safetensors for hack, its controls placebo, random, permuted and flipped, and `clean`, the
    span of updates that teach honest solving; returns figures per direction for people.

    hack, permuted, flipped and clean come from the same gradients; random has the shapes of hack.

    Raises:
        ValueError: too few pairs, a text beyond the model's context, or a given direction of another base.
        FloatingPointError: a non-finite loss.
    """
    torch.set_num_threads(1)  # the same sums in the same order as in training
    base_hash = sha256_file(base / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(base)
    form = read_form(base, tokenizer)
    model = load_policy(base, compute)
    options = ExtractionOptions(
        settings.k_max,
        loss_denominator,
        compute.micro_batch or TEXTS_PER_PASS,
        loss=settings.loss,
        tau_axis=settings.tau_axis,
        centred=settings.centred,
        label_seed=settings.control_seed,
    )
    given = None if settings.direction_file is None else load_direction(Path(settings.direction_file))
    if given is not None:
        given.check_base(base_hash)
        _check_recipe(given, options)
    hacks, placebos = (
        _contrast(model, tokenizer, form, pairs / f"{name}.yaml", options, name) for name in ("hack", "placebo")
    )
    hack = given or hacks.direction("hack", base_hash, options)
    random = random_modules(hack.modules, settings.control_seed)
    directions = {
        "hack": hack,
        "placebo": placebos.direction("placebo", base_hash, options),
        "random": Direction("random", base_hash, "", -1.0, random),
        "permuted": hacks.direction("permuted", base_hash, dataclasses.replace(options, rows="permuted")),
        "flipped": hacks.direction("flipped", base_hash, dataclasses.replace(options, rows="flipped")),
        "clean": hacks.direction("clean", base_hash, dataclasses.replace(options, rows="clean")),
    }
    with atomic_directory(target) as folder:
        for name, direction in directions.items():
            save_direction(folder / f"{name}.safetensors", direction)
    # The clean answers' span is not there to tell sides apart.
    heldout = dict.fromkeys(directions, hacks.heldout) | {"placebo": placebos.heldout, "clean": {}}
    return {
        name: {**describe(direction), "heldout_first_axis": axis_accuracy(heldout[name], direction.modules)}
        for name, direction in directions.items()
    }


def _check_recipe(given: Direction, options: ExtractionOptions) -> None:
    """A treatment found in one way and controls found in another would differ in more than their labels."""
    if given.options is None:
        return
    for name in ("loss", "tau_axis", "centred"):
        used, wanted = getattr(given.options, name), getattr(options, name)
        if used != wanted:
            raise ValueError(
                f"the given direction was extracted with {name} {used}, its controls would be with {wanted}: "
                f"set extract.{name} to {used}"
            )


def _contrast(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    form: PromptForm,
    path: Path,
    options: ExtractionOptions,
    name: str,
) -> _Contrast:
    rows = [form.pair(pair) for pair in read_pairs(path)]
    extract = [pair for pair in rows if pair.split == "extract"]
    check_count(len(extract), options, name)
    heldout: list[Pair] = [pair for pair in rows if pair.split == "heldout"]
    differences = direction_rows(pair_gradients(model, tokenizer, heldout, options), options) if heldout else {}
    return _Contrast(sha256_file(path), pair_gradients(model, tokenizer, extract, options), differences)
