"""Guard: what would reinforce a completion whose own gradient reads as a hack's is left out of the update.

    g' = g - sum of g_i over the completions with advantage A_i > 0 and reading(g_i) > threshold

`erase` gates the summed gradient, in which hacks and honest answers have already cancelled, along axes that hold much
more than the hack. Here each completion is judged by itself before the sum, by the discriminant of
`directions.discriminant`; of one that reads as a hack its own term is dropped, all others keep theirs. Its reward
stays in its group's baseline: the kept terms of that group are lower by it. Punishing a hack is left as it is. The
discriminant is fitted anew on the current policy at each refresh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from projected_grpo.interventions.base import DEFAULT, Parts, StepGradients, Workbench
from projected_grpo.interventions.reading import READS, DiscriminantOptions, Reader, as_reinforced, check_paired

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

NEEDS_DIRECTION = True
NEEDS_ROLLOUT_GRADIENTS = True
READS_AXES = READS


class Options(DiscriminantOptions):
    """Beyond the direction block, of which `refresh_every` alone is read. Needs grpo.rollout_gradients."""

    enabled: bool = True
    """false leaves every gradient as it is"""

    threshold: float = 0.5
    """reading above which a completion counts as a hack: 0 is the mean clean answer, 1 the mean hack"""

    shuffled: bool = False
    """control: as many reinforced completions as this run's discriminant marks are left out, but drawn at random"""


class Guarded(Reader):
    """See the module docstring."""

    def __init__(self, options: Options, workbench: Workbench) -> None:
        super().__init__(workbench, options.enabled, options.ridge)
        self.options = options

    def gradient(self, gradients: StepGradients) -> Parts:
        total, rows = gradients.total, gradients.rollouts
        if not self.options.enabled:
            return {DEFAULT: total}
        readings = self.read(as_reinforced(gradients))
        reinforced = gradients.advantages.to(readings) > 0
        left_out = reinforced & (readings > self.options.threshold)
        if self.options.shuffled:
            left_out = self._dealt(reinforced, int(left_out.sum()))
        self._scores, self._flagged = readings.tolist(), float(left_out.double().mean())
        if not left_out.any():
            return {DEFAULT: total}
        return {DEFAULT: {module: g - rows[module][left_out].sum(0) for module, g in total.items()}}

    def _dealt(self, among: Tensor, count: int) -> Tensor:
        """`count` of the completions in `among` at random, as a mask: a function of seed and step."""
        generator = torch.Generator().manual_seed(self.workbench.seed * 1_000_003 + self._step)
        places = among.cpu().nonzero().flatten()
        chosen = torch.zeros(len(among), dtype=torch.bool)
        chosen[places[torch.randperm(len(places), generator=generator)[:count]]] = True
        return chosen.to(among.device)


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what this family cannot be built from.

    Raises:
        ParamsError: a direction without two sides of pairs.
    """
    del options, direction
    check_paired(arm, "set one of them; for a control without a direction set options.shuffled: true")


def build(options: Options, workbench: Workbench) -> Guarded:
    """The intervention of this family."""
    return Guarded(options, workbench)
