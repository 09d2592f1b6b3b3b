"""Spectral adapters: PEFT's method "spectral", which trains a weight in the coordinates of its own SVD.

Importing this package registers the method: from then on `get_peft_model`, `PeftModel.from_pretrained` and
the Auto classes know it. `spectral_layers` and `deltas` list adapted modules and trained vectors by name.
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method
from torch import nn

from projected_grpo.spectral.basis import Basis, svd_basis
from projected_grpo.spectral.config import SPECTRAL, SpectralConfig
from projected_grpo.spectral.layer import SpectralLayer, SpectralLinear
from projected_grpo.spectral.model import SpectralModel

__all__ = [
    "SPECTRAL",
    "Basis",
    "SpectralConfig",
    "SpectralLayer",
    "SpectralLinear",
    "SpectralModel",
    "deltas",
    "spectral_layers",
    "svd_basis",
]

if SPECTRAL not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(
        name="spectral", config_cls=SpectralConfig, model_cls=SpectralModel, prefix=SpectralModel.prefix
    )


def spectral_layers(model: nn.Module) -> dict[str, SpectralLayer]:
    """Adapted modules in model order, by their name in the plain model ("model.layers.0.mlp.up_proj").

    Raises:
        ValueError: the model has none.
    """
    root = model.model if isinstance(model, SpectralModel) else model
    prefix = "base_model.model."  # PEFT's; a wrapper (DDP, compile) puts its own before that
    layers = {
        name.split(prefix, 1)[-1]: module for name, module in root.named_modules() if isinstance(module, SpectralLayer)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no spectral adapter: wrap it with get_peft_model first")
    return layers


def deltas(model: nn.Module, adapter: str = "default") -> dict[str, nn.Parameter]:
    """The trained vectors (r,) of one adapter, by module name, in the order of the model.

    Raises:
        ValueError: no module has an adapter of that name.
    """
    layers = spectral_layers(model)
    holders = {name: layer for name, layer in layers.items() if adapter in layer.spectral_delta}
    if not holders:
        known = sorted({name for layer in layers.values() for name in layer.spectral_delta})
        raise ValueError(f"no adapter {adapter!r} in this model; it has {known}")
    return {name: layer.spectral_delta[adapter] for name, layer in holders.items()}
