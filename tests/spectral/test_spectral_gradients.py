"""Gradients by source and by rollout, and the way from backward to the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo_ranks import in_ranks, join
from peft import PeftModel, get_peft_model
from tiny_qwen3 import NAMES, MakeAdapted, perturb, tiny_qwen3, with_quarantine
from torch import Tensor, nn

from projected_grpo.spectral import (
    GradientCollector,
    RowGradients,
    SpectralConfig,
    deltas,
    finalize_gradients,
    spectral_layers,
)
from projected_grpo.spectral.kernels import Shape

SOURCES = torch.tensor([1, 0, 0, 1, 0])
Forms = Callable[[bool], None]


@pytest.fixture
def batch() -> Tensor:
    return torch.randint(1, 63, (5, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def pin_dense(monkeypatch: pytest.MonkeyPatch) -> Forms:
    """Every gradient in the dense form, or every one in the tokenwise."""
    return lambda dense: monkeypatch.setattr(Shape, "dense_is_cheaper", lambda *_: dense)


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)


def reference(model: PeftModel, ids: Tensor) -> dict[str, Tensor]:
    """The gradient in delta space from the dense gradient of a plain model's weights, summed over `ids`."""
    plain = tiny_qwen3()
    for name, layer in spectral_layers(model).items():
        with torch.no_grad():
            plain.get_submodule(name).weight += sum(layer.get_delta_weight(x) for x in layer.active_adapters)
    losses(plain, ids).sum().backward()
    return {
        name: (layer.U.T @ plain.get_submodule(name).weight.grad @ layer.Vh.T).diagonal()
        for name, layer in spectral_layers(model).items()
    }


def check(found: Tensor, wanted: Tensor) -> None:
    scale = wanted.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, wanted / scale, atol=1e-5, rtol=0)


# ---------------------------------------------------------------- both modes, both forms


@pytest.mark.parametrize("settings", [{"mode": "folded"}, {"mode": "factored"}, {"mode": "factored", "rank": 5}])
@pytest.mark.parametrize("dense", [True, False])
def test_rows_and_sources_are_the_gradients_of_each_alone(
    make_adapted: MakeAdapted, batch: Tensor, pin_dense: Forms, settings: dict[str, object], dense: bool
) -> None:
    pin_dense(dense)
    model = make_adapted(**settings)
    rows = [reference(model, batch[i : i + 1]) for i in range(len(batch))]
    for rollouts in (False, True):
        model.zero_grad()
        with GradientCollector(model, rollouts=rollouts, sources=3) as collector:
            collector.rows(SOURCES)
            losses(model, batch).sum().backward()
        by_source, by_rollout = collector.by_source(), collector.by_rollout()
        assert list(by_source) == NAMES
        assert list(by_rollout) == (NAMES if rollouts else [])
        for name, delta in deltas(model).items():
            wanted = torch.stack([row[name] for row in rows])
            check(by_source[name][0], wanted[SOURCES == 0].sum(0))
            check(by_source[name][1], wanted[SOURCES == 1].sum(0))
            assert (by_source[name][2] == 0).all()
            check(by_source[name].sum(0), delta.grad)
            check(delta.grad, wanted.sum(0))
            if rollouts:
                check(by_rollout[name], wanted)
                check(by_rollout[name].sum(0), delta.grad)


@pytest.mark.parametrize("settings", [{"mode": "folded"}, {"mode": "factored"}])
def test_a_batch_in_parts_adds_up_and_keeps_its_order(
    make_adapted: MakeAdapted, batch: Tensor, settings: dict[str, object]
) -> None:
    whole, parts = make_adapted(**settings), make_adapted(**settings)
    with GradientCollector(whole, rollouts=True, sources=2) as together:
        together.rows(SOURCES)
        losses(whole, batch).sum().backward()
    with GradientCollector(parts, rollouts=True, sources=2) as apart:
        for rows in (slice(0, 2), slice(2, 5)):
            apart.rows(SOURCES[rows])
            losses(parts, batch[rows]).sum().backward()
        with torch.no_grad():
            parts(input_ids=batch[:1])  # generation between them is nobody's row
    for name in NAMES:
        check(apart.by_source()[name], together.by_source()[name])
        check(apart.by_rollout()[name], together.by_rollout()[name])
    apart.clear()
    assert apart.by_rollout() == {}
    assert all((rows == 0).all() for rows in apart.by_source().values())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("settings", [{"mode": "folded"}, {"mode": "factored"}])
def test_checkpointing_runs_forward_twice_and_counts_once(
    make_adapted: MakeAdapted, batch: Tensor, settings: dict[str, object], reentrant: bool
) -> None:
    plain, saving = make_adapted(**settings).train(), make_adapted(**settings).train()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    found = []
    for model in (plain, saving):
        with GradientCollector(model, rollouts=True, sources=2) as collector:
            collector.rows(SOURCES)
            losses(model, batch).sum().backward()
        found.append(collector)
    for name in NAMES:
        check(found[1].by_source()[name], found[0].by_source()[name])
        check(found[1].by_rollout()[name], found[0].by_rollout()[name])
        check(deltas(saving)[name].grad, deltas(plain)[name].grad)


def test_a_bfloat16_model_adds_up_in_float32(batch: Tensor) -> None:
    model = get_peft_model(tiny_qwen3().bfloat16(), SpectralConfig(task_type="CAUSAL_LM"))
    perturb(model)
    exact = reference(model, batch)
    with GradientCollector(model, rollouts=True, sources=2) as collector:
        collector.rows(SOURCES)
        losses(model, batch).sum().backward()
    for name, delta in deltas(model).items():
        rows = collector.by_rollout()[name]
        assert rows.dtype == delta.grad.dtype == torch.float32
        check(rows.sum(0), delta.grad)
        check(collector.by_source()[name].sum(0), delta.grad)
        assert torch.nn.functional.cosine_similarity(delta.grad, exact[name], dim=0) > 0.98


def test_row_gradients_leave_the_parameters_alone(make_adapted: MakeAdapted, batch: Tensor) -> None:
    model = make_adapted()
    with GradientCollector(model, sources=1) as outer:
        with RowGradients(spectral_layers(model)) as inner:
            torch.autograd.grad(losses(model, batch).sum(), list(deltas(model).values()))
        assert all(delta.grad is None for delta in deltas(model).values())
        losses(model, batch[:2]).sum().backward()
    wanted = reference(model, batch[3:4])
    assert list(inner.rows) == NAMES
    for name, delta in deltas(model).items():
        check(inner.rows[name][3], wanted[name])
        check(outer.by_source()[name][0], delta.grad)  # deaf while another listened
    assert all(layer.collector is None for layer in spectral_layers(model).values())


def test_nothing_is_computed_that_nobody_asks_for(
    make_adapted: MakeAdapted, batch: Tensor, pin_dense: Forms, monkeypatch: pytest.MonkeyPatch
) -> None:
    from projected_grpo.spectral import kernels

    pin_dense(True)
    calls: list[str] = []
    for kind in ("dense_gradient", "tokenwise_gradient"):
        real = getattr(kernels, kind)
        monkeypatch.setattr(kernels, kind, lambda *args, kind=kind, real=real: (calls.append(kind), real(*args))[1])
    model = make_adapted()
    losses(model, batch).sum().backward()
    assert calls == ["dense_gradient"] * len(NAMES)
    calls.clear()
    with RowGradients(spectral_layers(model)):
        losses(model, batch).sum().backward()
    assert calls == ["tokenwise_gradient"] * len(NAMES)
    calls.clear()
    for delta in deltas(model).values():
        delta.requires_grad_(False)
    model.enable_input_require_grads()
    losses(model, batch).sum().backward()
    assert calls == []


def test_bad_partitions_are_refused(make_adapted: MakeAdapted, batch: Tensor) -> None:
    model = make_adapted()
    with pytest.raises(ValueError, match="sources must be a count, 0 for none; got -1"):
        GradientCollector(model, sources=-1)
    with GradientCollector(model, sources=2) as collector:
        with pytest.raises(ValueError, match=r"0 \.\. 1; got \[-1, 2\]"):
            collector.rows([0, 2, -1])
        with pytest.raises(ValueError, match="one integer per row"):
            collector.rows(torch.zeros(2, 2, dtype=torch.long))
        collector.rows([0, 1])
        with pytest.raises(ValueError, match=r"q_proj got 5 rows, the partition has 2"):
            losses(model, batch)


# ---------------------------------------------------------------- finalize


def test_finalize_transforms_then_clips_then_writes(make_adapted: MakeAdapted, batch: Tensor) -> None:
    model = with_quarantine(make_adapted())
    losses(model, batch).sum().backward()
    plain = {name: delta.grad.clone() for name, delta in deltas(model).items()}
    total = torch.cat(list(plain.values())).norm().item()

    def split(gradients: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        shares = {"default": 0.8, "quarantine": 0.6}
        return {adapter: {n: share * g for n, g in gradients.items()} for adapter, share in shares.items()}

    result = finalize_gradients(model, transform=split, max_norm=total / 2)
    assert result.norm_before == pytest.approx(total)
    assert result.norm_after == pytest.approx(total)  # of both parts together: .8^2 + .6^2 = 1
    assert result.clip == pytest.approx(0.5)
    for name, gradient in plain.items():
        assert torch.equal(result.before[name], gradient)
        for adapter, share in (("default", 0.4), ("quarantine", 0.3)):
            torch.testing.assert_close(result.after[adapter][name], gradient * share)
            assert torch.equal(deltas(model, adapter)[name].grad, result.after[adapter][name])
    assert result.by_source == result.by_rollout == {}

    again = finalize_gradients(model, max_norm=0)  # what stands in the first adapter, for both
    assert again.clip == 1.0
    for adapter in ("default", "quarantine"):
        assert torch.equal(deltas(model, adapter)[NAMES[0]].grad, result.after["default"][NAMES[0]])


def test_finalize_never_skips_a_module(make_adapted: MakeAdapted, batch: Tensor) -> None:
    model = make_adapted()
    with pytest.raises(RuntimeError, match=rf"no gradient in {len(NAMES)} adapted modules, first {NAMES[0]}"):
        finalize_gradients(model)
    losses(model, batch).sum().backward()
    with pytest.raises(KeyError, match=NAMES[0]):
        finalize_gradients(model, transform=lambda gradients: {"default": dict(list(gradients.items())[1:])})
    with pytest.raises(KeyError, match="default"):
        finalize_gradients(model, transform=lambda gradients: {"quarantine": gradients})


def test_a_frozen_adapter_gets_no_gradient(make_adapted: MakeAdapted, batch: Tensor) -> None:
    model = with_quarantine(make_adapted())
    for delta in deltas(model).values():
        delta.requires_grad_(False)
    losses(model, batch).sum().backward()
    result = finalize_gradients(model)
    assert all(delta.grad is None for delta in deltas(model).values())
    assert torch.equal(deltas(model, "quarantine")[NAMES[0]].grad, result.before[NAMES[0]])


# ---------------------------------------------------------------- two processes


def one_step(model: nn.Module, ids: Tensor, sources: Tensor, group: object = None) -> dict[str, Tensor]:
    with GradientCollector(model, sources=2) as collector:
        collector.rows(sources)
        losses(model, ids).sum().backward()
    keep_half = {name: torch.arange(delta.numel()) % 2 for name, delta in deltas(model).items()}
    result = finalize_gradients(
        model,
        collector,
        transform=lambda gradients: {"default": {name: keep_half[name] * g for name, g in gradients.items()}},
        max_norm=1.0,
        group=group,
    )
    flat = torch.cat([delta.grad for delta in deltas(model).values()])
    return {"delta": flat, "sources": torch.cat([rows.flatten() for rows in result.by_source.values()])}


def one_of_two(index: int, count: int, port: int, folder: str, ids: Tensor) -> None:
    join(index, count, port)
    dist.init_process_group("gloo")
    rows = slice(0, 3) if index == 0 else slice(3, 5)
    model = get_peft_model(tiny_qwen3(), SpectralConfig(task_type="CAUSAL_LM"))
    perturb(model)
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(model))
    found = one_step(model, ids[rows], SOURCES[rows], dist.group.WORLD)
    averaged = one_step(wrapped, ids[rows], SOURCES[rows])
    torch.save({"summed": found, "averaged": averaged}, f"{folder}/{index}.pt")
    dist.destroy_process_group()


def test_two_processes_make_the_step_of_one(tmp_path: Path, make_adapted: MakeAdapted, batch: Tensor) -> None:
    alone = one_step(make_adapted(), batch, SOURCES)
    in_ranks(one_of_two, str(tmp_path), batch)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        check(found["summed"]["delta"], alone["delta"])
        check(found["summed"]["sources"], alone["sources"])
        check(found["averaged"]["delta"], alone["delta"])  # the clip at norm 1 undoes the average's factor
        check(found["averaged"]["sources"], alone["sources"] / 2)
    assert alone["delta"].norm() == pytest.approx(1.0, abs=1e-5)
