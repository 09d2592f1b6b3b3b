from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from tiny_policy import move, shipped_pairs

from projected_grpo.directions.algebra import Bases
from projected_grpo.directions.extract import ExtractionOptions, extract_modules
from projected_grpo.directions.sources import ExtractedSource, HaarSource
from projected_grpo.directions.store import Direction, ModuleDirection

OPTIONS = ExtractionOptions(k_max=6, loss_denominator=64)


def equal(left: Bases, right: Bases) -> bool:
    return set(left) == set(right) and all(torch.equal(basis, right[name]) for name, basis in left.items())


def all_differ(left: Bases, right: Bases) -> bool:
    return set(left) == set(right) and not any(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def stored() -> Direction:
    """Axes of two matrices that no draw would give."""
    modules = {
        name: ModuleDirection(torch.eye(r)[:6], torch.ones(6), torch.ones(r), torch.ones(6))
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
