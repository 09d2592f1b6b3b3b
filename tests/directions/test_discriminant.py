"""The discriminant on made-up gradients whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from projected_grpo.directions.algebra import cosine_rows
from projected_grpo.directions.discriminant import RIDGE, discriminant, unit_rows


def two_sides(n: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Coordinate 0 of module `loud` varies a lot and tells nothing; coordinate 0 of `quiet` tells the sides apart."""
    generator = torch.Generator().manual_seed(seed)

    def side(shift: float) -> dict[str, Tensor]:
        loud, quiet = torch.randn(n, 3, generator=generator), 0.05 * torch.randn(n, 4, generator=generator)
        loud[:, 0] *= 20
        quiet[:, 0] += shift
        return {"loud": loud, "quiet": quiet}

    return side(0.3), side(-0.3)


def test_unit_rows_have_length_one_over_all_modules_and_zeros_stay() -> None:
    rows = {"a": torch.tensor([[3.0, 0.0], [0.0, 0.0]]), "b": torch.tensor([[4.0], [0.0]])}
    units = unit_rows(rows)
    assert units["a"].tolist() == [[pytest.approx(0.6), 0.0], [0.0, 0.0]]
    assert units["b"].flatten().tolist() == [pytest.approx(0.8), 0.0]


def test_weights_are_the_gap_over_the_spread_within_sides() -> None:
    hack, clean = (
        {"m": torch.tensor(rows).double()} for rows in ([[0.6, 0.8], [0.8, 0.6]], [[0.8, -0.6], [0.6, -0.8]])
    )
    found = discriminant(hack, clean)
    # Means (.7, .7) and (.7, -.7): the gap is (0, 1.4).
    # Each side deviates by (.1, .1) and by its negative: variance over four values 4 * .01 / 3 in both coordinates.
    variance = 4 * 0.01 / 3
    assert found.weights["m"].tolist() == [pytest.approx(0), pytest.approx(1.4 / (variance * (1 + RIDGE)))]
    softer = discriminant(hack, clean, ridge=0.5)
    assert softer.weights["m"].tolist() == [pytest.approx(0), pytest.approx(1.4 / (variance * 1.5))]
    assert found.read(clean).mean() == pytest.approx(0.0, abs=1e-6)
    assert found.read(hack).mean() == pytest.approx(1.0)


def test_it_tells_new_gradients_apart_where_the_mean_difference_does_not() -> None:
    found = discriminant(*map(unit_rows, two_sides(40, seed=0)))
    hack, clean = two_sides(500, seed=1)
    right = torch.cat([found.read(hack) > 0.5, found.read(clean) <= 0.5]).double().mean()
    train_hack, train_clean = two_sides(40, seed=0)
    mean = {module: (rows - train_clean[module]).mean(0) for module, rows in train_hack.items()}
    by_mean = torch.cat([cosine_rows(hack, mean) > 0, cosine_rows(clean, mean) <= 0]).double().mean()
    assert right > 0.9
    assert by_mean < 0.65


def test_a_reading_does_not_depend_on_length() -> None:
    found = discriminant(*map(unit_rows, two_sides(40, seed=0)))
    rows, _ = two_sides(5, seed=2)
    longer = {module: 7 * row for module, row in rows.items()}
    torch.testing.assert_close(found.read(longer), found.read(rows))


def test_sides_that_nothing_tells_apart_and_too_few_answers_are_refused() -> None:
    same = {"m": torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double()}
    with pytest.raises(ValueError, match="nothing tells them apart"):
        discriminant(same, same)
    with pytest.raises(ValueError, match="two answers a side"):
        discriminant({"m": torch.ones(1, 3)}, {"m": torch.zeros(1, 3)})
