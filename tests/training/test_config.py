"""Every setting of GRPOConfig that decides the recipe, as it is after TRL has resolved it.

TRL's own choices change with its version and with the hardware; none of them may reach a run unseen.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from trl import GRPOConfig

from projected_grpo.errors import LabError
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.training.config import grpo_config

SETTINGS = GrpoSettings(
    steps=41,
    prompts=5,
    samples=7,
    max_new_tokens=61,
    temperature=0.9,
    learning_rate=0.013,
    adam_beta1=0.81,
    adam_beta2=0.97,
    weight_decay=0.02,
    kl_beta=0.03,
    max_grad_norm=0.4,
    reward_format=0.5,
    reward_paid=3.0,
    save_every=11,
    measure_k=8,
    rollout_gradients=True,
    probe_every=0,
)  # no two alike, none a default: a mix-up shows

COMPUTE = ComputeSettings(
    device="cpu", dtype="float32", micro_batch=None, generate_batch=9, checkpointing=False, keep_factors=False,
    factors="device",
)  # fmt: skip

FROM_SETTINGS = {
    "max_steps": 41,
    "per_device_train_batch_size": 35,
    "generation_batch_size": 35,
    "num_generations": 7,
    "max_completion_length": 61,
    "temperature": 0.9,
    "learning_rate": 0.013,
    "adam_beta1": 0.81,
    "adam_beta2": 0.97,
    "weight_decay": 0.02,
    "beta": 0.03,
    "save_steps": 11,
    "seed": 3,
    "data_seed": 3,
}

RECIPE = {
    # device, precision and memory: CPU, full precision, every activation kept (recomputing fires forward hooks twice)
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "gradient_checkpointing": False,
    "cast_lm_head_to_fp32": False,
    "torch_compile": False,
    "use_liger_kernel": False,
    # one optimizer step per batch, on-policy
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "num_train_epochs": 1,
    "shuffle_dataset": False,
    "remove_unused_columns": False,
    "dataloader_num_workers": 0,
    "auto_find_batch_size": False,
    # sampling: the policy's own distribution
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "use_vllm": False,
    "use_transformers_continuous_batching": False,
    # loss: Dr. GRPO, nothing scaled, nothing masked, no correction
    "loss_type": "dr_grpo",
    "scale_rewards": "none",
    "reward_weights": None,
    "multi_objective_aggregation": "sum_then_normalize",
    "importance_sampling_level": "token",
    "vllm_importance_sampling_correction": False,
    "off_policy_mask_threshold": None,
    "mask_truncated_completions": False,
    "top_entropy_quantile": 1.0,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "sync_ref_model": False,
    "delta": None,
    # optimizer: AdamW at a constant rate; clipping is ours, after the projection
    "optim": "adamw_torch",
    "adam_epsilon": 1e-8,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0,
    "max_grad_norm": 0.0,
    "neftune_noise_alpha": None,
    # resume points hold optimizer and random state, and the newest two are kept
    "save_strategy": "steps",
    "save_only_model": False,
    "save_total_limit": 2,
    "ignore_data_skip": False,
    "load_best_model_at_end": False,
    # a row of figures every step, to our log and nowhere else; a loss that is not finite is shown as it is
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "report_to": [],
    "push_to_hub": False,
    "disable_tqdm": True,
    "log_completions": False,
    "eval_strategy": "no",
    # over several processes: none looks for deltas without a gradient, all have one
    "ddp_find_unused_parameters": False,
}

# What else differs from TRL's declared defaults: it changes no number on one CPU process.
HARMLESS = {
    "output_dir",
    "accelerator_config",
    "dataloader_pin_memory",
    "debug",
    "pad_to_multiple_of",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> GRPOConfig:
    return grpo_config(SETTINGS, COMPUTE, seed=3, output_dir=tmp_path_factory.mktemp("config"))


def test_the_recipe_is_set_whatever_trl_would_choose(config: GRPOConfig) -> None:
    assert {name: getattr(config, name) for name in RECIPE} == RECIPE


def test_every_setting_reaches_its_field(config: GRPOConfig) -> None:
    assert {name: getattr(config, name) for name in FROM_SETTINGS} == FROM_SETTINGS


def test_nothing_else_deviates_from_trl(config: GRPOConfig) -> None:
    """A new deviation has to be added to the tables above, with its reason."""
    deviating = {
        field.name
        for field in dataclasses.fields(GRPOConfig)
        if getattr(config, field.name) != _default(field)  # type: ignore[arg-type]
    }
    assert deviating - FROM_SETTINGS.keys() - RECIPE.keys() - HARMLESS == set()


def test_checkpoints_go_where_the_run_says(tmp_path: Path) -> None:
    assert grpo_config(SETTINGS, COMPUTE, seed=3, output_dir=tmp_path).output_dir == str(tmp_path)


# ---------------------------------------------------------------- in portions, and over processes


@pytest.mark.parametrize(("micro_batch", "processes", "passes"), [(7, 1, 5), (35, 1, 1), (None, 5, 1), (1, 5, 7)])
def test_a_step_is_dealt_over_processes_and_passes(
    tmp_path: Path, micro_batch: int | None, processes: int, passes: int
) -> None:
    compute = COMPUTE.model_copy(update={"micro_batch": micro_batch})
    config = grpo_config(SETTINGS, compute, 3, tmp_path, processes)
    assert config.per_device_train_batch_size * passes * processes == 35
    # Sampled once per step: other passes than the first would be off-policy, and their ratio no longer 1.
    assert (config.gradient_accumulation_steps, config.steps_per_generation) == (passes, passes)


def test_passes_of_unequal_size_are_refused(tmp_path: Path) -> None:
    compute = COMPUTE.model_copy(update={"micro_batch": 5})
    with pytest.raises(LabError, match=r"compute\.micro_batch: 5\n.*5 processes has \(7\)"):
        grpo_config(SETTINGS, compute, 3, tmp_path, processes=5)


def test_activations_are_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    config = grpo_config(SETTINGS, COMPUTE.model_copy(update={"checkpointing": True}), 3, tmp_path)
    # Reentrant, a block's backward pass would come in a graph of its own, and find no hooks of ours.
    assert (config.gradient_checkpointing, config.gradient_checkpointing_kwargs) == (True, {"use_reentrant": False})


def test_the_recipe_runs_where_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LabError, match=r"compute\.device: 'cuda'"):
        grpo_config(SETTINGS, COMPUTE.model_copy(update={"device": "cuda"}), 3, tmp_path)
    assert grpo_config(SETTINGS, COMPUTE.model_copy(update={"device": "auto"}), 3, tmp_path).use_cpu


def test_several_gpus_want_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(LabError, match=r"launcher: null\n.*8 here") as refusal:
        grpo_config(SETTINGS, COMPUTE.model_copy(update={"device": "auto"}), 3, tmp_path)
    assert "eight_gpus.yaml to use all, or hide the others with CUDA_VISIBLE_DEVICES=0" in refusal.value.fix
    assert "one_gpu" not in refusal.value.fix, "a file that starts one process is refused here as well"
    assert grpo_config(SETTINGS, COMPUTE, 3, tmp_path).use_cpu, "the CPU is one device"


def _default(field: dataclasses.Field) -> object:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None
