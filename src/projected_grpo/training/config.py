"""GRPOConfig with every default that would change the recipe set by name.

TRL's defaults are bf16, gradient checkpointing, linear decay, loss `dapo`, group-scaled rewards, clipping at 1.0 and
vLLM importance correction; none of them is what a run here wants, and none of them says so.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from trl import GRPOConfig

from projected_grpo.errors import LabError
from projected_grpo.policy import device_of
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.grpo import GrpoSettings


def grpo_config(
    settings: GrpoSettings, compute: ComputeSettings, seed: int, output_dir: Path, processes: int = 1
) -> GRPOConfig:
    """One optimizer step = one batch of prompts x samples completions, on-policy, Dr. GRPO loss, constant rate.

    The batch is dealt over `processes` in equal shares, each share over as many passes as `compute.micro_batch` makes
    of it. Logits need no setting: TRL computes log-probabilities in chunks of tokens and never holds a batch of them.

    Raises:
        LabError: micro_batch does not divide a process's share; there is no such device, or several and no launcher.
    """
    device = device_of(compute)
    if device.type == "cuda" and torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        rule = f"must be set where a process sees several GPUs ({torch.cuda.device_count()} here): one trains on one"
        fix = "set configs/accelerate/eight_gpus.yaml to use all, or hide the others with CUDA_VISIBLE_DEVICES=0"
        raise LabError(setting="launcher", value=None, rule=rule, fix=fix)
    share = settings.prompts * settings.samples // processes
    batch = compute.micro_batch or share
    if share % batch:
        rule = f"must divide the completions of a step that each of {processes} processes has ({share})"
        raise LabError(setting="compute.micro_batch", value=batch, rule=rule, fix="set a divisor, or null")
    return GRPOConfig(
        output_dir=str(output_dir),
        seed=seed,
        data_seed=seed,
        max_steps=settings.steps,
        num_train_epochs=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=share // batch,
        steps_per_generation=share // batch,  # all passes of a step are over what it sampled
        num_generations=settings.samples,
        num_iterations=1,
        shuffle_dataset=False,  # the dataset is already the order of the run, see `curriculum`
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=1.0,
        top_k=0,
        loss_type="dr_grpo",  # sum over tokens / (batch x max_completion_length), no length or variance scaling
        scale_rewards="none",
        beta=settings.kl_beta,
        importance_sampling_level="token",
        mask_truncated_completions=False,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        optim="adamw_torch",
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        weight_decay=settings.weight_decay,
        max_grad_norm=0.0,  # clipping comes after the projection, in `training.hooks`
        bf16=False,
        fp16=False,
        use_cpu=device.type == "cpu",
        gradient_checkpointing=compute.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if compute.checkpointing else None,
        ddp_find_unused_parameters=False,  # every delta has a gradient in every step
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        save_strategy="steps",
        save_steps=settings.save_every,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must stop the run, not be averaged away
        report_to=[],
        disable_tqdm=True,
        log_completions=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
