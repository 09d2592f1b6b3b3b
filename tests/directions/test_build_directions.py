from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from tiny_policy import SHIPPED, adapted, tiny_base

from projected_grpo.directions.algebra import basis_overlap
from projected_grpo.directions.build import build_directions
from projected_grpo.directions.extract import completion_gradients, extract_modules
from projected_grpo.directions.options import ExtractionOptions
from projected_grpo.directions.store import load_direction, save_direction
from projected_grpo.problems.pairs import Pair, dump_pairs, read_pairs, select
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.storage import sha256_file

FILES = ("hack", "placebo", "random", "permuted", "flipped", "clean")
TOKENS = 64
CPU = ComputeSettings(
    device="cpu", dtype="float32", micro_batch=None, generate_batch=None, checkpointing=False, keep_factors=False,
    factors="device",
)  # fmt: skip


def settings(direction_file: Path | None = None) -> ExtractSettings:
    return ExtractSettings(
        pairs="unused: the stage before has split them",
        k_max=4,
        bodies="both",
        direction_file=None if direction_file is None else str(direction_file),
    )


def some(contrast: str, extract: int, heldout: int) -> list[Pair]:
    rows = read_pairs(SHIPPED / "pairs.yaml")
    return select(rows, contrast, "extract")[:extract] + select(rows, contrast, "heldout")[:heldout]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """base/ and pairs/ as the earlier stages leave them, small."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny_base(tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "pairs").mkdir()
    (folder / "pairs" / "hack.yaml").write_text(dump_pairs(some("hack", 6, 4)))
    (folder / "pairs" / "placebo.yaml").write_text(dump_pairs(some("placebo", 6, 0)))
    return folder


def build(inputs: Path, target: Path, **changes: object) -> dict[str, dict[str, float]]:
    return build_directions(settings(**changes), CPU, TOKENS, inputs / "base", inputs / "pairs", target)


@pytest.fixture(scope="module")
def built(inputs: Path) -> tuple[Path, dict[str, dict[str, float]]]:
    return inputs / "directions", build(inputs, inputs / "directions")


def test_directions_are_bound_to_base_and_pairs(inputs: Path, built) -> None:
    folder, figures = built
    assert {path.stem for path in folder.iterdir()} == set(figures) == set(FILES)
    loaded = {name: load_direction(folder / f"{name}.safetensors") for name in FILES}
    base = sha256_file(inputs / "base" / "model.safetensors")
    for name, direction in loaded.items():
        assert (direction.name, direction.base_hash, direction.k_max) == (name, base, 4)
        assert set(direction.modules) == set(loaded["hack"].modules)
    for name in ("hack", "permuted", "flipped"):
        assert loaded[name].pairs_hash == sha256_file(inputs / "pairs" / "hack.yaml")
        assert loaded[name].heldout_accuracy in (0.0, 0.25, 0.5, 0.75, 1.0)  # of 4 pairs with their true labels
    assert loaded["placebo"].pairs_hash == sha256_file(inputs / "pairs" / "placebo.yaml")
    assert loaded["random"].pairs_hash == ""
    assert loaded["clean"].pairs_hash == loaded["hack"].pairs_hash
    for name in ("placebo", "random", "clean"):  # no held-out pairs, made of no pairs, not there to tell sides apart
        assert loaded[name].heldout_accuracy == figures[name]["heldout_accuracy"] == -1.0
    assert figures["clean"]["heldout_first_axis"] == -1.0


def test_held_out_pairs_take_no_part_in_the_axes(built, tokenizer) -> None:
    stored = load_direction(built[0] / "hack.safetensors")
    expected = extract_modules(
        adapted(tiny_base(tokenizer)), tokenizer, some("hack", 6, 0), ExtractionOptions(4, TOKENS)
    )
    for name, module in expected.items():
        assert torch.allclose(stored.modules[name].mean, module.mean, atol=1e-6)
        assert torch.allclose(stored.modules[name].axes, module.axes, atol=1e-3)


def test_the_controls_are_other_directions(built) -> None:
    hack, placebo, random, permuted, flipped, _ = (load_direction(built[0] / f"{name}.safetensors") for name in FILES)
    for name, module in hack.modules.items():
        for control in (placebo, random, permuted):
            overlap = (module.axes[0] @ control.modules[name].axes[0]).abs()
            assert float(overlap) < 0.99, (control.name, name)
    assert basis_overlap(hack.bases(4), flipped.bases(4)) == pytest.approx(1.0, abs=1e-3)  # the same span
    assert any(not torch.allclose(flipped.modules[n].axes, m.axes, atol=1e-2) for n, m in hack.modules.items())


def test_clean_is_the_span_of_the_clean_answers_own_gradients(built, tokenizer) -> None:
    stored = load_direction(built[0] / "clean.safetensors")
    texts = [(pair.prompt, pair.clean) for pair in some("hack", 6, 0)]
    rows = completion_gradients(adapted(tiny_base(tokenizer)), tokenizer, texts, ExtractionOptions(4, TOKENS))
    for name, module in stored.modules.items():
        assert torch.allclose(module.mean, rows[name].mean(0), atol=1e-6)
        assert torch.allclose(module.singular_values, torch.linalg.svdvals(rows[name])[:4], rtol=1e-3)


def test_every_direction_but_random_knows_its_recipe(inputs: Path, tmp_path: Path) -> None:
    chosen = settings().model_copy(update={"loss": "token_mean", "tau_axis": 0.2, "control_seed": 5})
    portions = CPU.model_copy(update={"micro_batch": 3})
    build_directions(chosen, portions, TOKENS, inputs / "base", inputs / "pairs", tmp_path / "out")
    loaded = {name: load_direction(tmp_path / "out" / f"{name}.safetensors") for name in FILES}
    recipe = ExtractionOptions(4, TOKENS, batch_size=3, loss="token_mean", tau_axis=0.2, label_seed=5)
    rows = {
        "hack": "difference",
        "placebo": "difference",
        "permuted": "permuted",
        "flipped": "flipped",
        "clean": "clean",
    }
    for name, kind in rows.items():
        assert loaded[name].options == dataclasses.replace(recipe, rows=kind)
        for module in loaded[name].modules.values():
            assert (module.singular_values >= 0.2 * module.singular_values[0]).all()
    assert loaded["random"].options is None
    assert {n: len(m.axes) for n, m in loaded["random"].modules.items()} == {
        n: len(m.axes) for n, m in loaded["hack"].modules.items()
    }


def test_too_few_pairs_of_a_contrast_are_refused_by_name(inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(inputs / "pairs", tmp_path / "pairs")
    (tmp_path / "pairs" / "placebo.yaml").write_text(dump_pairs(some("placebo", 3, 0)))
    with pytest.raises(ValueError, match="3 placebo pairs span fewer than k_max=4 axes"):
        build_directions(settings(), CPU, TOKENS, inputs / "base", tmp_path / "pairs", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_extraction_is_reproducible_to_the_byte(inputs: Path, built, tmp_path: Path) -> None:
    build(inputs, tmp_path / "again")
    for name in FILES:
        first, second = built[0] / f"{name}.safetensors", tmp_path / "again" / f"{name}.safetensors"
        assert first.read_bytes() == second.read_bytes(), name


def test_a_given_direction_takes_the_place_of_the_extracted_one(inputs: Path, built, tmp_path: Path) -> None:
    given = dataclasses.replace(load_direction(built[0] / "placebo.safetensors"), heldout_accuracy=0.125)
    save_direction(tmp_path / "mine.safetensors", given)
    build(inputs, tmp_path / "out", direction_file=tmp_path / "mine.safetensors")
    used = load_direction(tmp_path / "out" / "hack.safetensors")
    assert used.heldout_accuracy == 0.125
    for name, module in given.modules.items():
        assert torch.equal(used.modules[name].axes, module.axes)


def test_a_given_direction_of_another_base_is_refused_and_nothing_written(inputs: Path, built, tmp_path: Path) -> None:
    foreign = dataclasses.replace(load_direction(built[0] / "hack.safetensors"), base_hash="0" * 64)
    save_direction(tmp_path / "foreign.safetensors", foreign)
    with pytest.raises(ValueError, match="was extracted from base 000000000000"):
        build(inputs, tmp_path / "out", direction_file=tmp_path / "foreign.safetensors")
    assert not (tmp_path / "out").exists()
