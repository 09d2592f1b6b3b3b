"""The tuner: finds the target modules, checks them before touching any, and wraps them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers
from torch import nn

from projected_grpo.spectral.basis import svd_progress
from projected_grpo.spectral.config import FACTOR_DTYPES, SpectralConfig
from projected_grpo.spectral.factors import Factors, Home
from projected_grpo.spectral.layer import SpectralLayer, SpectralLinear


class SpectralModel(BaseTuner):
    """A model with spectral adapters, made by `peft.get_peft_model(model, SpectralConfig(...))`."""

    prefix = "spectral_"
    tuner_layer_cls = SpectralLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  # declared so by PEFT; targets are always given

    def _check_new_adapter_config(self, config: SpectralConfig) -> None:
        super()._check_new_adapter_config(config)
        for setting in config.shared:
            values = {name: getattr(other, setting) for name, other in self.peft_config.items()}
            if len(set(values.values())) > 1:
                raise ValueError(f"adapters of one model share a basis and so their {setting}; got {values}")

    def _prepare_model(self, peft_config: SpectralConfig, model: nn.Module) -> None:
        """Every check and every SVD comes here, before the first module is replaced: a refused model is left as it was.

        Raises:
            ValueError: a target matches nothing, or matches a module that cannot be adapted.
        """
        all_linear = isinstance(peft_config.target_modules, str)
        _maybe_include_all_linear_layers(peft_config, model)
        targets = [
            (name, module)
            for name, module in _modules_outside_adapters(model)
            if self._check_target_module_exists(peft_config, name)
        ]
        if isinstance(peft_config.target_modules, set):
            names = [name for name, _ in targets]
            if all_linear:
                peft_config.target_modules.intersection_update(names)  # less what is excluded
            _check_all_found(peft_config, names)
        owners = _weight_owners(model)
        new = {name: module for name, module in targets if not isinstance(module, SpectralLayer)}
        for name, module in new.items():
            _check_adaptable(name, module, owners)
        self._factors = _decompose_all(new, peft_config)

    def _create_and_replace(
        self,
        peft_config: SpectralConfig,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,  # noqa: ARG002
    ) -> None:
        if isinstance(target, SpectralLayer):
            target.update_layer(adapter_name)
            return
        layer = SpectralLinear(target, self._factors.pop(current_key), peft_config.forward_mode)
        layer.update_layer(adapter_name)
        self._replace_module(parent, target_name, layer, target)


def _decompose_all(modules: dict[str, nn.Module], config: SpectralConfig) -> dict[str, Factors]:
    factors = {}
    with svd_progress(len(modules)) as advance:
        for name, module in modules.items():
            weight: Any = module.weight
            factors[name] = Factors.of(
                weight,
                config.rank,
                dtype=FACTOR_DTYPES[config.factors_dtype or "float32"],
                home=cast(Home, config.factors_device),
                cache=config.basis_cache,
            )
            advance()
    return factors


def _modules_outside_adapters(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named modules, without the insides of those that are adapted already."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name and not name.startswith(inside):
            yield name, module
            if isinstance(module, BaseTunerLayer):
                inside = (*inside, f"{name}.")


def _check_all_found(config: SpectralConfig, found: list[str]) -> None:
    missing = [
        wanted
        for wanted in sorted(config.target_modules or ())
        if not any(name == wanted or name.endswith(f".{wanted}") for name in found)
    ]
    if missing:
        raise ValueError(
            f"target_modules {missing} match no module of this model "
            f"(exclude_modules={config.exclude_modules!r}): remove or correct them"
        )


def _weight_owners(model: nn.Module) -> dict[int, list[str]]:
    """id of a parameter -> names of the modules that hold it."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _check_adaptable(name: str, module: nn.Module, owners: dict[int, list[str]]) -> None:
    kind = type(module).__name__
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise ValueError(f"target module {name!r} is a {kind}: only a plain nn.Linear can be adapted")
    weight: Any = module.weight
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"target module {name!r} has a weight of {weight.dtype} {tuple(weight.shape)}: "
            "only floating-point matrices can be adapted"
        )
    if weight.is_meta:
        raise ValueError(f"target module {name!r} has no data (meta device): load its weights first")
    others = [owner for owner in owners[id(weight)] if owner != name]
    if others:
        raise ValueError(
            f"target module {name!r} shares its weight with {others}: merging one would change the other. "
            "Untie them or leave it out of target_modules"
        )
