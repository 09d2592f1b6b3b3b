"""What the arms share that judge each completion by its own gradient, with the discriminant of hacks and clean answers.

Every completion is read as if it were reinforced, so that a reading says what it is and not what it earned. The
discriminant is fitted on the policy as it is, at first and at each refresh.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from projected_grpo.directions.algebra import cosine
from projected_grpo.directions.concept import PAIRED, relabelled
from projected_grpo.directions.discriminant import Discriminant, discriminant, unit_rows
from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import Intervention, StepGradients, Workbench

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings

READS = frozenset({"refresh_every"})  # of the direction block: a discriminant has no axes


class Reader(Intervention):
    """The discriminant with its refresh, its figures and its checkpoint; `enabled` false never refreshes it."""

    def __init__(self, workbench: Workbench, enabled: bool) -> None:
        assert workbench.direction is not None, "the registry refuses an arm without a direction"
        self.workbench = workbench
        self.enabled = enabled
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
        # Axes and denominator are of no account: rows are scaled to length 1.
        options = ExtractionOptions(k_max=1, loss_denominator=1, batch_size=bench.texts_per_pass)
        pairs = pair_gradients(bench.model, bench.tokenizer, bench.pairs, options)
        hack, clean = (unit_rows(side) for side in (pairs.hack, pairs.clean))
        # Labels are dealt over whole gradients, not module by module.
        joined = [torch.cat(list(side.values()), dim=1) for side in (hack, clean)]
        sides = relabelled(joined[0], joined[1], str(bench.kind), bench.seed)
        sizes = [rows.shape[1] for rows in hack.values()]
        return discriminant(*(dict(zip(hack, side.split(sizes, dim=1), strict=True)) for side in sides))

    def _refit(self) -> Discriminant:
        """At a refresh; the policy may have more adapters by then than at the first fit."""
        return self._fit()

    def start_step(self, step: int) -> None:
        self._step, self._overlap = step, 1.0
        if not self.enabled or not self.refresh_every or not step or step % self.refresh_every:
            return
        old, self.discriminant = self.discriminant, self._refit()
        self._overlap = cosine(old.weights, self.discriminant.weights) ** 2

    def read(self, gradients: StepGradients) -> Tensor:
        """(n,): 0 is read like the mean clean answer, 1 like the mean hack; one of advantage 0 has no gradient."""
        signs = gradients.advantages.sign()[:, None]
        return self.discriminant.read({module: signs.to(g) * g for module, g in gradients.rollouts.items()})

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


def check_paired(arm: ArmSettings, fix: str = "set one of them") -> None:
    """Refuse a direction without two sides of pairs. `fix`: what to do about it.

    Raises:
        ParamsError: there is nothing to learn a discriminant from.
    """
    if arm.direction not in PAIRED:
        rule = f"must be one of {', '.join(PAIRED)}: `{arm.intervention}` learns from the two sides of pairs"
        raise ParamsError([LabError(setting="direction", value=arm.direction, rule=rule, fix=fix)])
