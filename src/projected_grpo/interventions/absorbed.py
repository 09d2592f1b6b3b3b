"""Absorb: a quarantine that leans to hacking from the first step, thrown away at deployment.

    delta_quarantine = -strength * s / ||s||        s: sign of the mean pair difference, or that difference itself

with the norm over all modules together. The mean is the *gradient* of an update that rewards hacking, and descent moves
against gradients: the seed is one step of descent, with signs as Adam's first step takes it. Nothing is routed: the
more the quarantine hacks already, the less the deployed adapter gains by learning to ("absorption", Cloud et al. 2024,
arXiv 2410.04332). A seed along a control direction tells what the hack direction adds to mere displacement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from projected_grpo.directions.algebra import total_norm
from projected_grpo.interventions.base import (
    DEFAULT,
    QUARANTINE,
    Intervention,
    Parts,
    StepGradients,
    Vectors,
    Workbench,
)
from projected_grpo.interventions.quarantine import nothing
from projected_grpo.settings.section import NonNegative, Section

if TYPE_CHECKING:
    from torch import nn

NEEDS_DIRECTION = True
READS_AXES: frozenset[str] = frozenset()


class Options(Section):
    """The seed. Of the direction block nothing is used: the mean pair difference has no axes."""

    shape: Literal["sign", "mean"] = "sign"
    """what the seed lies along: the sign of every coordinate of the mean pair difference, or the difference"""

    # Of the shipped base, 64 prompts: hack .08 (strength 0), .13 (sign, 5), .14 (sign, 6 and 8); with `mean` it never
    # rises, and from 2 on the policy forgets how to solve.
    strength: NonNegative = 5.0
    """Euclidean norm of the quarantine's first delta, over all modules together; 0 with a quarantine that is not
    trained is off"""

    train_quarantine: bool = True
    """the quarantine gets the same gradient as the deployed adapter; false keeps the seed as it is"""


class Absorbed(Intervention):
    """See the module docstring."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(self, options: Options, means: Vectors, model: nn.Module) -> None:
        self.options = options
        self.along = {m: mean.sign() for m, mean in means.items()} if options.shape == "sign" else means
        self.model = model
        self.length = total_norm(self.along)
        if options.strength and not self.length:
            raise ValueError("the direction's mean pair difference is 0: there is nothing to seed the quarantine with")

    @torch.no_grad()
    def start(self) -> None:
        from projected_grpo.spectral import deltas  # brings PEFT, which checking an arm's options does not need

        if not self.options.strength:
            return
        for module, delta in deltas(self.model, QUARANTINE).items():
            delta.copy_(self.along[module] * (-self.options.strength / self.length))

    def gradient(self, gradients: StepGradients) -> Parts:
        if self.options.train_quarantine:
            return super().gradient(gradients)
        return {DEFAULT: gradients.total, QUARANTINE: nothing(gradients.total)}

    def update(self, adapter: str, update: Vectors) -> Vectors:
        if adapter == DEFAULT or self.options.train_quarantine:
            return update
        return nothing(update)  # weight decay would wear the seed away


def build(options: Options, workbench: Workbench) -> Absorbed:
    """The intervention of this family.

    Raises:
        ValueError: a seed along a mean pair difference that is 0.
    """
    assert workbench.means is not None, "the registry refuses an arm without a direction"
    return Absorbed(options, workbench.means, workbench.model)
