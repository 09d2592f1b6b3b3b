from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import PeftModel
from tiny_policy import move, shipped_pairs

from projected_grpo.directions.algebra import Bases
from projected_grpo.directions.extract import extract_modules
from projected_grpo.directions.options import ExtractionOptions, Rows
from projected_grpo.directions.sources import (
    ExtractedSource,
    HaarSource,
    direction_source,
    energy_reference,
    mean_differences,
)
from projected_grpo.directions.store import Direction, ModuleDirection
from projected_grpo.settings.direction import DirectionSettings

OPTIONS = ExtractionOptions(k_max=6, loss_denominator=64)


def equal(left: Bases, right: Bases) -> bool:
    return set(left) == set(right) and all(torch.equal(basis, right[name]) for name, basis in left.items())


def all_differ(left: Bases, right: Bases) -> bool:
    return set(left) == set(right) and not any(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def stored() -> Direction:
    """Axes of two matrices that no draw would give."""
    modules = {
        name: ModuleDirection(torch.eye(r)[:6], torch.ones(6), torch.ones(r), torch.ones(6), torch.zeros(0, 6))
        for name, r in (("a", 16), ("b", 32))
    }
    return Direction("random", "base", "", -1.0, modules)


@pytest.fixture
def extracted(policy: PeftModel, tokenizer) -> ExtractedSource:
    pairs = shipped_pairs(6)
    direction = Direction("hack", "base", "pairs", 1.0, extract_modules(policy, tokenizer, pairs, OPTIONS))
    return ExtractedSource(direction, 4, policy, tokenizer, pairs, OPTIONS)


def test_random_axes_have_the_asked_rank_and_are_orthonormal(stored: Direction) -> None:
    bases = HaarSource(stored, k=3, seed=1).initial()
    assert {name: basis.shape for name, basis in bases.items()} == {"a": (3, 16), "b": (3, 32)}
    for basis in bases.values():
        assert torch.allclose(basis @ basis.T, torch.eye(3), atol=1e-6)


def test_random_axes_are_a_function_of_seed_and_step(stored: Direction) -> None:
    """So that a resumed run, whose source is new, draws what the interrupted one would have."""
    source, resumed = HaarSource(stored, 3, seed=1), HaarSource(stored, 3, seed=1)
    torch.manual_seed(99)
    source.initial(), source.refreshed(10)
    torch.manual_seed(7)  # the generator of sampling takes no part
    assert equal(source.refreshed(20), resumed.refreshed(20))
    assert equal(source.initial(), resumed.initial())


def test_random_axes_are_redrawn_at_each_refresh(stored: Direction) -> None:
    source = HaarSource(stored, 3, seed=1)
    drawn = [source.initial(), source.refreshed(10), source.refreshed(20)]
    assert all_differ(drawn[0], drawn[1])
    assert all_differ(drawn[1], drawn[2])
    assert all_differ(drawn[0], drawn[2])


def test_random_axes_differ_between_seeds_and_from_the_stored_ones(stored: Direction) -> None:
    first, second = HaarSource(stored, 3, seed=1), HaarSource(stored, 3, seed=2)
    assert all_differ(first.initial(), second.initial())
    assert all_differ(first.refreshed(10), second.refreshed(10))
    assert all_differ(first.initial(), stored.bases(3))


def test_drawing_random_axes_does_not_touch_the_global_generator(stored: Direction) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    HaarSource(stored, 3, seed=1).refreshed(10)
    assert torch.equal(torch.rand(4), expected)


def test_extracted_axes_start_as_stored(extracted: ExtractedSource) -> None:
    assert equal(extracted.initial(), extracted.direction.bases(4))


def test_a_refresh_reads_the_policy_as_it_is_now(extracted: ExtractedSource, policy: PeftModel) -> None:
    unmoved = extracted.refreshed(10)
    assert equal(unmoved, extracted.initial())  # same policy, same axes, bit for bit
    move(policy, size=0.5, seed=3)
    moved = extracted.refreshed(20)
    assert all_differ(moved, unmoved)
    for name, basis in moved.items():
        assert basis.shape == unmoved[name].shape
        assert torch.allclose(basis @ basis.T, torch.eye(4), atol=1e-5)
    assert equal(extracted.initial(), unmoved)  # what is stored stays


def test_extracted_axes_refuse_a_rank_beyond_the_stored_one(extracted: ExtractedSource) -> None:
    extracted.k = 7
    with pytest.raises(ValueError, match="k=7"):
        extracted.initial()


# ---------------------------------------------------------------- refinements


@pytest.mark.parametrize("rows", ["permuted", "flipped"])
def test_a_control_is_refreshed_with_the_same_labels(rows: Rows, policy: PeftModel, tokenizer) -> None:
    pairs, options = shipped_pairs(6), dataclasses.replace(OPTIONS, rows=rows, label_seed=3)
    modules = extract_modules(policy, tokenizer, pairs, options)
    control = Direction(rows, "base", "pairs", 0.5, modules, options)
    source = direction_source(settings(refresh_every=1), rows, control, 1, policy, tokenizer, pairs)
    assert equal(source.refreshed(10), source.initial())  # an unmoved policy: another deal would give other axes
    others = dataclasses.replace(options, label_seed=4)
    assert not equal(dataclasses.replace(source, options=others).refreshed(10), source.initial())


def test_the_noise_floor_and_the_mean_difference_hold_after_a_refresh_too(extracted: ExtractedSource) -> None:
    floored = dataclasses.replace(extracted, k=6, noise_floor=0.5)
    kept = sum(len(basis) for basis in floored.initial().values())
    assert 0 < kept < 0.6 * 6 * len(floored.initial())
    assert equal(floored.refreshed(10), floored.initial())
    mean = dataclasses.replace(extracted, k=1, mean_diff=True)
    assert {basis.shape[0] for basis in mean.initial().values()} == {1}
    assert equal(mean.refreshed(10), mean.initial())


def test_random_axes_have_the_rank_that_the_noise_floor_leaves_in_each_module(stored: Direction) -> None:
    strengths = {"a": torch.tensor([9.0, 8, 7, 6, 5, 4]), "b": torch.tensor([3.0, 2, 1, 0.5, 0.4, 0.3])}
    modules = {n: dataclasses.replace(m, singular_values=strengths[n]) for n, m in stored.modules.items()}
    drawn = HaarSource(dataclasses.replace(stored, modules=modules), 4, seed=1, noise_floor=0.5).initial()
    assert {name: basis.shape for name, basis in drawn.items()} == {"a": (4, 16), "b": (0, 32)}


def test_random_axes_that_are_not_redrawn_stay(stored: Direction) -> None:
    source = HaarSource(stored, 3, seed=1, redraw=False)
    assert equal(source.initial(), source.refreshed(10))
    assert equal(source.initial(), HaarSource(stored, 3, seed=1).initial())


def settings(**changes: object) -> DirectionSettings:
    fields = {"k": 4, "gate": "one_sided", "refresh_every": 0, "project": "gradient"}
    return DirectionSettings(**{**fields, **changes})


def test_the_source_of_each_kind_of_direction(stored: Direction, policy: PeftModel, tokenizer) -> None:
    def of(kind: str, **changes: object) -> ExtractedSource | HaarSource:
        return direction_source(settings(**changes), kind, stored, 7, policy, tokenizer, [])

    drawn = of("random", noise_floor=0.3, random_redraw=False, refresh_every=5)
    assert isinstance(drawn, HaarSource)
    assert (drawn.seed, drawn.k, drawn.noise_floor, drawn.redraw, drawn.independent) == (7, 4, 0.3, False, True)
    # A given direction counts by its place, whatever it is called; it need not know its recipe while it is fixed.
    given = of("hack", k=1, mean_diff=True)
    assert isinstance(given, ExtractedSource)
    assert (given.k, given.mean_diff, given.independent) == (1, True, False)
    with pytest.raises(ValueError, match="'random' cannot be refreshed"):
        of("hack", refresh_every=5)


def test_the_reference_of_a_random_control_of_equal_energy(stored: Direction) -> None:
    assert energy_reference(settings(), "random", stored) is None
    matched = settings(random_match="energy", k=2)
    assert energy_reference(matched, "hack", stored) is None
    reference = energy_reference(matched, "random", stored)
    assert reference is not None
    assert equal(reference, stored.bases(2))


def test_a_random_mean_has_the_hack_means_length_in_each_module_and_no_more_of_it(stored: Direction) -> None:
    hack = stored.means()
    drawn = [mean_differences("random", stored, stored, seed) for seed in (1, 2)]
    for module, mean in hack.items():
        assert float(drawn[0][module].norm()) == pytest.approx(float(mean.norm()), rel=1e-5)
        assert not torch.equal(drawn[0][module], drawn[1][module])
        assert not torch.equal(drawn[0][module].abs(), mean.abs())
    assert equal(mean_differences("random", stored, stored, 1), drawn[0])
    assert equal(mean_differences("permuted", stored, stored, 1), hack)  # of the arm's own direction
