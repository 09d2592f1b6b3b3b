"""One adapted layer: the formula, its gradient, and the folded weight that is kept between steps."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn

from projected_grpo.spectral import Factors, SpectralLinear
from projected_grpo.spectral.layer import SpectralLayer


def make_layer(
    shape: tuple[int, int] = (6, 9),
    dtype: torch.dtype = torch.float32,
    rank: int | None = None,
    bias: bool = True,
) -> SpectralLinear:
    torch.manual_seed(4)
    linear = nn.Linear(shape[1], shape[0], bias=bias, dtype=dtype).requires_grad_(False)
    layer = SpectralLinear(linear, Factors.of(linear.weight, rank))
    layer.update_layer("default")
    with torch.no_grad():
        layer.spectral_delta["default"].normal_()
    return layer


def inputs(layer: SpectralLinear, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(3, 4, layer.in_features, generator=torch.Generator().manual_seed(5)).to(dtype)


def expected(layer: SpectralLayer, x: Tensor, *adapters: str) -> Tensor:
    """The definition, per token and in float64."""
    W, U, Vh = layer.base_layer.weight.double(), layer.U.double(), layer.Vh.double()
    delta = sum(layer.spectral_delta[name].double() for name in adapters)
    y = x.double() @ W.T + ((x.double() @ Vh.T) * delta) @ U.T
    return y if layer.base_layer.bias is None else y + layer.base_layer.bias.double()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_is_the_formula(shape: tuple[int, int], rank: int | None, bias: bool) -> None:
    layer = make_layer(shape, rank=rank, bias=bias)
    assert layer.rank == (rank or min(shape))
    x = inputs(layer)
    y = layer(x)
    torch.testing.assert_close(y.double(), expected(layer, x, "default"), atol=1e-5, rtol=0)
    assert (y - layer.base_layer(x)).abs().max() > 0.1


def test_a_delta_of_zero_is_the_base_layer_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        layer = make_layer(dtype=dtype)
        nn.init.zeros_(layer.spectral_delta["default"])
        x = inputs(layer, dtype)
        assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("rank", [None, 3])
def test_gradient_is_the_rotated_diagonal_of_the_dense_gradient(rank: int | None) -> None:
    layer = make_layer(rank=rank)
    x, target = inputs(layer), torch.randn(3, 4, 6)
    ((layer(x) - target) ** 2).mean().backward()

    dense = layer.folded_weight().detach().clone().requires_grad_()
    ((torch.nn.functional.linear(x, dense, layer.base_layer.bias) - target) ** 2).mean().backward()
    assert dense.grad is not None
    diagonal = (layer.U.T @ dense.grad @ layer.Vh.T).diagonal()
    gradient = layer.spectral_delta["default"].grad
    assert gradient is not None
    torch.testing.assert_close(gradient, diagonal, atol=1e-6, rtol=0)
    assert gradient.norm() > 0.01


def test_gradient_agrees_with_finite_differences() -> None:
    layer = make_layer(dtype=torch.float64).double()
    x = inputs(layer, torch.float64).requires_grad_()
    delta = layer.spectral_delta["default"]

    def loss(values: Tensor, x: Tensor) -> Tensor:  # delta written in place, then read through the layer
        with torch.no_grad():
            delta.copy_(values)
        return layer(x).sin().sum()

    start, step = delta.detach().clone(), 1e-5
    gradient, gradient_x = torch.autograd.grad(loss(start, x), [delta, x])
    numeric = torch.stack(
        [
            (loss(start + step * unit, x) - loss(start - step * unit, x)) / (2 * step)
            for unit in torch.eye(len(start), dtype=torch.float64)
        ]
    )
    torch.testing.assert_close(gradient, numeric, atol=1e-7, rtol=0)
    with torch.no_grad():
        delta.copy_(start)
    (dense_x,) = torch.autograd.grad(expected(layer, x, "default").sin().sum(), x)
    torch.testing.assert_close(gradient_x, dense_x, atol=1e-10, rtol=0)


def test_two_active_adapters_add_up_and_receive_the_same_gradient() -> None:
    layer = make_layer()
    layer.update_layer("quarantine")
    layer.set_adapter(["default", "quarantine"])
    with torch.no_grad():
        layer.spectral_delta["quarantine"].normal_()
    x = inputs(layer)
    y = layer(x)
    torch.testing.assert_close(y.double(), expected(layer, x, "default", "quarantine"), atol=1e-5, rtol=0)
    y.sin().sum().backward()
    first, second = (layer.spectral_delta[name].grad for name in ("default", "quarantine"))
    assert first is not None
    assert torch.equal(first, second)
    layer.spectral_delta["default"].grad = None
    layer.spectral_delta["default"].requires_grad_(False)  # a frozen one still takes part in the forward pass
    assert torch.equal(layer(x), y)
    layer(x).sum().backward()
    assert layer.spectral_delta["default"].grad is None


def test_both_modes_give_the_same_bits_from_one_folding(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer()
    folds = []
    fold = SpectralLayer.fold
    monkeypatch.setattr(SpectralLayer, "fold", lambda self, deltas: (folds.append(1), fold(self, deltas))[1])
    x = inputs(layer)
    with_gradient = layer(x)
    assert with_gradient.requires_grad
    with torch.no_grad():
        without = layer(x)
        assert torch.equal(without, layer(x))
    with torch.inference_mode():
        inferred = layer(x)
    assert torch.equal(with_gradient, without)
    assert torch.equal(with_gradient, inferred)
    assert len(folds) == 1


def test_a_weight_folded_in_inference_mode_can_be_trained_through() -> None:
    layer = make_layer()
    x = inputs(layer).requires_grad_()
    with torch.inference_mode():
        layer(x)
    layer(x).sum().backward()
    assert layer.spectral_delta["default"].grad is not None


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),  # leaves version counters alone; Trainer's default
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_step_is_seen_by_both_modes(kind: str) -> None:
    layer = make_layer()
    x = inputs(layer)
    optimizer = OPTIMIZERS[kind]([layer.spectral_delta["default"]])
    with torch.no_grad():
        before = layer(x)
    layer(x).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = layer(x)
    assert (after - before).abs().max() > 0.01
    torch.testing.assert_close(after.double(), expected(layer, x, "default").detach(), atol=1e-5, rtol=0)
    assert torch.equal(layer(x), after)


def test_every_other_change_is_seen() -> None:
    layer = make_layer()
    layer.update_layer("other")
    x = inputs(layer)

    def check(*adapters: str) -> None:
        with torch.no_grad():
            torch.testing.assert_close(layer(x).double(), expected(layer, x, *adapters), atol=1e-5, rtol=0)

    check("default")
    with torch.no_grad():
        layer.spectral_delta["default"].mul_(2)  # in place
    check("default")
    layer.spectral_delta["default"].data = torch.ones(6)  # another storage
    check("default")
    layer.spectral_delta["default"] = nn.Parameter(torch.full((6,), 0.5))  # another parameter
    check("default")
    with torch.no_grad():
        layer.spectral_delta["default"].mul_(3)
    check("default")
    twin = nn.Parameter(layer.spectral_delta["default"].data)  # the same storage, counted apart
    with torch.no_grad():
        twin.mul_(2)
    layer.spectral_delta["default"] = twin
    check("default")
    layer.load_state_dict({"spectral_delta.default": torch.full((6,), -0.5)}, strict=False)
    check("default")
    nn.init.ones_(layer.spectral_delta["other"])
    layer.set_adapter(["default", "other"])  # another set of adapters
    check("default", "other")
    layer.delete_adapter("other")
    check("default")
    with torch.no_grad():
        layer.base_layer.weight.add_(1)  # the base weight
    check("default")
    layer.spectral_delta["default"].data.mul_(3)  # not counted by autograd: needs the explicit call
    layer.forget()
    check("default")


def test_a_copy_does_not_share_the_folded_weight() -> None:
    layer = make_layer()
    x = inputs(layer)
    layer(x)
    twin = copy.deepcopy(layer)
    nn.init.zeros_(twin.spectral_delta["default"])
    assert torch.equal(twin(x), layer.base_layer(x))
    torch.testing.assert_close(layer(x).double(), expected(layer, x, "default"), atol=1e-5, rtol=0)


def test_casting_or_moving_the_layer_drops_the_folded_weight() -> None:
    layer = make_layer()
    x = inputs(layer)
    single = layer(x)
    kept = weakref.ref(layer.folded_weight().untyped_storage())
    layer.double()
    gc.collect()
    assert kept() is None  # at once, not at the next forward pass: memory of the device left behind
    double = layer(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, single.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(double, expected(layer, x, "default"), atol=1e-12, rtol=0)


def test_low_precision_base_keeps_factors_and_deltas_in_float32() -> None:
    layer = make_layer((64, 48), torch.bfloat16)
    assert {layer.U.dtype, layer.Vh.dtype, layer.spectral_delta["default"].dtype} == {torch.float32}
    x = inputs(layer, torch.bfloat16)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    # W' is rounded once, from a sum made in float32
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    assert torch.equal(layer.folded_weight(), exact.to(torch.bfloat16))
    y.float().square().sum().backward()
    gradient = layer.spectral_delta["default"].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32


def test_autocast_does_not_round_the_folded_weight() -> None:
    layer = make_layer((64, 48))
    x = inputs(layer)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    gradient = layer.spectral_delta["default"].grad
    kept = layer.folded_weight().detach()
    layer.forget()
    assert kept.dtype == torch.float32
    assert torch.equal(kept, layer.folded_weight())
    layer.spectral_delta["default"].grad = None
    layer(x).square().sum().backward()
    full = layer.spectral_delta["default"].grad
    assert gradient is not None
    assert full is not None
    assert torch.nn.functional.cosine_similarity(gradient, full, dim=0) > 0.999


@pytest.mark.filterwarnings("ignore:Already following adapters were merged")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_exact_and_reversible(dtype: torch.dtype) -> None:
    layer = make_layer(dtype=dtype)
    layer.update_layer("other")
    nn.init.ones_(layer.spectral_delta["other"])
    x = inputs(layer, dtype)
    original = layer.base_layer.weight.clone()
    adapted = layer(x)
    layer.set_adapter(["default", "other"])
    both = layer(x)
    for _ in range(20):
        layer.merge(adapter_names=["default"])
        assert torch.equal(layer.base_layer(x), adapted)
        layer.merge(adapter_names=["other"])
        assert layer.merged_adapters == ["default", "other"]
        assert torch.equal(layer(x), both)
        layer.enable_adapters(False)  # the base model, though the base layer holds something else
        assert torch.equal(layer(x), torch.nn.functional.linear(x, original, layer.base_layer.bias))
        layer.enable_adapters(True)
        layer.unmerge()
        assert torch.equal(layer.base_layer.weight, original)
        assert torch.equal(layer(x), both)
    assert not layer.merged


def test_merging_takes_notice_of_what_it_cannot_do() -> None:
    layer = make_layer()
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()
    layer.merge()
    with pytest.warns(UserWarning, match="already merged"):
        layer.merge()
    layer.unmerge()
    nn.init.constant_(layer.spectral_delta["default"], float("inf"))
    original = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match=r"merging \['default'\] gives non-finite"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, original)
    assert not layer.merged


def test_a_merged_layer_can_be_cast_and_unmerged() -> None:
    layer = make_layer()
    original = layer.base_layer.weight.clone()
    layer.merge()
    layer.double().unmerge()
    assert torch.equal(layer.base_layer.weight, original.double())


def test_switching_adapters_off_and_on_keeps_them_frozen() -> None:
    layer = make_layer()
    layer.spectral_delta["default"].requires_grad_(False)
    layer.enable_adapters(False)
    layer.enable_adapters(True)
    assert not layer.spectral_delta["default"].requires_grad


def test_only_deltas_are_state() -> None:
    layer = make_layer()
    layer(inputs(layer))
    layer.merge()
    assert set(layer.state_dict()) == {"base_layer.weight", "base_layer.bias", "spectral_delta.default"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer.unmerge()
