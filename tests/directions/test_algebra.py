from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from projected_grpo.directions.algebra import (
    Bases,
    Frames,
    Gate,
    alignment,
    alignment_deviation,
    alignment_null,
    alignment_rows,
    basis_overlap,
    cosine,
    cosine_rows,
    erase,
    erase_all,
    haar_basis,
    hackward_coefficients,
    keep,
    keep_all,
    matched_overshoot,
    modules_touched,
    removed_share,
    shared_energy,
    total_norm,
)
from projected_grpo.settings.direction import DirectionSettings

GATES: tuple[Gate, ...] = ("one_sided", "both_sides", "reverse")
TWO_AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
MIXED = torch.tensor([2.0, -3.0, 5.0])  # hack-ward along axis 0, away from it along axis 1


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def basis() -> Tensor:
    return haar_basis(5, 24, generator(0))


@pytest.fixture
def gradients() -> Tensor:
    """(100, 24), isotropic."""
    return torch.randn(100, 24, generator=generator(1))


@pytest.mark.parametrize(
    ("gate", "taken", "left"),
    [
        ("one_sided", [2.0, 0.0], [0.0, -3.0, 5.0]),
        ("both_sides", [2.0, -3.0], [0.0, 0.0, 5.0]),
        ("reverse", [4.0, 0.0], [-2.0, -3.0, 5.0]),
    ],
)
def test_what_each_gate_takes_and_leaves(gate: Gate, taken: list[float], left: list[float]) -> None:
    assert hackward_coefficients(MIXED, TWO_AXES, gate).tolist() == taken
    assert erase(MIXED, TWO_AXES, gate).tolist() == left


def test_axes_that_are_no_unit_vectors_of_the_coordinates() -> None:
    diagonal = torch.tensor([[0.6, 0.8]])
    # V g = 5, so one_sided leaves nothing of (3, 4); (4, -3) is orthogonal; (-3, -4) points away.
    assert erase(torch.tensor([3.0, 4.0]), diagonal, "one_sided").abs().max() < 1e-6
    assert torch.allclose(erase(torch.tensor([4.0, -3.0]), diagonal, "both_sides"), torch.tensor([4.0, -3.0]))
    assert torch.allclose(erase(torch.tensor([-3.0, -4.0]), diagonal, "one_sided"), torch.tensor([-3.0, -4.0]))
    assert torch.allclose(erase(torch.tensor([3.0, 4.0]), diagonal, "reverse"), torch.tensor([-3.0, -4.0]))


def test_both_sides_leaves_a_gradient_orthogonal_to_every_axis(basis: Tensor, gradients: Tensor) -> None:
    for gradient in gradients:
        assert (basis @ gradient).abs().max() > 0.1  # orthogonality is the projection's doing
        assert (basis @ erase(gradient, basis, "both_sides")).abs().max() < 1e-5


def test_one_sided_is_orthogonal_to_hackward_axes_and_leaves_the_others(basis: Tensor, gradients: Tensor) -> None:
    for gradient in gradients:
        before, after = basis @ gradient, basis @ erase(gradient, basis, "one_sided")
        assert torch.allclose(after, before.clamp_max(0), atol=1e-5)


def test_reverse_flips_the_hackward_sign_and_keeps_the_norm(basis: Tensor, gradients: Tensor) -> None:
    for gradient in gradients:
        flipped = erase(gradient, basis, "reverse")
        assert torch.allclose(basis @ flipped, -(basis @ gradient).abs(), atol=1e-5)
        assert float(flipped.norm()) == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_the_gates_are_those_that_can_be_set_and_no_other() -> None:
    assert get_args(DirectionSettings.model_fields["gate"].annotation) == get_args(Gate) == GATES
    with pytest.raises(ValueError, match="no gate 'twosided'"):
        erase(MIXED, TWO_AXES, "twosided")  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", GATES)
def test_what_lies_outside_the_axes_stays(gate: Gate, basis: Tensor, gradients: Tensor) -> None:
    outside = gradients - gradients @ basis.T @ basis
    for gradient, kept in zip(gradients, outside, strict=True):
        erased = erase(gradient, basis, gate)
        assert torch.allclose(erased - basis.T @ (basis @ erased), kept, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_erasing_twice_is_erasing_once(gate: Gate, basis: Tensor, gradients: Tensor) -> None:
    changed = 0
    for gradient in gradients:
        once = erase(gradient, basis, gate)
        changed += not torch.allclose(once, gradient, atol=1e-2)
        assert torch.allclose(erase(once, basis, gate), once, atol=1e-5)
    assert changed > 90  # one in 2^5 has no hack-ward component at all


def test_every_module_is_erased_along_its_own_axes() -> None:
    gradients = {"a": MIXED, "b": MIXED}
    bases = {"a": TWO_AXES, "b": torch.tensor([[0.0, 0.0, 1.0]]), "unused": TWO_AXES}
    erased = erase_all(gradients, bases, "one_sided")
    assert {name: vector.tolist() for name, vector in erased.items()} == {
        "a": [0.0, -3.0, 5.0],
        "b": [2.0, -3.0, 0.0],
    }
    assert MIXED.tolist() == [2.0, -3.0, 5.0]  # nothing is changed in place


def test_a_module_without_axes_is_an_error() -> None:
    with pytest.raises(KeyError, match="lonely"):
        erase_all({"a": MIXED, "lonely": MIXED}, {"a": TWO_AXES}, "one_sided")


def test_alignment_of_known_vectors() -> None:
    bases = {"a": TWO_AXES, "b": TWO_AXES}
    hackward, away, outside = torch.eye(3)[0], -torch.eye(3)[0], torch.eye(3)[2]
    assert alignment({"a": hackward, "b": hackward}, bases) == pytest.approx(1.0)
    assert alignment({"a": away, "b": outside}, bases) == 0.0
    assert alignment({"a": hackward, "b": away}, bases) == pytest.approx(1 / math.sqrt(2))
    assert alignment({"a": MIXED, "b": torch.zeros(3)}, bases) == pytest.approx(2 / math.sqrt(38))
    assert alignment({"a": torch.zeros(3)}, bases) == 0.0


def test_the_null_of_the_alignment_is_what_isotropic_gradients_have() -> None:
    """As many axes as the micro model has; with few, the mean lies a little below the root of the mean square."""
    shapes = [(8, 64), (8, 128), (3, 96)] * 8
    bases = {str(i): haar_basis(k, r, generator(i)) for i, (k, r) in enumerate(shapes)}
    draws = generator(99)
    measured = [
        alignment({name: torch.randn(basis.shape[1], generator=draws) for name, basis in bases.items()}, bases)
        for _ in range(500)
    ]
    null = alignment_null(bases)
    assert null == pytest.approx(math.sqrt(8 * 19 / (2 * 8 * 288)))
    assert math.sqrt(sum(share**2 for share in measured) / len(measured)) == pytest.approx(null, rel=0.02)
    assert sum(measured) / len(measured) == pytest.approx(null, rel=0.02)
    assert statistics.stdev(measured) == pytest.approx(alignment_deviation(bases), rel=0.1)  # of 500: 3 % by chance


def test_the_null_varies_less_where_axes_fill_the_space() -> None:
    """Of k = r axes sqrt(3 / 8r), in place of the sqrt(5 / 8r) of few axes among many."""
    bases, draws = {"m": torch.eye(512)}, generator(7)
    measured = [alignment({"m": torch.randn(512, generator=draws)}, bases) for _ in range(2000)]
    assert alignment_deviation(bases) == pytest.approx((3 / (8 * 512)) ** 0.5)
    assert statistics.stdev(measured) == pytest.approx(alignment_deviation(bases), rel=0.06)  # of 2000: 1.6 % by chance


def test_cosine_over_all_modules_together() -> None:
    left = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    assert cosine(left, left) == pytest.approx(1.0)
    assert cosine(left, {"a": torch.tensor([-3.0, 0.0]), "b": torch.tensor([-4.0])}) == pytest.approx(-1.0)
    assert cosine(left, {"a": torch.tensor([0.0, 7.0]), "b": torch.zeros(1)}) == 0.0
    # 3 * 1 / (5 * 1): modules count by their size, no mean of cosines is taken
    assert cosine(left, {"a": torch.tensor([1.0, 0.0]), "b": torch.zeros(1)}) == pytest.approx(0.6)
    # A module of the right side alone takes no part.
    assert cosine(left, {**left, "c": torch.tensor([100.0])}) == pytest.approx(1.0)
    assert cosine({"a": torch.zeros(2)}, {"a": torch.ones(2)}) == 0.0


def test_norm_and_removed_share() -> None:
    before = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])}
    assert total_norm(before) == pytest.approx(5.0)
    assert removed_share(before, before) == 0.0
    assert removed_share(before, {"a": torch.zeros(2), "b": torch.tensor([4.0])}) == pytest.approx(0.6)
    assert removed_share(before, {"a": torch.tensor([-3.0, 0.0]), "b": before["b"]}) == pytest.approx(1.2)
    assert removed_share({"a": torch.zeros(2)}, {"a": torch.zeros(2)}) == 0.0


@pytest.mark.parametrize(("k", "r"), [(1, 1), (1, 32), (5, 24), (16, 16)])
def test_haar_axes_are_orthonormal(k: int, r: int) -> None:
    basis = haar_basis(k, r, generator(4))
    assert basis.shape == (k, r)
    assert basis.dtype == torch.float32
    assert torch.allclose(basis @ basis.T, torch.eye(k), atol=1e-6)


def test_haar_axes_are_a_function_of_the_generator() -> None:
    assert torch.equal(haar_basis(3, 8, generator(5)), haar_basis(3, 8, generator(5)))
    assert not torch.equal(haar_basis(3, 8, generator(5)), haar_basis(3, 8, generator(6)))


def test_haar_axes_prefer_no_direction_and_no_sign() -> None:
    """Every entry of a random frame has mean 0 and variance 1/r, and different entries are uncorrelated.

    The last axis of a square frame is the one that a QR without sign correction would bias.
    """
    draws = generator(7)
    frames = torch.stack([haar_basis(4, 4, draws) for _ in range(4000)])  # (draws, k, r)
    assert frames.mean(0).abs().max() < 5 * 0.5 / math.sqrt(4000)
    assert (frames.square().mean(0) - 0.25).abs().max() < 0.02
    flat = frames.flatten(1)
    covariance = flat.T @ flat / len(flat)
    assert (covariance - torch.eye(16) / 4).abs().max() < 0.03


def test_more_axes_than_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"k=5 axes do not fit in r=4 dimensions"):
        haar_basis(5, 4, generator(0))


# ---------------------------------------------------------------- refinements of the gate


@pytest.mark.parametrize(
    ("gate", "overshoot", "left"),
    [
        ("one_sided", 1.1, [-0.2, -3.0, 5.0]),  # a tenth of the hack-ward part points the other way
        ("one_sided", 0.5, [1.0, -3.0, 5.0]),
        ("one_sided", 2.0, [-2.0, -3.0, 5.0]),  # what `reverse` does
        ("both_sides", 1.5, [-1.0, 1.5, 5.0]),
        ("reverse", 1.5, [-4.0, -3.0, 5.0]),
    ],
)
def test_overshoot_takes_what_the_gate_takes_so_many_times(gate: Gate, overshoot: float, left: list[float]) -> None:
    assert erase(MIXED, TWO_AXES, gate, overshoot).tolist() == pytest.approx(left)
    assert erase_all({"a": MIXED}, {"a": TWO_AXES}, gate, overshoot)["a"].tolist() == pytest.approx(left)


def test_preserved_magnitude_keeps_each_modules_length_and_the_direction_of_what_is_left() -> None:
    gradients = {"a": MIXED, "b": torch.tensor([0.0, 0.0, 2.0]), "c": torch.tensor([4.0, 0.0, 0.0])}
    erased = erase_all(gradients, dict.fromkeys("abc", TWO_AXES), "one_sided", preserve_magnitude=True)
    scale = math.sqrt(38 / 34)
    assert erased["a"].tolist() == pytest.approx([0.0, -3.0 * scale, 5.0 * scale])
    assert erased["b"].tolist() == [0.0, 0.0, 2.0]
    assert erased["c"].tolist() == [0.0, 0.0, 0.0]  # nothing was left to scale


def test_keeping_a_span_is_what_erasing_it_takes(basis: Tensor, gradients: Tensor) -> None:
    kept = keep(gradients, basis)
    assert torch.allclose(kept, gradients - erase(gradients, basis, "both_sides"), atol=1e-5)
    assert torch.allclose(keep(kept, basis), kept, atol=1e-5)
    assert keep(MIXED, TWO_AXES).tolist() == [2.0, -3.0, 0.0]
    of_all = keep_all({"a": MIXED, "b": MIXED}, {"a": TWO_AXES, "b": TWO_AXES[:0]})
    assert of_all["a"].tolist() == [2.0, -3.0, 0.0]
    assert of_all["b"].tolist() == [0.0, 0.0, 0.0]  # no trusted direction, nothing passes


# ---------------------------------------------------------------- many modules, many rows at once

SHAPES = ((3, 16), (5, 24), (3, 16), (0, 16), (5, 16), (5, 24))


@pytest.fixture
def bases() -> Bases:
    return {f"m{i}": haar_basis(k, r, generator(i)) for i, (k, r) in enumerate(SHAPES)}


@pytest.fixture
def rows() -> dict[str, Tensor]:
    """Four gradients of every module."""
    draws = generator(50)
    return {f"m{i}": torch.randn(4, r, generator=draws) for i, (_, r) in enumerate(SHAPES)}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("stacked", [False, True])
def test_all_modules_and_rows_at_once_is_each_alone(
    gate: Gate, stacked: bool, bases: Bases, rows: dict[str, Tensor]
) -> None:
    used = Frames(bases) if stacked else bases
    for magnitude in (False, True):
        erased = erase_all(rows, used, gate, 1.3, magnitude)
        assert list(erased) == list(rows)
        for module, many in rows.items():
            for row, gradient in enumerate(many):
                alone = erase(gradient, bases[module], gate, 1.3, magnitude)
                assert torch.allclose(erased[module][row], alone, atol=1e-5)
        first = erase_all({module: many[0] for module, many in rows.items()}, used, gate, 1.3, magnitude)
        assert all(first[module].shape == many[0].shape for module, many in rows.items())
        assert all(torch.allclose(first[module], erased[module][0], atol=1e-5) for module in rows)


def test_a_module_with_an_empty_basis_stays_bit_for_bit(bases: Bases, rows: dict[str, Tensor]) -> None:
    erased = erase_all(rows, bases, "both_sides")
    assert torch.equal(erased["m3"], rows["m3"])
    assert modules_touched(rows, erased) == len(SHAPES) - 1
    assert modules_touched(rows, rows) == 0


def test_frames_are_a_mapping_of_the_same_bases(bases: Bases) -> None:
    frames = Frames(bases)
    assert list(frames) == list(bases)
    assert len(frames) == len(SHAPES)
    assert all(torch.equal(frames[module], basis) for module, basis in bases.items())
    assert sorted(len(names) for names, _ in frames.stacks) == [1, 1, 2, 2]
    assert frames.on(torch.device("cpu")) is frames
    with pytest.raises(KeyError, match="lonely"):
        erase_all({"m0": torch.ones(16), "lonely": torch.ones(16)}, frames, "one_sided")


def test_the_order_of_modules_does_not_change_a_bit(bases: Bases, rows: dict[str, Tensor]) -> None:
    backwards = Frames(dict(reversed(bases.items())))
    erased, again = erase_all(rows, Frames(bases), "one_sided"), erase_all(rows, backwards, "one_sided")
    assert all(torch.equal(erased[module], again[module]) for module in rows)
    assert torch.equal(alignment_rows(rows, bases), alignment_rows(rows, backwards))


def test_gradients_keep_their_precision() -> None:
    half = erase_all({"a": MIXED.bfloat16()}, {"a": TWO_AXES}, "one_sided")["a"]
    assert half.dtype == torch.bfloat16
    assert half.tolist() == [0.0, -3.0, 5.0]


def test_readings_of_rows_are_those_of_each_row(bases: Bases, rows: dict[str, Tensor]) -> None:
    rows = {module: many.clone() for module, many in rows.items()}
    for many in rows.values():
        many[2] = 0
    means = {module: many[0] + many[1] for module, many in rows.items()}
    shares, cosines = alignment_rows(rows, bases), cosine_rows(rows, means)
    for row in range(4):
        one = {module: many[row] for module, many in rows.items()}
        assert float(shares[row]) == pytest.approx(alignment(one, bases), abs=1e-6)
        assert float(cosines[row]) == pytest.approx(cosine(one, means), abs=1e-6)
    assert shares[2] == cosines[2] == 0
    assert 0.1 < float(shares[0]) < 1
    assert float(cosines[0]) > 0.5


@pytest.mark.parametrize("gate", GATES)
def test_a_matched_overshoot_takes_as_much_as_the_reference_would(
    gate: Gate, bases: Bases, rows: dict[str, Tensor]
) -> None:
    gradients = {module: many[0] for module, many in rows.items()}
    small = {module: basis[:1] for module, basis in bases.items()}
    own = removed_share(gradients, erase_all(gradients, small, gate))
    wanted = removed_share(gradients, erase_all(gradients, bases, gate))
    assert own < 0.8 * wanted
    overshoot = matched_overshoot(gradients, small, bases, gate)
    matched = erase_all(gradients, small, gate, overshoot)
    assert removed_share(gradients, matched) == pytest.approx(wanted, rel=1e-5)
    nothing = {module: basis[:0] for module, basis in bases.items()}
    assert matched_overshoot(gradients, nothing, bases, gate) == 1.0


# ---------------------------------------------------------------- the overlap of two frames


def test_overlap_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    x, y, z = torch.eye(3)
    turned = torch.stack([math.cos(0.3) * x + math.sin(0.3) * z])
    assert basis_overlap({"a": x[None]}, {"a": turned}) == pytest.approx(math.cos(0.3) ** 2)
    assert basis_overlap({"a": x[None]}, {"a": z[None]}) == 0.0
    # One axis of two stays, the other is turned away: the angles are 0 and 90 degrees.
    assert basis_overlap({"a": torch.stack([x, y])}, {"a": torch.stack([y, z])}) == pytest.approx(0.5)
    # A turn, or a change of sign, within the span is none.
    plane = torch.stack([(x + y) / math.sqrt(2), (y - x) / math.sqrt(2)])
    assert basis_overlap({"a": torch.stack([x, y])}, {"a": -plane}) == pytest.approx(1.0)
    # Fewer axes inside the span of more; modules count by their axes; one without axes does not.
    assert basis_overlap({"a": x[None]}, {"a": plane}) == pytest.approx(1.0)
    old = {"a": torch.stack([x, y]), "b": x[None], "c": x[None][:0]}
    assert basis_overlap(old, {"a": plane, "b": z[None], "c": z[None]}) == pytest.approx(2 / 3)
    assert basis_overlap({"c": x[None][:0]}, {"c": z[None]}) == 1.0


def test_overlap_of_random_spans_is_k_over_r() -> None:
    draws = generator(3)
    overlaps = [basis_overlap({"a": haar_basis(4, 20, draws)}, {"a": haar_basis(4, 20, draws)}) for _ in range(200)]
    assert sum(overlaps) / 200 == pytest.approx(4 / 20, rel=0.05)


def test_a_gradient_inside_the_span_is_not_blown_up_from_its_rounding() -> None:
    """What is left of it is noise of 1e-7; rescaled to the old length it would be an update in a random direction."""
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(16, generator=generator)
    left = erase(gradient, haar_basis(16, 16, generator), "both_sides", preserve_magnitude=True)
    assert left.norm() < 1e-4 * gradient.norm()


class TestDevices:
    """Tensors that only pretend to lie on a GPU: an operation over two devices fails as it does there."""

    @pytest.fixture(autouse=True)
    def _fake(self) -> Iterator[None]:
        with FakeTensorMode():
            yield

    def test_the_overlap_of_a_fresh_basis_with_one_that_has_been_in_use(self) -> None:
        used, fresh = torch.empty(2, 5, device="cuda"), torch.empty(2, 5)
        assert shared_energy(used, fresh).device.type == "cuda"

    def test_a_projection_stays_where_the_gradients_are(self) -> None:
        gradients, frames = {"m": torch.empty(5, device="cuda")}, Frames({"m": torch.empty(2, 5)})
        erased = erase_all(gradients, frames.on(torch.device("cuda", 0)), "one_sided")
        assert erased["m"].device.type == "cuda"
