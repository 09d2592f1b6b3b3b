from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from projected_grpo.directions.algebra import haar_basis
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


def test_the_module_with_the_fewest_axes_decides() -> None:
    direction = made()
    small = made(axes=2).modules["model.layers.1.mlp.up_proj"]
    uneven = dataclasses.replace(direction, modules={**direction.modules, "model.layers.1.mlp.up_proj": small})
    assert uneven.k_max == 2
    with pytest.raises(ValueError, match="k=3"):
        uneven.bases(3)
