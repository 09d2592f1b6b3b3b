"""Adapted modules and trained vectors of a model, by their names in the plain model."""

from __future__ import annotations

from torch import nn

from projected_grpo.spectral.layer import SpectralLayer
from projected_grpo.spectral.model import SpectralModel


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


def deltas_in_use(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Per module, the vector (r,) of each active adapter that is being trained, by the adapter's name.

    They stand in one sum, so backward gives all of them the same gradient.
    """
    return {
        name: {
            adapter: layer.spectral_delta[adapter]
            for adapter in layer.active_adapters
            if adapter in layer.spectral_delta and layer.spectral_delta[adapter].requires_grad
        }
        for name, layer in spectral_layers(model).items()
    }


def activate(model: nn.Module, *adapters: str) -> None:
    """Make several adapters of a PEFT model active and trainable at once, and all others neither.

    `PeftModel.set_adapter` takes one name; loading a checkpoint or adding a reference adapter goes back to one.

    Raises:
        ValueError: an adapter that the model does not have.
    """
    known = {name for layer in spectral_layers(model).values() for name in layer.spectral_delta}
    if missing := sorted(set(adapters) - known):
        raise ValueError(f"no adapter {missing} in this model; it has {sorted(known)}")
    tuner = next(module for module in model.modules() if isinstance(module, SpectralModel))
    tuner.set_adapter(list(adapters))
