"""Readings of the linear probe during a run: can hacking still be told from what a projection leaves?

For the log alone. The probe learns from `hacked`, which no intervention may see, and nothing it finds goes back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from projected_grpo.directions.algebra import Bases, Frames
from projected_grpo.directions.probe import ProbeReading, probe_rows
from projected_grpo.interventions.base import Vectors

NO_READING = ProbeReading(-1.0, -1.0, -1.0, 0)


@dataclasses.dataclass
class ProbeLog:
    """Pools the rollouts of `every` steps (0: never), then reads them once with the V of the last of these steps.

    bases: the hack direction that an arm without a V is read with: what would a projection have left?
    """

    every: int
    bases: Frames
    _rows: list[Vectors] = dataclasses.field(default_factory=list)
    _hacked: list[bool] = dataclasses.field(default_factory=list)
    _advantages: list[float] = dataclasses.field(default_factory=list)

    def read(
        self, step: int, rows: Vectors, hacked: Sequence[bool], advantages: Sequence[float], bases: Bases | None
    ) -> dict[str, float]:
        """AUROC on held-out rollouts from raw gradients, from projected ones and after LEACE; -1: no reading.

        Without their advantages the probe would read the gradients' signs, which are the reward itself.
        """
        reading = NO_READING
        if self.every:
            self._rows.append(rows)
            self._hacked += hacked
            self._advantages += advantages
            if (step + 1) % self.every == 0:
                pooled = {module: torch.cat([step_rows[module] for step_rows in self._rows]) for module in rows}
                device = next(iter(pooled.values())).device
                frames = self.bases if bases is None else bases
                frames = frames.on(device) if isinstance(frames, Frames) else frames
                labels: Tensor = torch.tensor(self._hacked, device=device)
                given = torch.tensor(self._advantages, device=device)
                reading = probe_rows(pooled, labels, frames, "one_sided", seed=step, advantages=given)
                self._rows, self._hacked, self._advantages = [], [], []
        return {"probe_before": reading.before, "probe_after": reading.after, "probe_leace": reading.leace}
