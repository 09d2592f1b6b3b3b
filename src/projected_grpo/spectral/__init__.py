"""Spectral adapters: PEFT's method "spectral", which trains a weight in the coordinates of its own SVD.

Importing this package registers the method: from then on `get_peft_model`, `PeftModel.from_pretrained` and
the Auto classes know it. `spectral_layers` and `deltas` list adapted modules and trained vectors by name.
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import register_peft_method

from projected_grpo.spectral.basis import Basis, svd_basis
from projected_grpo.spectral.config import SPECTRAL, SpectralConfig
from projected_grpo.spectral.factors import Factors
from projected_grpo.spectral.gradients import Finalized, GradientCollector, RowGradients, finalize_gradients
from projected_grpo.spectral.layer import SpectralLayer, SpectralLinear
from projected_grpo.spectral.model import SpectralModel
from projected_grpo.spectral.names import activate, deltas, spectral_layers

__all__ = [
    "SPECTRAL",
    "Basis",
    "Factors",
    "Finalized",
    "GradientCollector",
    "RowGradients",
    "SpectralConfig",
    "SpectralLayer",
    "SpectralLinear",
    "SpectralModel",
    "activate",
    "deltas",
    "finalize_gradients",
    "spectral_layers",
    "svd_basis",
]

if SPECTRAL not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(
        name="spectral", config_cls=SpectralConfig, model_cls=SpectralModel, prefix=SpectralModel.prefix
    )
