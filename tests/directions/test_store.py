from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from projected_grpo.directions.algebra import haar_basis
from projected_grpo.directions.options import ExtractionOptions
from projected_grpo.directions.store import FIELDS, Direction, ModuleDirection, load_direction, save_direction

BASE = "ab" * 32


def made(name: str = "hack", axes: int = 4) -> Direction:
    generator = torch.Generator().manual_seed(0)
    modules = {
        module: ModuleDirection(
            axes=haar_basis(axes, 8, generator),
            singular_values=torch.rand(axes, generator=generator),
            mean=torch.randn(8, generator=generator),
            votes=torch.rand(axes, generator=generator),
            coordinates=torch.randn(5, axes, generator=generator),
        )
        for module in ("model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj")
    }
    return Direction(name, BASE, "cd" * 32, 0.95, modules)


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    direction = made()
    save_direction(tmp_path / "hack.safetensors", direction)
    loaded = load_direction(tmp_path / "hack.safetensors")
    for field in ("name", "base_hash", "pairs_hash", "heldout_accuracy"):
        assert getattr(loaded, field) == getattr(direction, field)
    assert set(loaded.modules) == set(direction.modules)
    for name, module in direction.modules.items():
        for field in FIELDS:
            assert torch.equal(getattr(loaded.modules[name], field), getattr(module, field)), (name, field)


def test_equal_directions_are_equal_files(tmp_path: Path) -> None:
    """Many times: an order that a hash table decides may come out right by luck."""
    contents = set()
    for number in range(20):
        path = tmp_path / f"{number}.safetensors"
        save_direction(path, made())
        contents.add(path.read_bytes())
    backwards = made()
    backwards = dataclasses.replace(backwards, modules=dict(reversed(backwards.modules.items())))
    save_direction(tmp_path / "backwards.safetensors", backwards)
    assert contents == {(tmp_path / "backwards.safetensors").read_bytes()}
    save_direction(tmp_path / "other.safetensors", made("placebo"))
    assert (tmp_path / "other.safetensors").read_bytes() not in contents


def test_a_direction_saved_anew_is_the_same_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_direction(first, made())
    save_direction(second, load_direction(first))
    assert first.read_bytes() == second.read_bytes()


def test_the_base_hash_stands_in_the_metadata_of_the_file(tmp_path: Path) -> None:
    save_direction(tmp_path / "hack.safetensors", made())
    with safe_open(str(tmp_path / "hack.safetensors"), framework="pt") as file:
        assert file.metadata()["base_hash"] == BASE


def test_another_base_is_refused() -> None:
    made().check_base(BASE)
    with pytest.raises(ValueError, match=r"'hack' was extracted from base abababababab, not 999999999999"):
        made().check_base("9" * 64)


def test_the_strongest_axes_come_first() -> None:
    direction = made()
    assert direction.k_max == 4
    for name, module in direction.modules.items():
        assert torch.equal(direction.bases(3)[name], module.axes[:3])
        assert torch.equal(direction.bases(4)[name], module.axes)
        assert torch.equal(direction.means()[name], module.mean)


def test_more_axes_than_stored_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'hack' stores 4 axes, k=5 were asked for"):
        made().bases(5)


SMALL = "model.layers.1.mlp.up_proj"
OTHER = "model.layers.0.self_attn.q_proj"


def uneven() -> Direction:
    """Two axes in one module, four in the other."""
    direction = made()
    return dataclasses.replace(direction, modules={**direction.modules, SMALL: made(axes=2).modules[SMALL]})


def test_a_module_with_fewer_axes_gives_what_it_has() -> None:
    assert uneven().k_max == 4
    assert {name: len(basis) for name, basis in uneven().bases(3).items()} == {SMALL: 2, OTHER: 3}
    with pytest.raises(ValueError, match="k=5"):
        uneven().bases(5)


def with_strengths(**strengths: list[float]) -> Direction:
    modules = {
        name: dataclasses.replace(module, singular_values=torch.tensor(strengths["up" if name == SMALL else "q"]))
        for name, module in made().modules.items()
    }
    return dataclasses.replace(made(), modules=modules)


@pytest.mark.parametrize(
    ("quantile", "left"),
    [(0.0, (3, 3)), (0.25, (3, 2)), (0.5, (3, 0)), (0.6, (3, 0)), (0.75, (2, 0)), (0.99, (1, 0))],
)
def test_a_noise_floor_drops_axes_that_are_weak_among_all_modules(quantile: float, left: tuple[int, int]) -> None:
    """That share of the eight values pooled is dropped, beyond k as well; modules may be left with no axis."""
    direction = with_strengths(up=[9.0, 7.0, 6.0, 5.0], q=[4.0, 2.0, 1.0, 0.5])
    bases = direction.bases(3, quantile)
    assert (len(bases[SMALL]), len(bases[OTHER])) == left
    for name, basis in bases.items():
        assert basis.shape[1] == 8
        assert torch.equal(basis, direction.modules[name].axes[: len(basis)])  # the strongest


def test_the_mean_difference_as_the_only_axis() -> None:
    direction = made()
    bases = direction.bases(1, mean_diff=True)
    for name, basis in bases.items():
        mean = direction.modules[name].mean
        assert torch.allclose(basis, mean[None] / mean.norm())
    flat = dataclasses.replace(direction.modules[SMALL], mean=torch.zeros(8))
    nowhere = dataclasses.replace(direction, modules={SMALL: flat})
    assert nowhere.bases(1, mean_diff=True)[SMALL].shape == (0, 8)
    with pytest.raises(ValueError, match="one axis, k=2"):
        direction.bases(2, mean_diff=True)


def test_the_recipe_travels_with_the_file(tmp_path: Path) -> None:
    recipe = ExtractionOptions(4, 64, 7, "token_mean", 0.1, True, "permuted", 5)
    save_direction(tmp_path / "a.safetensors", dataclasses.replace(made(), options=recipe))
    assert load_direction(tmp_path / "a.safetensors").options == recipe
    save_direction(tmp_path / "b.safetensors", made())
    assert load_direction(tmp_path / "b.safetensors").options is None


def test_a_module_without_axes_can_be_stored(tmp_path: Path) -> None:
    direction = made()
    bare = {name: made(axes=0).modules[name] if name == SMALL else m for name, m in direction.modules.items()}
    save_direction(tmp_path / "bare.safetensors", dataclasses.replace(direction, modules=bare))
    assert load_direction(tmp_path / "bare.safetensors").bases(2)[SMALL].shape == (0, 8)


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    save_file({"m/axes": torch.eye(2)}, tmp_path / "old.safetensors", {"direction": "{}"})
    with pytest.raises(ValueError, match=r"old.safetensors is not a direction .*m/singular_values is missing"):
        load_direction(tmp_path / "old.safetensors")
    save_file({"weight": torch.eye(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is not a direction as this version writes it"):
        load_direction(tmp_path / "model.safetensors")
