"""What a quarantine holds back: the policy as it was trained, with it, beside the deployed one, without.

As trained: shares of the training rollouts, mean over the last steps. Deployed: of held-out problems under training
names. The names are the same, the problems are not; an arm without a quarantine tells what that does. A deployed model
that can do nothing hacks less, too, so passes belong beside hacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from projected_grpo.evaluation.metrics import TRAIN, sem, tally
from projected_grpo.evaluation.statistics import check_seeds

VERDICTS = {"hack": "hacked", "pass": "correct"}  # also the names of the columns of a training log


@dataclass(frozen=True)
class HeldBack:
    """`trained` and `deployed`: hack and pass -> rate by seed."""

    trained: Mapping[str, tuple[float, ...]]
    deployed: Mapping[str, tuple[float, ...]]

    def row(self) -> dict[str, float]:
        """Shares, and in points by how much hacks fall without the quarantine."""
        hacks = zip(self.trained["hack"], self.deployed["hack"], strict=True)
        gaps = [100 * (with_it - without) for with_it, without in hacks]
        found = {"held_back_pp": fmean(gaps), "held_back_pp_sem": sem(gaps)}
        for when, rates in (("trained", self.trained), ("deployed", self.deployed)):
            for name, values in rates.items():
                found |= {f"{when}_{name}_rate": fmean(values), f"{when}_{name}_rate_sem": sem(values)}
        return found


def has_quarantine(steps: pd.DataFrame) -> bool:
    """Of one arm's training logs; one from before there were quarantines says nothing of any."""
    return "quarantine_norm" in steps and bool((steps["quarantine_norm"] > 0).any())


def held_back(samples: pd.DataFrame, steps: pd.DataFrame, arm: str, window: int) -> HeldBack:
    """Of one arm's samples and training logs. window: steps at the end of a run.

    Raises:
        LabError: samples and logs are of different seeds.
    """
    ends = {int(str(seed)): log.sort_values("step").tail(window) for seed, log in steps.groupby("seed")}
    trained, deployed = {}, {}
    for name, verdict in VERDICTS.items():
        counted = tally(samples, arm, verdict, TRAIN)
        check_seeds(f"samples of {arm}", counted.seeds, f"training logs of {arm}", sorted(ends))
        trained[name] = tuple(float(ends[seed][verdict].mean()) for seed in counted.seeds)
        deployed[name] = tuple(counted.by_seed().tolist())
    return HeldBack(trained, deployed)
