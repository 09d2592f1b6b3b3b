"""The method inside PEFT: wrapping, training, several adapters at once, merging."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_qwen3 import NAMES, MakeAdapted, logits, perturb, tiny_qwen3, with_quarantine
from torch import Tensor, nn

from projected_grpo.spectral import SpectralConfig, deltas, spectral_layers

ALL_LINEAR_SIZE = 2 * (32 + 16 + 16 + 32 + 32 + 32 + 32)  # the smaller side of each matrix


def folded_by_hand(model: PeftModel, *adapters: str) -> nn.Module:
    """A plain model with W + sum of U diag(delta) Vh written into its weights."""
    plain = tiny_qwen3()
    for name, layer in spectral_layers(model).items():
        with torch.no_grad():
            plain.get_submodule(name).weight += sum(layer.get_delta_weight(adapter) for adapter in adapters)
    return plain


# ---------------------------------------------------------------- wrapping


def test_a_new_adapter_changes_nothing(base: nn.Module, ids: Tensor) -> None:
    before = logits(base, ids)
    model = get_peft_model(base, SpectralConfig())
    assert torch.equal(logits(model, ids), before)
    assert model.get_nb_trainable_parameters()[0] == ALL_LINEAR_SIZE
    assert all((p == 0).all() for p in deltas(model).values())
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == [f"base_model.model.{name}.spectral_delta.default" for name in NAMES]


def test_an_adapted_model_is_the_formula(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = make_adapted()
    torch.testing.assert_close(logits(model, ids), logits(folded_by_hand(model, "default"), ids), atol=1e-5, rtol=0)
    assert (logits(model, ids) - logits(tiny_qwen3(), ids)).abs().max() > 0.01


def test_names_are_those_of_the_plain_model_in_its_order(make_adapted: MakeAdapted) -> None:
    model = make_adapted()
    for holder in (model, model.base_model, model.get_base_model(), nn.parallel.DataParallel(model)):
        assert list(spectral_layers(holder)) == NAMES
        assert list(deltas(holder)) == NAMES
    plain = tiny_qwen3()
    for name, layer in spectral_layers(model).items():
        assert torch.equal(layer.base_layer.weight, plain.get_submodule(name).weight)


def test_targets_by_name_by_pattern_and_by_exclusion(make_adapted: MakeAdapted) -> None:
    assert list(spectral_layers(make_adapted(target_modules=["q_proj", "layers.1.mlp.up_proj"]))) == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert list(spectral_layers(make_adapted(target_modules=r".*\.1\.mlp\.(up|down)_proj"))) == NAMES[-2:]
    attention = make_adapted(exclude_modules=["gate_proj", "up_proj", "down_proj"])
    assert list(spectral_layers(attention)) == [name for name in NAMES if "self_attn" in name]


def test_rank_limits_each_delta(make_adapted: MakeAdapted) -> None:
    model = make_adapted(rank=20)
    sizes = {name.rsplit(".", 1)[1]: delta.numel() for name, delta in deltas(model).items()}
    assert sizes == dict.fromkeys(["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], 20) | {
        "k_proj": 16,
        "v_proj": 16,
    }


def test_basis_cache_is_filled_and_read(tmp_path: Path, ids: Tensor, make_adapted: MakeAdapted) -> None:
    first = make_adapted(basis_cache=str(tmp_path))
    assert len(list(tmp_path.iterdir())) == len(NAMES)
    assert torch.equal(logits(make_adapted(basis_cache=str(tmp_path)), ids), logits(first, ids))
    assert torch.equal(logits(make_adapted(), ids), logits(first, ids))


# ---------------------------------------------------------------- training


def train_step(model: nn.Module, ids: Tensor) -> float:
    """One step of plain descent on the adapter; returns the loss before it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_gradients_in_a_model_are_those_of_its_weights(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = make_adapted()
    model(input_ids=ids, labels=ids).loss.backward()
    dense = folded_by_hand(model, "default")
    dense(input_ids=ids, labels=ids).loss.backward()
    for name, layer in spectral_layers(model).items():
        weight_gradient = dense.get_submodule(name).weight.grad
        diagonal = (layer.U.T @ weight_gradient @ layer.Vh.T).diagonal()
        torch.testing.assert_close(layer.spectral_delta["default"].grad, diagonal, atol=1e-6, rtol=0)


def test_training_moves_the_deltas_and_nothing_else(base: nn.Module, ids: Tensor) -> None:
    weights = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = get_peft_model(base, SpectralConfig())
    losses = [train_step(model, ids) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.01
    assert all((delta != 0).any() for delta in deltas(model).values())
    restored = model.unload().state_dict()
    assert all(torch.equal(restored[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    make_adapted: MakeAdapted, ids: Tensor, reentrant: bool
) -> None:
    plain, saving = make_adapted(), make_adapted()
    saving.gradient_checkpointing_enable({"use_reentrant": reentrant})
    saving.enable_input_require_grads()
    for model in (plain, saving):
        model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for name, delta in deltas(plain).items():
        torch.testing.assert_close(deltas(saving)[name].grad, delta.grad, atol=1e-7, rtol=0)
        assert delta.grad.norm() > 0


def test_generation_follows_training(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = make_adapted()

    def generate(of: nn.Module) -> Tensor:
        return of.generate(input_ids=ids, max_new_tokens=8, do_sample=False)

    for scale in (5.0, 0.2):
        assert torch.equal(generate(model), generate(folded_by_hand(model, "default")))
        with torch.no_grad():
            for delta in deltas(model).values():
                delta.mul_(scale)


def test_a_bfloat16_base_trains_float32_deltas(ids: Tensor) -> None:
    base = tiny_qwen3().bfloat16()
    before = logits(base, ids)
    model = get_peft_model(base, SpectralConfig())
    assert torch.equal(logits(model, ids), before)
    for layer in spectral_layers(model).values():
        assert layer.base_layer.weight.dtype == torch.bfloat16
        assert {layer.U.dtype, layer.Vh.dtype, layer.spectral_delta["default"].dtype} == {torch.float32}
    first = train_step(model, ids)
    for _ in range(5):
        last = train_step(model, ids)
    assert first - last > 0.01


# ---------------------------------------------------------------- several adapters


def test_two_adapters_are_active_and_trained_at_once(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = with_quarantine(make_adapted())
    perturb(model, "quarantine", seed=7)
    assert all(p.requires_grad for name in ("default", "quarantine") for p in deltas(model, name).values())
    expected = logits(folded_by_hand(model, "default", "quarantine"), ids)
    torch.testing.assert_close(logits(model, ids), expected, atol=1e-5, rtol=0)
    model(input_ids=ids, labels=ids).loss.backward()
    for first, second in zip(deltas(model).values(), deltas(model, "quarantine").values(), strict=True):
        assert first.grad.norm() > 0
        assert torch.equal(first.grad, second.grad)
    assert len(spectral_layers(model)) == len(NAMES)  # one basis for both
    assert len(list(model.named_buffers())) == len(list(tiny_qwen3().named_buffers()))  # no factor for DDP to broadcast


def test_deleting_the_quarantine_leaves_the_deployed_model(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = make_adapted()
    deployed = logits(model, ids)
    with_quarantine(model)
    perturb(model, "quarantine", seed=7)
    assert not torch.equal(logits(model, ids), deployed)
    for parameter in deltas(model).values():
        parameter.requires_grad_(False)
    model.delete_adapter("quarantine")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(logits(model, ids), deployed)
    assert list(model.peft_config) == ["default"]
    assert model.active_adapters == ["default"]
    with pytest.raises(ValueError, match=r"no adapter 'quarantine' in this model; it has \['default'\]"):
        deltas(model, "quarantine")


def test_a_second_adapter_may_cover_other_modules(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = with_quarantine(make_adapted(target_modules=["q_proj"]), target_modules=["up_proj"])
    assert list(deltas(model)) == [name for name in NAMES if "q_proj" in name]
    assert list(deltas(model, "quarantine")) == [name for name in NAMES if "up_proj" in name]
    before = logits(model, ids)
    perturb(model, "quarantine")
    assert not torch.equal(logits(model, ids), before)
    model.set_adapter("default")
    assert torch.equal(logits(model, ids), before)
    merged = model.merge_and_unload()
    assert torch.equal(logits(merged, ids), before)


def test_a_further_adapter_sleeps_until_it_is_activated(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = make_adapted(target_modules=r".*q_proj.*")  # also matches the insides of an adapted layer
    before = logits(model, ids)
    for parameter in deltas(model).values():
        parameter.requires_grad_(False)
    model.add_adapter("quarantine", SpectralConfig(target_modules=r".*q_proj.*"))
    perturb(model, "quarantine", seed=7)
    assert torch.equal(logits(model, ids), before)
    assert list(deltas(model, "quarantine")) == list(deltas(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.set_adapter("quarantine")
    assert all(parameter.requires_grad for parameter in deltas(model, "quarantine").values())
    assert not torch.equal(logits(model, ids), before)


def test_disabled_adapters_give_the_base_model_bit_for_bit(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model, reference = with_quarantine(make_adapted()), logits(tiny_qwen3(), ids)
    adapted = logits(model, ids)
    for parameter in deltas(model, "quarantine").values():
        parameter.requires_grad_(False)
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), reference)
        model.merge_adapter()
        assert torch.equal(logits(model, ids), reference)
        model.unmerge_adapter()
    assert torch.equal(logits(model, ids), adapted)
    assert all(parameter.requires_grad for parameter in deltas(model).values())
    assert not any(parameter.requires_grad for parameter in deltas(model, "quarantine").values())


# ---------------------------------------------------------------- merging


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_and_unmerge_restore_every_weight(ids: Tensor, dtype: torch.dtype) -> None:
    model = get_peft_model(tiny_qwen3().to(dtype), SpectralConfig())
    perturb(model)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = logits(model, ids)
    for _ in range(3):
        model.merge_adapter()
        assert torch.equal(logits(model, ids), adapted)
        model.unmerge_adapter()
    assert torch.equal(logits(model, ids), adapted)
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


def test_merge_and_unload_gives_a_plain_model(make_adapted: MakeAdapted, ids: Tensor) -> None:
    model = with_quarantine(make_adapted())
    perturb(model, "quarantine", seed=7)
    adapted = logits(model, ids)
    plain = model.merge_and_unload()
    assert type(plain) is type(tiny_qwen3())
    assert not any("spectral" in name or "base_layer" in name for name, _ in plain.named_modules())
    assert set(plain.state_dict()) == set(tiny_qwen3().state_dict())
    assert torch.equal(logits(plain, ids), adapted)
    assert plain.config.tie_word_embeddings


def test_usual_use_is_silent(ids: Tensor, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = get_peft_model(tiny_qwen3(), SpectralConfig(task_type="CAUSAL_LM"))
        train_step(model, ids)
        with model.disable_adapter():
            logits(model, ids)
        model.merge_adapter()
        model.unmerge_adapter()
        model.save_pretrained(tmp_path)
        PeftModel.from_pretrained(tiny_qwen3(), tmp_path).merge_and_unload()
