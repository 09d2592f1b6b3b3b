from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from projected_grpo.directions.probe import auroc, inner_products, leace, probe_rows, ridge_scores

WIDE, NARROW = 25, 15  # coordinates of two modules
ROLLOUTS = 600


@pytest.fixture
def hacked() -> Tensor:
    return (torch.rand(ROLLOUTS, generator=torch.Generator().manual_seed(0)) < 0.4).long()


@pytest.fixture
def gradients(hacked: Tensor) -> dict[str, Tensor]:
    """Noise, with hacked rollouts shifted along the first two coordinates of one module."""
    rows = torch.randn(ROLLOUTS, WIDE + NARROW, generator=torch.Generator().manual_seed(1))
    rows[:, :2] += hacked[:, None] * torch.tensor([2.0, 1.0])
    return {"a": rows[:, :WIDE], "b": rows[:, WIDE:]}


def first_axes(count: int) -> dict[str, Tensor]:
    return {"a": torch.eye(WIDE)[:count], "b": torch.zeros(0, NARROW)}


def test_what_half_an_erasure_leaves_can_still_be_read(gradients: dict[str, Tensor], hacked: Tensor) -> None:
    half = probe_rows(gradients, hacked, first_axes(1), "both_sides")
    assert half.before > 0.8
    assert 0.57 < half.after < half.before - 0.1  # the second coordinate still tells
    whole = probe_rows(gradients, hacked, first_axes(2), "both_sides")
    assert whole.before == half.before
    assert whole.after == pytest.approx(0.5, abs=0.08)
    assert whole.leace == half.leace < half.before - 0.2  # chance but for the rollouts it was fitted to
    assert half.n == pytest.approx(ROLLOUTS / 3, abs=2)


def test_labels_that_tell_nothing_are_read_at_chance(gradients: dict[str, Tensor], hacked: Tensor) -> None:
    shuffled = hacked[torch.randperm(ROLLOUTS, generator=torch.Generator().manual_seed(2))]
    assert probe_rows(gradients, shuffled, first_axes(1), "both_sides").before == pytest.approx(0.5, abs=0.08)


def test_the_size_of_a_gradient_is_not_read(gradients: dict[str, Tensor], hacked: Tensor) -> None:
    """Advantages differ between hacked and other rollouts; that alone must not count as direction."""
    scaled = {module: rows * torch.where(hacked > 0, 5.0, 1.0)[:, None] for module, rows in gradients.items()}
    plain, larger = (probe_rows(rows, hacked, first_axes(1), "one_sided") for rows in (gradients, scaled))
    assert dataclasses.astuple(larger) == pytest.approx(dataclasses.astuple(plain), abs=1e-6)


def test_how_a_rollout_was_rewarded_is_not_read(hacked: Tensor) -> None:
    """All answers point the same way; hacks are rewarded and the others are not: without the sign that is all."""
    shared = torch.randn(ROLLOUTS, WIDE, generator=torch.Generator().manual_seed(3)) + 1
    advantages = torch.where(hacked > 0, 2.0, -1.0)
    rows, bases = {"a": shared * advantages[:, None]}, {"a": torch.eye(WIDE)[:1]}
    assert probe_rows(rows, hacked, bases, "both_sides").before > 0.95
    reading = probe_rows(rows, hacked, bases, "both_sides", advantages=advantages)
    as_answered = probe_rows({"a": shared}, hacked, bases, "both_sides")
    assert dataclasses.astuple(reading) == pytest.approx(dataclasses.astuple(as_answered), abs=1e-6)
    assert reading.before < 0.65


def test_rollouts_without_a_gradient_take_no_part(gradients: dict[str, Tensor], hacked: Tensor) -> None:
    zero = torch.arange(0, ROLLOUTS, 2)
    dead = {module: rows.clone().index_fill_(0, zero, 0.0) for module, rows in gradients.items()}
    alive = {module: rows[1::2] for module, rows in gradients.items()}
    bases = first_axes(1)
    assert probe_rows(dead, hacked, bases, "both_sides") == probe_rows(alive, hacked[1::2], bases, "both_sides")


def test_too_few_rollouts_of_a_kind_give_no_reading(gradients: dict[str, Tensor], hacked: Tensor) -> None:
    rare = torch.zeros_like(hacked)
    rare[:11] = 1  # three of one third
    reading = probe_rows(gradients, rare, first_axes(1), "one_sided")
    assert (reading.before, reading.after, reading.leace) == (-1.0, -1.0, -1.0)
    rare[11] = 1
    assert probe_rows(gradients, rare, first_axes(1), "one_sided").before >= 0


def test_the_dual_probe_is_a_ridge_regression() -> None:
    draws = torch.Generator().manual_seed(4)
    x, y = torch.randn(30, 8, generator=draws, dtype=torch.float64), (torch.arange(30) % 2).double()
    train, test = torch.arange(20), torch.arange(20, 30)
    mean = x[train].mean(0)
    centred = x[train] - mean
    ridge = 0.1 * centred.square().sum(1).mean()
    weights = torch.linalg.solve(centred.T @ centred + ridge * torch.eye(8), centred.T @ (y[train] - 0.5))
    scores = ridge_scores(inner_products({"a": x}), y, train, test)
    assert torch.allclose(scores, (x[test] - mean) @ weights, atol=1e-10)


def test_the_dual_leace_is_the_closed_form() -> None:
    draws = torch.Generator().manual_seed(5)
    x, y = torch.randn(200, 12, generator=draws, dtype=torch.float64), (torch.arange(200) % 3 == 0).double()
    x[:, 0] += 2 * y
    fit = torch.arange(120)
    centred = x - x[fit].mean(0)
    covariance = centred[fit].T @ centred[fit]
    shift = centred[fit].T @ (y[fit] - y[fit].mean())
    inverse = torch.linalg.inv(covariance) @ shift
    erased = centred - torch.outer(centred @ inverse / (shift @ inverse), shift)
    assert torch.allclose(leace(inner_products({"x": x}), y, fit), erased @ erased.T, atol=1e-9)
    # What it is for: no class means left apart where it was fitted.
    assert (erased[fit][y[fit] == 1].mean(0) - erased[fit][y[fit] == 0].mean(0)).abs().max() < 1e-12


def test_auroc_counts_ordered_pairs() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    assert auroc(torch.tensor([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert auroc(torch.tensor([0.4, 0.3, 0.2, 0.1]), labels) == 0.0
    assert auroc(torch.tensor([0.1, 0.3, 0.2, 0.4]), labels) == 0.75
    assert auroc(torch.tensor([1.0, 1.0, 1.0, 2.0]), labels) == 0.75
