"""`scales.<scale>.compute`: where the model lives, in which precision, and in which portions it works."""

from __future__ import annotations

from typing import Literal

from projected_grpo.settings.section import Count, Section


class ComputeSettings(Section):
    """Speed and memory. Another device, precision or portion also rounds differently, so a result depends on them."""

    device: Literal["auto", "cpu", "cuda"]
    """where the model lives; auto: a CUDA device where there is one"""

    dtype: Literal["float32", "bfloat16"]
    """of the frozen weights, their factors and the activations; delta, its gradient and its moments are float32"""

    micro_batch: Count | None
    """completions in one forward and backward pass of a process, in training and in extraction; a step adds up as many
    passes as it takes. A divisor of what each process has of a step; null: all at once (20 in extraction)"""

    generate_batch: Count | None
    """rollouts that a process samples together: what the cache of keys and values must hold; null: all at once"""

    checkpointing: bool
    """compute the activations of each block anew in the backward pass instead of keeping them"""

    keep_factors: bool
    """keep the singular vectors of the base in the scratch store (twice its size on disk) instead of computing them at
    each start; from 100 M parameters on that takes minutes"""
