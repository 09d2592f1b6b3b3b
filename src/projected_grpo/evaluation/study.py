"""The arms of one study, each beside the study's first arm: rates, differences, times, relapse, loopholes, cost.

Everything is measured as `compare` measures it (`metrics`, `comparison`, `onset`): held-out problems and tokens,
intervals for new seeds and new problems, differences paired by seed and problem. Holm's adjustment is over the arms
of one study. A study describes; it decides no claim, and its p are those of many looks at the same reference.

Relapse of a run = mean hack rate of its last `WINDOW` steps - the lowest mean of any `WINDOW` steps in a row, both
of the training rollouts. 0: the run ended where it was lowest. Of a defence it says how far hacking came back; of an
arm without one, how far it rose. It is never negative, so noise alone puts it a little above 0: read it against
another arm's, not against 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import pandas as pd

from projected_grpo.errors import LabError
from projected_grpo.evaluation.comparison import ArmComparison, compare_arms, gather, one_rate
from projected_grpo.evaluation.controls import Excess, excess_row, excesses
from projected_grpo.evaluation.held_back import HeldBack, has_quarantine, held_back
from projected_grpo.evaluation.metrics import COLUMNS, DIGITS, ArmRates, Tally, measure, sem, tally
from projected_grpo.evaluation.onset import ONSETS, Relapse, relapse
from projected_grpo.evaluation.statistics import Rate, check_pairing
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

WINDOW = 5  # steps
LEAST_DOSES = 3  # two arms that differ in a number are a comparison, not a series
SHARES = ("hack", "attempt", "pass", "format")  # of the comparison's, those that a study shows


@dataclass(frozen=True)
class LoopholeRates:
    """Shares of the completions for one loophole, under held-out tokens, with their intervals."""

    hack: Rate
    passed: Rate

    def row(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, share in (("hack", self.hack), ("pass", self.passed)):
            found |= {f"{name}_rate": share.estimate, f"{name}_ci_low": share.low, f"{name}_ci_high": share.high}
        return {key: round(value, DIGITS) for key, value in found.items()}


@dataclass(frozen=True)
class AfterEnd:
    """One run after the end of its defence. fresh_rise: by how much the hack rate of the study's first arm rose from
    its beginning over as many steps: what an undefended policy learns in that time anyway."""

    rates: Relapse
    fresh_rise: float


@dataclass(frozen=True)
class StudyArm:
    """One arm of one study.

    relapse: by seed. loopholes: rates of the completions for each loophole. ended: by seed, what happened after the
    defence's end; empty for a defence that lasts. controls: against each of its controls in the study. held: what its
    quarantine holds back; of the first arm, too, where another has one.
    """

    study: str
    arm: str
    rates: ArmRates
    compared: ArmComparison
    relapse: Mapping[int, float]
    loopholes: Mapping[str, LoopholeRates]
    ended: Mapping[int, AfterEnd] = field(default_factory=dict)
    controls: tuple[Excess, ...] = ()
    held: HeldBack | None = None

    @property
    def shares(self) -> dict[str, Rate]:
        """Each of `SHARES` with its interval."""
        return {name: self.compared.shares[name] for name in SHARES}

    @property
    def sems(self) -> Mapping[str, float]:
        """Standard errors over seeds."""
        return self.compared.sems

    def row(self) -> dict[str, float | int]:
        """Flat and finite: rates as shares, differences in points, times in steps.

        The same keys for every arm, and more for some. A defence that ends: `end_`, hack rates while training, before
        its end and at the end of the run. An arm with controls: those of `excess_row`. One with a quarantine, and the
        first arm beside it: those of `HeldBack`.
        """
        against = self.compared.row()
        found: dict[str, float | int] = {"seeds": self.rates.seeds, "samples": self.rates.samples}
        for name, share in self.shares.items():
            found |= {f"{name}_rate": share.estimate, f"{name}_rate_sem": self.sems[name]}
            found |= {f"{name}_ci_low": share.low, f"{name}_ci_high": share.high}
        found["drop_p"] = self.compared.drop.p_value() if self.compared.drop else 1.0
        kept = [f"{name}_{part}" for name in ("drop", "pass_change") for part in ("pp", "ci_low", "ci_high")]
        kept += ["drop_p_holm", *ONSETS, *(f"{kind.removesuffix('_step')}_seeds" for kind in ONSETS)]
        found |= {name: against[name] for name in kept}
        relapses = list(self.relapse.values())
        found |= {"relapse": fmean(relapses), "relapse_sem": sem(relapses)}
        if self.ended:
            runs = self.ended.values()
            before, after = ([getattr(run.rates, part) for run in runs] for part in ("before", "after"))
            found |= {"end_before": fmean(before), "end_before_sem": sem(before)}
            found |= {"end_after": fmean(after), "end_after_sem": sem(after)}
            found["end_fresh_rise"] = fmean(run.fresh_rise for run in runs)
            found["end_half_seeds"] = sum(run.rates.step is not None for run in runs)
        found |= excess_row(self.controls) if self.controls else {}
        found |= self.held.row() if self.held else {}
        return {key: round(found[key], DIGITS) for key in sorted(found)}


@dataclass(frozen=True)
class DoseSeries:
    """Arms that differ in one number of the direction block alone: (value, arm), by rising value."""

    axis: str
    doses: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Cost:
    """What the runs of an arm took beside the reference's: seconds of training steps as a ratio, the mean over seeds
    of the two runs' quotient, and the highest memory of any of its runs in MB. Both differ between equal runs."""

    study: str
    arm: str
    seconds_ratio: float
    peak_memory_mb: float
    seeds: int


def read_study_samples(graded: Path, arms: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Arm -> its graded samples, columns `metrics.COLUMNS` and `loophole`.

    Raises:
        LabError: an arm was not graded; none is left out.
    """
    found = {}
    for arm in arms:
        path = graded / arm / "samples.parquet"
        if not path.is_file():
            raise LabError(
                setting=str(path),
                value="no such file",
                rule=f"arm {arm!r} of a study must be sampled and graded before it is measured",
                fix="run `dvc repro study/dvc.yaml:table@STUDY`, with the study's name for STUDY",
            )
        found[arm] = pd.read_parquet(path, columns=[*COLUMNS, "loophole"])
    return found


def study_arms(
    study: str,
    samples: Mapping[str, pd.DataFrame],
    steps: pd.DataFrame,
    confidence: float,
    ends: Mapping[str, int] | None = None,
    links: Mapping[str, str] | None = None,
) -> list[StudyArm]:
    """Every arm of a study in the order of `samples`, whose first is the reference; `steps` as of `read_steps`.

    ends: of arms whose defence ends, the number of steps that it acted on (`ends_of`). links: control -> the arm that
    it controls (`controls_of`).

    Raises:
        LabError: arms differ in seeds, problems or steps, or a run is shorter than `WINDOW` steps.
    """
    results = {arm: measure(rows[[*COLUMNS]], arm) for arm, rows in samples.items()}
    reference = next(iter(results))
    for result in results.values():
        check_pairing(results[reference].hacks, result.hacks)
    # No claim of non-inferiority is made here, so the margin is of no consequence.
    compared = compare_arms(gather(results, steps, confidence), reference, pass_margin=0.0)
    controls = excesses(results, links or {}, confidence)
    logs = {arm: steps[steps["arm"] == arm] for arm in results}
    quarantined = {arm for arm in results if has_quarantine(logs[arm])}
    beside = {*quarantined, reference} if quarantined else set()
    found = []
    for arm, rows in samples.items():
        found.append(
            StudyArm(
                study=study,
                arm=arm,
                rates=results[arm].rates,
                compared=compared[arm],
                relapse=relapses(steps, arm),
                loopholes=loophole_rates(rows, arm, confidence),
                ended=after_the_end(steps, arm, ends[arm], reference) if ends and arm in ends else {},
                controls=controls.get(arm, ()),
                held=held_back(rows, logs[arm], arm, WINDOW) if arm in beside else None,
            )
        )
    return found


def relapses(steps: pd.DataFrame, arm: str) -> dict[int, float]:
    """Seed -> relapse of the run, a share; see the module's text.

    Raises:
        LabError: a run is shorter than `WINDOW` steps.
    """
    found = {}
    for seed, log in steps[steps["arm"] == arm].groupby("seed"):
        if len(log) < WINDOW:
            raise LabError(
                setting=f"training log of {arm!r}, seed {seed}",
                value=f"{len(log)} steps",
                rule=f"relapse is read from means over {WINDOW} steps",
                fix="train longer (grpo.steps)",
            )
        means = log.sort_values("step")["hacked"].rolling(WINDOW).mean().dropna()
        found[int(str(seed))] = float(means.iloc[-1] - means.min())
    return found


def ends_of(arms: Mapping[str, ArmSettings]) -> dict[str, int]:
    """Arm -> the steps that its defence acts on, of arms whose defence ends."""
    return {name: int(arm.options["after"]) for name, arm in arms.items() if arm.intervention == "ended"}


def after_the_end(steps: pd.DataFrame, arm: str, end: int, reference: str) -> dict[int, AfterEnd]:
    """Seed -> what came after the end of the arm's defence.

    Raises:
        LabError: the end lies within `WINDOW` steps of the run's own ends, or within as many of its last steps.
    """
    found = {}
    for seed, curve in _curves(steps, arm).items():
        left = len(curve) - end
        if end < WINDOW or left < WINDOW:
            raise LabError(
                setting=f"arms.{arm}.options.after",
                value=end,
                rule=f"must leave {WINDOW} steps before and after the end; the run has {len(curve)}",
                fix="train longer (grpo.steps), or end it elsewhere",
            )
        fresh = _curves(steps, reference)[seed]
        rise = fmean(fresh[left - WINDOW : left]) - fmean(fresh[:WINDOW])
        found[seed] = AfterEnd(relapse(curve, end, WINDOW), rise)
    return found


def _curves(steps: pd.DataFrame, arm: str) -> dict[int, list[float]]:
    """Seed -> hack rate by step."""
    runs = steps[steps["arm"] == arm].sort_values("step").groupby("seed")
    return {int(str(seed)): log["hacked"].tolist() for seed, log in runs}


def loophole_rates(samples: pd.DataFrame, arm: str, confidence: float) -> dict[str, LoopholeRates]:
    """Loophole -> its rates; of one asked in fewer than two problems the intervals span the whole scale."""
    found = {}
    for name in sorted(map(str, samples["loophole"].unique())):
        rows = samples[samples["loophole"] == name]
        hacked, correct = (_loophole_rate(tally(rows, arm, verdict), confidence) for verdict in ("hacked", "correct"))
        found[name] = LoopholeRates(hacked, correct)
    return found


def _loophole_rate(counted: Tally, confidence: float) -> Rate:
    if (counted.graded > 0).all(axis=0).sum() < 2:
        return Rate(float(counted.by_seed().mean()), 0.0, 1.0, int(counted.graded.sum()))
    return one_rate(counted, confidence)


def dose_series(arms: Mapping[str, ArmSettings], shared: DirectionSettings) -> list[DoseSeries]:
    """Every series of at least `LEAST_DOSES` arms; an arm can be in several. shared: what arms have where their own
    `axes` say nothing, so that an arm without axes is one of the doses."""
    block = shared.model_dump(mode="json")
    numbers = [name for name, value in block.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    found = []
    for axis in numbers:
        alike: dict[str, dict[float, str]] = {}
        for name, arm in arms.items():
            if arm.direction is not None:
                rest = {**block, **arm.axes, axis: None}
                same = arm.model_copy(update={"axes": rest}).model_dump_json()
                alike.setdefault(same, {}).setdefault(float(arm.axes.get(axis, block[axis])), name)
        found += [DoseSeries(axis, tuple(sorted(doses.items()))) for doses in alike.values()]
    return [series for series in found if len(series.doses) >= LEAST_DOSES]


def read_costs(study: str, provenance: Path, arms: Sequence[str], seeds: Sequence[int]) -> list[Cost]:
    """Cost of every arm beside the first, from `<provenance>/<arm>/<seed>/{timings.parquet,provenance.json}`.

    Raises:
        LabError: a record is missing.
    """
    taken = {arm: [_taken(provenance / arm / str(seed)) for seed in seeds] for arm in arms}
    return [
        Cost(
            study=study,
            arm=arm,
            seconds_ratio=fmean(own[0] / base[0] for own, base in zip(runs, taken[arms[0]], strict=True)),
            peak_memory_mb=max(memory for _, memory in runs),
            seeds=len(runs),
        )
        for arm, runs in taken.items()
    ]


def _taken(folder: str | os.PathLike[str]) -> tuple[float, float]:
    """Seconds of all steps of a run, and its peak memory in MB."""
    timings, record = Path(folder, "timings.parquet"), Path(folder, "provenance.json")
    for path in (timings, record):
        if not path.is_file():
            raise LabError(
                setting=str(path),
                value="no such file",
                rule="is written beside every run, with its times and memory",
                fix="run `dvc repro study/dvc.yaml`, which trains the missing run",
            )
    memory = json.loads(record.read_text(encoding="utf-8"))["peak_memory_mb"]
    return float(pd.read_parquet(timings, columns=["step_total"])["step_total"].sum()), float(memory)
