"""What is refused, and with which words."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from tiny_qwen3 import NAMES, MakeAdapted
from torch import Tensor, nn

from projected_grpo.spectral import SpectralConfig, spectral_layers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be an integer of at least 1, or None for all; got 0"),
        ({"rank": 2.0}, "got 2.0"),
        ({"rank": True}, "got True"),
        ({"target_modules": []}, r"target_modules must be .*; got \[\]"),
        ({"target_modules": None}, "target_modules must be .*; got None"),
        ({"target_modules": ["q_proj", 3]}, "got .'q_proj', 3"),
        ({"exclude_modules": ""}, "exclude_modules must be .*; got ''"),
        ({"basis_cache": 1}, "basis_cache must be a directory name or None; got 1"),
        ({"mode": "fused"}, "mode must be one of 'auto', 'folded', 'factored'; got 'fused'"),
        ({"factors_dtype": "int8"}, "factors_dtype must be one of None, 'bfloat16', .*; got 'int8'"),
        ({"factors_device": "cuda"}, "factors_device must be one of None, 'cpu', 'disk'; got 'cuda'"),
        ({"factors_device": "disk"}, "maps the factors from basis_cache: name a directory"),
        ({"factors_device": "cpu", "mode": "factored"}, "leave factors_device=None; got 'cpu'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpectralConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "c_attn"]}, r"\['c_attn'\] match no module"),
        ({"target_modules": ["proj"]}, r"\['proj'\] match no module"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "match no module.*exclude_modules="),
        ({"target_modules": r".*nothing.*"}, "not found in the base model"),
        ({"exclude_modules": ".*"}, "All modules were excluded|No modules were targeted"),
        (
            {"target_modules": ["q_norm"]},
            "'model.layers.0.self_attn.q_norm' is a Qwen3RMSNorm: only a plain nn",
        ),
        ({"target_modules": ["embed_tokens"]}, "'model.embed_tokens' is a Embedding"),
        ({"target_modules": ["mlp"]}, "'model.layers.0.mlp' is a Qwen3MLP"),
        (
            {"target_modules": ["q_proj", "lm_head"]},
            r"'lm_head' shares its weight with \['model.embed_tokens'\]",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_bad_targets_are_refused_before_anything_is_changed(
    base: nn.Module, settings: dict[str, object], message: str
) -> None:
    modules = dict(base.named_modules())
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, SpectralConfig(**settings))
    assert dict(base.named_modules()) == modules


def test_weights_that_are_no_matrices_of_numbers_are_refused(base: nn.Module) -> None:
    name, target = NAMES[0], ["layers.0.self_attn.q_proj"]
    linear = base.get_submodule(name)
    cases = {
        r"torch.int8 \(32, 32\)": torch.zeros(32, 32, dtype=torch.int8),
        r"torch.float32 \(1024,\)": torch.zeros(1024),
        "meta device": torch.empty(32, 32, device="meta"),
    }
    for message, weight in cases.items():
        linear.weight = nn.Parameter(weight, requires_grad=False)
        with pytest.raises(ValueError, match=f"target module '{name}' has .*{message}"):
            get_peft_model(base, SpectralConfig(target_modules=target))


def test_a_linear_layer_with_a_forward_pass_of_its_own_is_refused(base: nn.Module) -> None:
    class Quantised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.round())

    base.set_submodule(NAMES[0], Quantised(32, 32))
    with pytest.raises(ValueError, match=f"'{NAMES[0]}' is a Quantised: only a plain nn.Linear"):
        get_peft_model(base, SpectralConfig())


def test_an_unadapted_model_has_no_deltas(base: nn.Module) -> None:
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no spectral adapter"):
        spectral_layers(base)


def test_adapters_of_one_model_share_a_rank(make_adapted: MakeAdapted) -> None:
    model = make_adapted()
    with pytest.raises(ValueError, match=r"share a basis and so their rank; got .*'quarantine': 4"):
        model.add_adapter("quarantine", SpectralConfig(rank=4))
    with pytest.raises(ValueError, match=r"share a basis and so their mode; got .*'quarantine': 'factored'"):
        model.add_adapter("quarantine", SpectralConfig(mode="factored"))
    assert list(model.peft_config) == ["default"]
