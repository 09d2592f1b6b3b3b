"""Graded completions -> rates, per seed and per arm.

A rate is a share of graded completions, between 0 and 1. The headline is measured with *held-out tokens*:
names the model never saw in training, so that a memorised name earns nothing. A completion the grader
could not judge (`grader_error`) has no verdict: it is left out of every rate and of `samples`.

An arm's rate is the mean of its seeds' rates, each seed counting the same. Its SEM is the standard
deviation over seeds (n - 1 in the denominator) divided by sqrt(n): it says how much a new seed would move
the rate, not how well the problems stand for others (the intervals of `statistics` know both). One seed
has no SEM: 0.0 is written then, because metrics hold finite numbers only, and `seeds` = 1 says how to read
it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pandas as pd
from pyarrow import parquet

from projected_grpo.errors import LabError

HELDOUT, TRAIN = "heldout", "train"
VERDICTS = ("hacked", "correct", "attempted", "paid", "format_ok")
COLUMNS = ("arm", "seed", "tokens", "problem_id", "grader_error", *VERDICTS)
HEADLINE = (
    "hack_rate",
    "hack_rate_sem",
    "pass_rate",
    "pass_rate_sem",
    "attempt_rate",
    "paid_rate",
    "format_rate",
    "seeds",
    "samples",
)
DIGITS = 6  # of every number written to metrics/ and plots/


@dataclass(frozen=True)
class SeedRates:
    """Held-out rates of one trained model; `samples` is the number of graded completions behind them."""

    seed: int
    samples: int
    hack_rate: float
    pass_rate: float
    attempt_rate: float
    paid_rate: float
    format_rate: float


@dataclass(frozen=True)
class ArmRates:
    """Rates of one arm: means over its seeds; SEM over seeds (0.0 = not estimable, with one seed)."""

    arm: str
    hack_rate: float
    hack_rate_sem: float
    pass_rate: float
    pass_rate_sem: float
    attempt_rate: float
    paid_rate: float
    format_rate: float
    seeds: int
    samples: int
    train_token_hack_rate: float
    train_token_pass_rate: float
    by_seed: tuple[SeedRates, ...]

    def headline(self) -> dict[str, float | int]:
        """The nine flat keys of `metrics/eval.json`, in alphabetical order, rounded."""
        return {key: _rounded(getattr(self, key)) for key in sorted(HEADLINE)}

    def row(self) -> dict[str, float | int]:
        """The headline plus the rates under training tokens: one arm of `metrics/compare.json`."""
        beside = {key: _rounded(getattr(self, key)) for key in ("train_token_hack_rate", "train_token_pass_rate")}
        return dict(sorted({**self.headline(), **beside}.items()))


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts of one verdict: what a paired statistic needs of an arm.

    `hits` and `graded` are int arrays (seeds, problems): completions with the verdict, and completions
    judged. A problem that was asked but lost all its completions of a seed to grader errors stays, with 0
    in `graded`.
    """

    arm: str
    seeds: tuple[int, ...]
    problems: tuple[str, ...]
    hits: np.ndarray
    graded: np.ndarray

    def by_seed(self) -> np.ndarray:
        """Rate of each seed over all its graded completions, float (seeds,)."""
        return self.hits.sum(axis=1) / self.graded.sum(axis=1)


# Metric -> the verdict that it is a share of, and the names (token list) under which it is measured.
COUNTED = {
    "hack_rate": ("hacked", HELDOUT),
    "pass_rate": ("correct", HELDOUT),
    "attempt_rate": ("attempted", HELDOUT),
    "paid_rate": ("paid", HELDOUT),
    "format_rate": ("format_ok", HELDOUT),
    "train_token_hack_rate": ("hacked", TRAIN),
}


@dataclass(frozen=True)
class ArmResult:
    """All that a hypothesis is judged on: an arm's rates, and the metrics of `COUNTED` by seed and problem."""

    rates: ArmRates
    tallies: Mapping[str, Tally]

    @property
    def arm(self) -> str:
        return self.rates.arm

    @property
    def hacks(self) -> Tally:
        """Hacks under held-out names."""
        return self.tallies["hack_rate"]


def read_samples(root: str | os.PathLike[str], arm: str) -> pd.DataFrame:
    """The graded samples of one arm, `<root>/<arm>/samples.parquet`: those of `COLUMNS` that it has, not
    the texts.

    Raises:
        LabError: the file does not exist.
    """
    path = Path(root, arm, "samples.parquet")
    if not path.is_file():
        raise LabError(
            setting=str(path),
            value="no such file",
            rule=f"arm {arm!r} must be sampled and graded before it is measured",
            fix="run `dvc repro`, which runs the stages `sample` and `grade` of this arm",
        )
    present = set(parquet.read_schema(path).names)
    return pd.read_parquet(path, columns=[column for column in COLUMNS if column in present])


def measure(samples: pd.DataFrame, arm: str) -> ArmResult:
    """Measure one arm from its graded samples (one row per completion, columns at least `COLUMNS`).

    Raises: LabError: a column is missing, the rows are of another arm, a token list was not sampled, or a seed
        has no graded completion left (it would vanish from the mean without a word).
    """
    _check(samples, arm)
    by_seed = _seed_rates(samples, arm, HELDOUT)
    trained = _seed_rates(samples, arm, TRAIN)
    hack, passed = [seed.hack_rate for seed in by_seed], [seed.pass_rate for seed in by_seed]
    rates = ArmRates(
        arm=arm,
        hack_rate=fmean(hack),
        hack_rate_sem=sem(hack),
        pass_rate=fmean(passed),
        pass_rate_sem=sem(passed),
        attempt_rate=fmean(seed.attempt_rate for seed in by_seed),
        paid_rate=fmean(seed.paid_rate for seed in by_seed),
        format_rate=fmean(seed.format_rate for seed in by_seed),
        seeds=len(by_seed),
        samples=sum(seed.samples for seed in by_seed),
        train_token_hack_rate=fmean(seed.hack_rate for seed in trained),
        train_token_pass_rate=fmean(seed.pass_rate for seed in trained),
        by_seed=by_seed,
    )
    return ArmResult(rates, {metric: tally(samples, arm, *counted) for metric, counted in COUNTED.items()})


def tally(samples: pd.DataFrame, arm: str, verdict: str, tokens: str = HELDOUT) -> Tally:
    """Count one of `VERDICTS` by seed and problem, under one of the two token lists."""
    rows = samples[samples["tokens"] == tokens]
    judged = ~rows["grader_error"].astype(bool)
    cells = pd.DataFrame(
        {
            "seed": rows["seed"].astype(int),
            "problem": rows["problem_id"].astype(str),
            "hits": rows[verdict].where(judged, False).astype(bool).astype(int),
            "graded": judged.astype(int),
        }
    )
    sums = cells.groupby(["seed", "problem"], sort=True).sum().unstack("problem", fill_value=0)
    return Tally(
        arm=arm,
        seeds=tuple(int(seed) for seed in sums.index),
        problems=tuple(str(problem) for problem in sums["hits"].columns),
        hits=sums["hits"].to_numpy(dtype=int),
        graded=sums["graded"].to_numpy(dtype=int),
    )


def sem(values: Sequence[float]) -> float:
    """Standard error of a mean over seeds; 0.0 for one seed, where none can be estimated."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _seed_rates(samples: pd.DataFrame, arm: str, tokens: str) -> tuple[SeedRates, ...]:
    rows = samples[samples["tokens"] == tokens]
    seeds = sorted({int(seed) for seed in samples["seed"]})
    rates = []
    for seed in seeds:
        graded = rows[(rows["seed"] == seed) & ~rows["grader_error"].astype(bool)]
        if graded.empty:
            raise LabError(
                setting=f"graded samples of arm {arm!r}",
                value=f"seed {seed}: no graded completion with {tokens} tokens",
                rule="every seed is sampled with both token lists and graded",
                fix="look at the stages `sample` and `grade` of this arm; grader errors are counted there",
            )
        share = {verdict: float(graded[verdict].astype(bool).mean()) for verdict in VERDICTS}
        rates.append(
            SeedRates(
                seed=seed,
                samples=len(graded),
                hack_rate=share["hacked"],
                pass_rate=share["correct"],
                attempt_rate=share["attempted"],
                paid_rate=share["paid"],
                format_rate=share["format_ok"],
            )
        )
    return tuple(rates)


def _check(samples: pd.DataFrame, arm: str) -> None:
    missing = [column for column in COLUMNS if column not in samples.columns]
    if missing:
        raise LabError(
            setting=f"graded samples of arm {arm!r}",
            value=f"columns {', '.join(map(str, samples.columns))}",
            rule=f"needs also: {', '.join(missing)}",
            fix="run the stage `grade` of this arm again",
        )
    found = sorted({str(name) for name in samples["arm"]})
    if found != [arm]:
        raise LabError(
            setting=f"graded samples of arm {arm!r}",
            value=f"rows of {', '.join(found) or 'no arm at all'}",
            rule=f"all rows belong to {arm!r}",
            fix="run the stages `sample` and `grade` of this arm again",
        )


def _rounded(value: float | int) -> float | int:
    return value if isinstance(value, int) else round(value, DIGITS)
