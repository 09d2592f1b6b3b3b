"""Folded and factored give the same model; where the factors live changes nothing but memory."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_qwen3 import NAMES, MakeAdapted, logits, perturb, tiny_qwen3, with_quarantine
from torch import Tensor, nn

from projected_grpo.spectral import Factors, SpectralConfig, SpectralLinear, activate, deltas, spectral_layers
from projected_grpo.spectral.kernels import Shape


def gradients(model: PeftModel, ids: Tensor) -> list[Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return [delta.grad.clone() for delta in deltas(model).values()]


def close(first: list[Tensor], second: list[Tensor]) -> None:
    for one, two in zip(first, second, strict=True):
        scale = two.abs().max()
        assert scale > 0
        torch.testing.assert_close(one / scale, two / scale, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- the two modes


@pytest.mark.parametrize("rank", [None, 7])
def test_both_modes_are_the_same_model(make_adapted: MakeAdapted, ids: Tensor, rank: int | None) -> None:
    folded, factored = (with_quarantine(make_adapted(mode=mode, rank=rank), mode=mode, rank=rank)
                        for mode in ("folded", "factored"))  # fmt: skip
    for model in (folded, factored):
        perturb(model, "quarantine", seed=9)
    torch.testing.assert_close(logits(factored, ids), logits(folded, ids), atol=1e-5, rtol=0)
    close(gradients(factored, ids), gradients(folded, ids))
    assert all(layer._folded is None for layer in spectral_layers(factored).values())  # no second copy of the weights
    for _ in range(3):
        for model in (folded, factored):
            optimizer = torch.optim.AdamW(deltas(model).values(), lr=0.01)
            gradients(model, ids)
            optimizer.step()
        torch.testing.assert_close(logits(factored, ids), logits(folded, ids), atol=1e-4, rtol=0)
    for model in (folded, factored):
        adapted = logits(model, ids)
        with model.disable_adapter():
            assert torch.equal(logits(model, ids), logits(tiny_qwen3(), ids))
        torch.testing.assert_close(logits(model.merge_and_unload(), ids), adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["folded", "factored"])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_input_and_bias(mode: str, bias: bool) -> None:
    torch.manual_seed(4)
    linear = nn.Linear(9, 6, bias=bias)
    layer = SpectralLinear(linear, Factors.of(linear.weight), mode)
    layer.update_layer("default")
    nn.init.normal_(layer.spectral_delta["default"])
    weight = layer.fold(layer.active_deltas)
    for shape in ((9,), (4, 9), (2, 3, 9), (2, 2, 3, 9)):
        x, upstream = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], 6)
        layer.zero_grad()
        found = torch.autograd.grad((layer(x) * upstream).sum(), [x, *([linear.bias] if bias else [])])
        wanted = torch.autograd.grad((nn.functional.linear(x, weight, linear.bias) * upstream).sum(), [x])[0]
        torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=0)
        if bias:
            torch.testing.assert_close(found[1], upstream.reshape(-1, 6).sum(0), atol=1e-5, rtol=0)


def test_factored_under_autocast_and_in_bfloat16(make_adapted: MakeAdapted, ids: Tensor) -> None:
    full = gradients(make_adapted(mode="factored"), ids)
    mixed = make_adapted(mode="factored")
    with torch.autocast("cpu", torch.bfloat16):
        halves = gradients(mixed, ids)
    low = get_peft_model(tiny_qwen3().bfloat16(), SpectralConfig(mode="factored", factors_dtype="bfloat16"))
    perturb(low)
    assert {layer.U.dtype for layer in spectral_layers(low).values()} == {torch.bfloat16}
    assert {delta.dtype for delta in deltas(low).values()} == {torch.float32}
    for found in (halves, gradients(low, ids)):
        assert torch.nn.functional.cosine_similarity(torch.cat(found), torch.cat(full), dim=0) > 0.99


def test_auto_takes_the_cheaper_mode() -> None:
    square, thin, mlp = Shape(1024, 1024, 1024), Shape(1024, 1024, 128), Shape(3072, 1024, 1024)
    assert (square.rotation, thin.rotation, mlp.rotation) == (2, 0.25, pytest.approx(4 / 3))
    assert square.mode("auto", 4096, training=True) == "folded"
    assert square.mode("auto", 256, training=True) == "factored"  # folding would cost four passes over the tokens
    assert square.mode("auto", 16, training=False) == "folded"  # generation: one of many calls on the same weight
    assert thin.mode("auto", 4096, training=True) == thin.mode("auto", 16, training=False) == "factored"
    assert Shape(1024, 1024, 256).mode("auto", 4096, training=True) == "folded"
    for mode in ("folded", "factored"):
        assert all(square.mode(mode, tokens, training=True) == mode for tokens in (1, 10_000))
    # multiplications per token and entry of W: dense 1 + r / T, tokenwise r (d_out + d_in) / (d_out d_in)
    assert square.dense_is_cheaper(4096)
    assert not square.dense_is_cheaper(1024)
    assert not mlp.dense_is_cheaper(2048)
    assert mlp.dense_is_cheaper(4096)


def test_the_mode_follows_the_call(make_adapted: MakeAdapted, monkeypatch: pytest.MonkeyPatch) -> None:
    from projected_grpo.spectral import kernels

    used: list[str] = []
    for mode in ("folded", "factored"):
        real = getattr(kernels, mode)
        monkeypatch.setattr(kernels, mode, lambda *args, mode=mode, real=real: (used.append(mode), real(*args))[1])
    model = make_adapted()
    for tokens, wanted in ((4, "factored"), (60, "folded")):
        used.clear()
        model(input_ids=torch.ones(4, tokens // 4, dtype=torch.long)).logits.sum().backward()
        assert set(used) == {wanted}


# ---------------------------------------------------------------- factors that live elsewhere


def elsewhere(home: str, folder: Path) -> dict[str, object]:
    return {"factors_device": home, "basis_cache": str(folder)}


@pytest.mark.parametrize("home", ["cpu", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_elsewhere_change_nothing(ids: Tensor, tmp_path: Path, home: str, dtype: torch.dtype) -> None:
    plain = tiny_qwen3().to(dtype)
    original = {name: value.clone() for name, value in plain.state_dict().items()}
    near = get_peft_model(copy.deepcopy(plain), SpectralConfig(mode="folded"))
    far = get_peft_model(plain, SpectralConfig(**elsewhere(home, tmp_path)))
    reference = logits(far, ids)
    optimizers = [torch.optim.AdamW(deltas(model).values(), lr=0.02, fused=True) for model in (near, far)]
    for _ in range(3):
        for model, optimizer in zip((near, far), optimizers, strict=True):
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        assert torch.equal(logits(far, ids), logits(near, ids))
    for name, delta in deltas(far).items():
        assert torch.equal(delta, deltas(near)[name])
    layer = far.get_submodule(f"base_model.model.{NAMES[0]}")
    assert layer._folded.weight.data_ptr() == layer.base_layer.weight.data_ptr()  # W' stands where W stood
    with far.disable_adapter():
        assert torch.equal(logits(far, ids), reference)
    adapted = logits(far, ids)
    assert torch.equal(adapted, logits(near, ids))
    far.merge_adapter()
    assert torch.equal(logits(far, ids), adapted)
    with far.disable_adapter():
        assert torch.equal(logits(far, ids), reference)
    assert torch.equal(logits(far, ids), adapted)
    far.unmerge_adapter()
    assert torch.equal(logits(far, ids), adapted)
    restored = far.unload().state_dict()
    assert all(torch.equal(restored[name], value) for name, value in original.items())


@pytest.mark.parametrize("home", ["cpu", "disk"])
def test_state_and_loading_see_the_plain_weight(ids: Tensor, tmp_path: Path, home: str) -> None:
    model = get_peft_model(tiny_qwen3(), SpectralConfig(**elsewhere(home, tmp_path)))
    perturb(model)
    adapted = logits(model, ids)
    key = f"base_model.model.{NAMES[0]}.base_layer.weight"
    original = tiny_qwen3().get_submodule(NAMES[0]).weight
    assert not torch.equal(model.get_parameter(key), original)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(state[key], original)
    assert torch.equal(logits(model, ids), adapted)
    state[key] = 2 * original
    model.load_state_dict(state)
    assert not torch.allclose(logits(model, ids), adapted)
    assert torch.equal(model.state_dict()[key], 2 * original)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, ids), logits(model, ids))
    torch.save(model, buffer := io.BytesIO())
    assert torch.equal(logits(torch.load(io.BytesIO(buffer.getvalue()), weights_only=False), ids), logits(model, ids))


def test_a_cast_reaches_the_plain_weight_and_not_the_factors(ids: Tensor, tmp_path: Path) -> None:
    model = get_peft_model(tiny_qwen3(), SpectralConfig(**elsewhere("cpu", tmp_path)))
    perturb(model)
    before = logits(model, ids)
    model.double()
    assert {layer.U.dtype for layer in spectral_layers(model).values()} == {torch.float32}
    torch.testing.assert_close(logits(model, ids), before.double(), atol=1e-4, rtol=0)
    assert torch.equal(
        model.state_dict()[f"base_model.model.{NAMES[0]}.base_layer.weight"],
        tiny_qwen3().get_submodule(NAMES[0]).weight.double(),
    )


def test_a_graph_of_an_earlier_step_is_refused_rather_than_wrong(ids: Tensor, tmp_path: Path) -> None:
    model = get_peft_model(tiny_qwen3(), SpectralConfig(**elsewhere("cpu", tmp_path)))
    perturb(model)
    loss = model(input_ids=ids, labels=ids).loss
    perturb(model, seed=5)
    logits(model, ids)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_factors_on_disk_are_mapped_not_read(tmp_path: Path) -> None:
    weight = torch.randn(700, 600)
    factors = Factors.of(weight, home="disk", cache=tmp_path)
    copies = factors.plain_copy(weight)
    assert torch.equal(copies, weight)
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
    assert mapped == {str(path) for path in tmp_path.glob("*.safetensors")}
    assert len(mapped) == 2


# ---------------------------------------------------------------- several adapters, progress


def test_activate_switches_several_at_once(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = make_adapted()
    for name in ("quarantine", "third"):
        model.add_adapter(name, SpectralConfig(task_type="CAUSAL_LM"))
        perturb(model, name, seed=len(name))
    activate(model, "default", "third")
    total = {name: delta + deltas(model, "third")[name] for name, delta in deltas(model).items()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"base_model.model.{name}.spectral_delta.{x}" for name in NAMES for x in ("default", "third")}
    both = logits(model, ids)
    single = make_adapted()
    with torch.no_grad():
        for name, delta in deltas(single).items():
            delta.copy_(total[name])
    torch.testing.assert_close(both, logits(single, ids), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"no adapter \['fourth'\] in this model; it has"):
        activate(model, "default", "fourth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.delete_adapter("third")
    assert next(iter(spectral_layers(model).values())).active_adapters == ["default"]
    assert not torch.equal(logits(model, ids), both)


def test_progress_is_shown_only_when_it_takes_time(capsys: pytest.CaptureFixture[str]) -> None:
    from projected_grpo.spectral.basis import svd_progress

    for after, shown in ((60.0, False), (-1.0, True)):
        with svd_progress(3, after) as advance:
            for _ in range(3):
                advance()
        out, err = capsys.readouterr()
        assert out == ""
        assert ("singular values" in err) == shown
