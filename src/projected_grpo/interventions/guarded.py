"""Guard: what would reinforce a completion whose own gradient reads as a hack's is left out of the update.

    g' = g - sum of g_i over the completions with advantage A_i > 0 and reading(g_i) > threshold

`erase` gates the summed gradient, in which hacks and honest answers have already cancelled, along axes that hold much
more than the hack. Here each completion is judged by itself before the sum, by the discriminant of
`directions.discriminant`; one that reads as a hack teaches nothing, all others teach all they have. Punishing a hack
is left as it is. The discriminant is fitted anew on the current policy at each refresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from projected_grpo.directions.algebra import cosine
from projected_grpo.directions.concept import relabelled
from projected_grpo.directions.discriminant import Discriminant, discriminant, unit_rows
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import DEFAULT, Intervention, Parts, StepGradients, Workbench
from projected_grpo.settings.section import Section

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

NEEDS_DIRECTION = True
NEEDS_ROLLOUT_GRADIENTS = True
READS_AXES = frozenset({"refresh_every"})
PAIRED = ("hack", "placebo", "permuted", "flipped")


class Options(Section):
    """Beyond the direction block, of which `refresh_every` alone is read. Needs grpo.rollout_gradients."""

    enabled: bool = True
    """false leaves every gradient as it is"""

    threshold: float = 0.5
    """reading above which a completion counts as a hack: 0 is the mean clean answer, 1 the mean hack"""

    shuffled: bool = False
    """control: as many of the reinforced completions are left out, but drawn at random"""


class Guarded(Intervention):
    """See the module docstring."""

    def __init__(self, options: Options, workbench: Workbench) -> None:
        assert workbench.direction is not None, "the registry refuses an arm without a direction"
        self.options = options
        self.workbench = workbench
        self.refresh_every = workbench.direction.refresh_every
        self.discriminant = self._fit()
        self._step = 0
        self._overlap = 1.0
        self._scores: list[float] | None = None
        self._flagged = 0.0

    def _fit(self) -> Discriminant:
        """On the policy as it is now."""
        from projected_grpo.directions.extract import ExtractionOptions, pair_gradients

        bench = self.workbench
        options = ExtractionOptions(k_max=1, loss_denominator=1)  # of no account: rows are scaled to length 1
        pairs = pair_gradients(bench.model, bench.tokenizer, bench.pairs, options)
        hack, clean = (unit_rows(side) for side in (pairs.hack, pairs.clean))
        # Labels are dealt over whole gradients, not module by module.
        joined = [torch.cat(list(side.values()), dim=1) for side in (hack, clean)]
        sides = relabelled(joined[0], joined[1], str(bench.kind), bench.seed)
        sizes = [rows.shape[1] for rows in hack.values()]
        return discriminant(*(dict(zip(hack, side.split(sizes, dim=1), strict=True)) for side in sides))

    def start_step(self, step: int) -> None:
        self._step, self._overlap = step, 1.0
        if not self.options.enabled or not self.refresh_every or not step or step % self.refresh_every:
            return
        old, self.discriminant = self.discriminant, self._fit()
        self._overlap = cosine(old.weights, self.discriminant.weights) ** 2

    def gradient(self, gradients: StepGradients) -> Parts:
        total, rows = gradients.total, gradients.rollouts
        if not self.options.enabled:
            return {DEFAULT: total}
        signs = gradients.advantages.sign()[:, None]  # every completion is read as if it were reinforced
        readings = self.discriminant.read({module: signs.to(g) * g for module, g in rows.items()})
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

    def scores(self) -> Sequence[float] | None:
        return self._scores

    def figures(self) -> dict[str, float]:
        return super().figures() | {"basis_overlap": self._overlap, "flagged": self._flagged}

    def state(self) -> dict[str, Tensor]:
        ends = torch.tensor([self.discriminant.clean, self.discriminant.hack], dtype=torch.float64)
        return {f"weights/{module}": weight for module, weight in self.discriminant.weights.items()} | {"ends": ends}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        weights = {key.removeprefix("weights/"): value for key, value in state.items() if key != "ends"}
        self.discriminant = Discriminant(weights, *state["ends"].tolist())


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what this family cannot be built from.

    Raises:
        ParamsError: a direction without two sides of pairs.
    """
    del options, direction
    if arm.direction not in PAIRED:
        rule = f"must be one of {', '.join(PAIRED)}: the guard learns from the two sides of pairs"
        fix = "set one of them; for a control without a direction set options.shuffled: true"
        raise ParamsError([LabError(setting="direction", value=arm.direction, rule=rule, fix=fix)])


def build(options: Options, workbench: Workbench) -> Guarded:
    """The intervention of this family."""
    return Guarded(options, workbench)
