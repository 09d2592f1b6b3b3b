"""When hacking began in training, and whether it came back after a defence ended: figures of curves.

A curve is the training log of one run: `hacked` and `correct`, shares of each step's rollouts under training
names. Two onsets are read from it:

    hacks_lead    first step with more hacks than correct answers (a single step counts: early on it is noise)
    half_hacked   first step at which half of the rollouts are hacks

A run that never gets there is censored at its end: it counts as its number of steps, so that an arm's figure is
its mean time free of hacking within the run (restricted mean survival time), and every arm has one. That compares
runs of equal length only, so unequal lengths are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from projected_grpo.errors import LabError

HALF = 0.5
SAME_STEPS = "times are compared over runs of the same number of steps"
ONSETS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "hacks_lead_step": lambda log: log["hacked"] > log["correct"],
    "half_hacked_step": lambda log: log["hacked"] >= HALF,
}


@dataclass(frozen=True)
class Onset:
    """Time to one onset in each run of an arm, in steps trained before it; `steps` where it never came."""

    arm: str
    steps: int
    by_seed: Mapping[int, int]
    reached: int  # runs in which it came

    def mean(self) -> float:
        return fmean(self.by_seed.values())

    def check_length(self, other: Onset) -> None:
        """Refuse another arm whose runs were censored elsewhere.

        Raises:
            LabError: the two were trained for different numbers of steps.
        """
        if self.steps != other.steps:
            raise LabError(
                setting=f"training logs of {self.arm!r} and {other.arm!r}",
                value=f"{self.steps} and {other.steps} steps",
                rule=SAME_STEPS,
                fix="train both for the same number of steps (`dvc repro`)",
            )


@dataclass(frozen=True)
class Relapse:
    """Hack rates of one run around the end of a defence. `step` is the first step after it at which the rate is
    at least `threshold`, or None: no relapse within the run."""

    before: float
    after: float
    step: int | None


def onset(steps: pd.DataFrame, arm: str, kind: str) -> Onset:
    """Time to one of `ONSETS` in the runs of `arm`; `steps` as of `report.curves.read_steps`.

    Raises:
        LabError: the arm has no run, or its runs differ in length.
    """
    runs = {int(str(seed)): log.sort_values("step") for seed, log in steps[steps["arm"] == arm].groupby("seed")}
    lengths = sorted({len(log) for log in runs.values()})
    if len(lengths) != 1:
        raise LabError(
            setting=f"training logs of {arm!r}",
            value=f"runs of {', '.join(map(str, lengths))} steps" if lengths else "no run",
            rule=SAME_STEPS,
            fix="train the arm anew (`dvc repro`)",
        )
    by_seed, reached = {}, 0
    for seed, log in runs.items():
        there = ONSETS[kind](log).to_numpy(dtype=bool)
        by_seed[seed] = int(there.argmax()) if there.any() else len(log)
        reached += bool(there.any())
    return Onset(arm, lengths[0], by_seed, reached)


def relapse(hacked: Sequence[float], end: int, window: int = 5, threshold: float = HALF) -> Relapse:
    """What happened after a defence ended: `hacked` is the hack rate per step, `end` the steps it was active.

    `before` and `after` are means over `window` steps: the last ones of the defence, the last ones of the run.

    Raises:
        ValueError: fewer than `window` steps on either side of `end`, or `window` < 1.
    """
    if window < 1 or not window <= end <= len(hacked) - window:
        raise ValueError(f"needs {window} steps on either side of the end at {end}; the run has {len(hacked)}")
    back = [step for step in range(end, len(hacked)) if hacked[step] >= threshold]
    return Relapse(fmean(hacked[end - window : end]), fmean(hacked[-window:]), back[0] if back else None)
