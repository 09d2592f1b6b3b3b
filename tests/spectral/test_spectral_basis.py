from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from projected_grpo.spectral import svd_basis


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("shape", [(7, 7), (5, 9), (9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_factors_rebuild_the_weight_and_are_orthonormal(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = matrix(*shape, dtype)
    u, s, vh = svd_basis(weight)
    assert u.dtype == s.dtype == vh.dtype == torch.float32
    assert (u.shape, s.shape, vh.shape) == (
        (shape[0], 5 + 2 * (shape == (7, 7))),
        (s.numel(),),
        (s.numel(), shape[1]),
    )
    torch.testing.assert_close((u * s) @ vh, weight.float(), atol=2e-6, rtol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(s.numel()), atol=1e-6, rtol=0)
    torch.testing.assert_close(vh @ vh.T, torch.eye(s.numel()), atol=1e-6, rtol=0)
    assert (s.diff() < 0).all()


def test_factors_are_rounded_from_double_precision() -> None:
    weight = matrix(40, 30)
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    basis = svd_basis(weight)
    assert torch.equal(basis.S, s.float())
    assert torch.equal(basis.U.abs(), u.abs().float())
    assert torch.equal(basis.Vh.abs(), vh.abs().float())


def test_rank_keeps_the_largest_singular_values() -> None:
    weight = matrix(6, 8)
    full, cut = svd_basis(weight), svd_basis(weight, 2)
    assert torch.equal(cut.U, full.U[:, :2])
    assert torch.equal(cut.S, full.S[:2])
    assert torch.equal(cut.Vh, full.Vh[:2])
    residual = weight - (cut.U * cut.S) @ cut.Vh
    # Eckart-Young: what is left out is the rest of the spectrum
    torch.testing.assert_close(residual.norm(), full.S[2:].norm(), atol=1e-5, rtol=0)
    assert svd_basis(weight, 100).S.numel() == 6


def test_sign_is_fixed_by_the_largest_entry_of_u() -> None:
    weight = matrix(6, 8)
    basis, flipped = svd_basis(weight), svd_basis(-weight)
    assert (basis.U.gather(0, basis.U.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(flipped.U, basis.U, atol=1e-6, rtol=0)
    torch.testing.assert_close(flipped.Vh, -basis.Vh, atol=1e-6, rtol=0)


def test_cache_is_used_and_belongs_to_one_weight_and_rank(tmp_path: Path) -> None:
    weight = matrix(6, 8)
    made, read = svd_basis(weight, None, tmp_path), svd_basis(weight.clone(), None, tmp_path)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(made, read, svd_basis(weight), strict=True))
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    svd_basis(weight, 6, tmp_path)  # the same rank as None
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [stamp]
    assert svd_basis(weight, 3, tmp_path).S.numel() == 3
    changed = weight.clone()
    changed[0, 0] += 1e-6
    svd_basis(changed, None, tmp_path)
    svd_basis(weight.reshape(8, 6), None, tmp_path)  # the same bytes in another shape
    assert len(list(tmp_path.iterdir())) == 4


def test_factors_of_a_lower_precision_are_cached_apart(tmp_path: Path) -> None:
    weight = matrix(6, 8)
    full = svd_basis(weight, None, tmp_path)
    for _ in range(2):
        low = svd_basis(weight, None, tmp_path, torch.bfloat16)
        assert torch.equal(low.U, full.U.bfloat16())
        assert torch.equal(low.Vh, full.Vh.bfloat16())
        assert torch.equal(low.S, full.S)
    assert len(list(tmp_path.iterdir())) == 2


def test_cache_holds_what_is_returned(tmp_path: Path) -> None:
    weight = matrix(6, 8)
    svd_basis(weight, None, tmp_path)
    (file,) = tmp_path.iterdir()
    svd_basis(2 * weight, None, tmp_path)
    (other,) = set(tmp_path.iterdir()) - {file}
    other.replace(file)
    assert torch.equal(svd_basis(weight, None, tmp_path).S, svd_basis(2 * weight).S)


@pytest.mark.parametrize(
    ("weight", "rank", "message"),
    [
        (torch.ones(3), None, r"matrix, got torch.float32 \(3,\)"),
        (torch.ones(3, 3, dtype=torch.int8), None, "matrix, got torch.int8"),
        (torch.ones(3, 3), 0, "got 0"),
        (torch.tensor([[1.0, float("nan")]]), None, "non-finite"),
    ],
)
def test_bad_input_is_refused(weight: Tensor, rank: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        svd_basis(weight, rank)
