"""The base model on its device and in its precision, plain or under a spectral adapter: the one place that loads it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.errors import LabError
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.spectral import SpectralConfig
from projected_grpo.storage import scratch_root


def device_of(compute: ComputeSettings) -> torch.device:
    """The device of this process: of several GPUs the one that its launcher gave it.

    Raises:
        LabError: a CUDA device is asked for and there is none.
    """
    if compute.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if compute.device == "cuda":
        rule = "needs a CUDA device, and torch finds none"
        raise LabError(setting="compute.device", value="cuda", rule=rule, fix="set auto or cpu, or see `nvidia-smi`")
    return torch.device("cpu")


def load_base(base: Path, compute: ComputeSettings) -> PreTrainedModel:
    """The plain model in the folder `base`.

    Raises:
        LabError: see `device_of`.
    """
    device = device_of(compute)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, compute.dtype))
    return model.to(device)


def load_policy(base: Path, compute: ComputeSettings) -> PreTrainedModel:
    """The model under a fresh spectral adapter on every linear layer of its blocks. Raises as `load_base`."""
    return get_peft_model(load_base(base, compute), adapter_config(compute))


def load_trained(base: Path, adapter: Path, compute: ComputeSettings) -> PreTrainedModel:
    """The model under the adapter saved in the folder `adapter`, as it is deployed. Raises as `load_base`."""
    config = SpectralConfig.from_pretrained(adapter)
    here = adapter_config(compute)  # what belongs to this machine is not saved with an adapter
    config.basis_cache, config.factors_device = here.basis_cache, here.factors_device
    return PeftModel.from_pretrained(load_base(base, compute), adapter, config=config)


def adapter_config(compute: ComputeSettings) -> SpectralConfig:
    """Of an adapter that is to be trained."""
    return SpectralConfig(
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        factors_dtype=None if compute.dtype == "float32" else compute.dtype,
        factors_device=None if compute.factors == "device" else compute.factors,
        basis_cache=str(scratch_root() / "factors") if compute.keep_factors else None,
    )


def end_tokens(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig | None) -> list[int]:
    """Token ids that end an answer: the tokenizer's, and what else the base's generation config stops at."""
    more = getattr(generation, "eos_token_id", None)
    return sorted({tokenizer.eos_token_id, *(more if isinstance(more, list) else [] if more is None else [more])})
