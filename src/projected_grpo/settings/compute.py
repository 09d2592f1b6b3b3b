"""`scales.<scale>.compute`: where the model lives, in which precision, and in which portions it works."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from projected_grpo.settings.section import Count, Section, broken_rule


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

    factors: Literal["device", "cpu", "disk"]
    """where the frozen U and Vh live. device: beside the weights W, with a folded copy W' of them. Else W' takes the
    place of W, which stays with U and Vh, and one matrix's at a time visit the device, in each backward pass and where
    W' is made. cpu: in the host's memory, of each process, pinned for a CUDA device; disk: mapped from the files of
    keep_factors, which all processes of a host share"""

    @model_validator(mode="after")
    def _files_to_map(self) -> Self:
        if self.factors == "disk" and not self.keep_factors:
            fix = "set compute.keep_factors: true, or factors: cpu"
            raise broken_rule("factors", "disk", "needs keep_factors, whose files are mapped", fix)
        return self
