"""What the report is made of: one record, filled from the results of a comparison and the files of its runs.

Nothing here computes a statistic: rates, intervals and the verdict come from `evaluation`. Times and memory are
read from the runs' provenance; they differ between equal runs, and are shown as what they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from projected_grpo.errors import LabError
from projected_grpo.evaluation.comparison import ArmComparison
from projected_grpo.evaluation.hypothesis import BASE_ARM, H1Bounds, Judgement, Role, bounds
from projected_grpo.evaluation.metrics import ArmRates
from projected_grpo.report import rows, tables
from projected_grpo.report.findings import Findings
from projected_grpo.report.nulls import Nulls, nulls
from projected_grpo.settings.hypotheses import Hypotheses

PHASES = ("generate", "grade", "refresh", "forward_backward", "projection", "optimizer", "sampling_overhead")


@dataclass(frozen=True)
class Claim:
    """A hypothesis as judged. Effect, interval and thresholds are in `unit`; without an interval both ends are None.

    sentence: the verdict in words, shown first. reasons: the clauses that decided it. control: the strongest, or "".
    written: when the thresholds were set, in words.
    """

    name: str
    statement: str
    verdict: str
    sentence: str
    reasons: tuple[str, ...]
    effect: float
    low: float | None
    high: float | None
    unit: str
    supported_from: float
    falsified_below: float
    pass_change_pp: float
    control: str = ""
    control_effect: float = 0.0
    written: str = ""


@dataclass(frozen=True)
class Drop:
    """Hack rate of the reference minus an arm's, in points, paired by seed and problem; one seed has no interval."""

    points: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RunCost:
    """What one run took: seconds as measured on its machine, memory in MB; mean seconds of a step by phase."""

    arm: str
    seed: int
    wall_seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    steps: int
    step_seconds: float
    phases: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class ReportInputs:
    """Everything that `page.write_report` and `figures.figures` show.

    arms: each beside the reference. claims: the headline first. drops: by arm, all but the reference.
    steps: as of `curves.read_steps`. rollouts: the explorer's sample. types: share of each hack type among the
    rollouts of a step (arm, step, hack_type, share). provenance: by arm, its runs' records. notes: sentences
    below the verdict, the first on what was frozen. examples: a typical hack and a correct answer, none to two rows
    of the explorer's columns. nulls: what a gradient without direction would show.
    """

    cast: Mapping[str, Role]
    rates: Mapping[str, ArmRates]
    arms: Mapping[str, ArmComparison]
    claims: tuple[Claim, ...]
    limits: H1Bounds
    confidence: float
    drops: Mapping[str, Drop]
    steps: pd.DataFrame
    types: pd.DataFrame
    rollouts: rows.RolloutSample
    examples: pd.DataFrame
    costs: tuple[RunCost, ...] = ()
    provenance: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    nulls: Nulls = field(default_factory=Nulls)


PAGE_BUDGET = 3_000_000  # bytes of rollouts in the page


def read_inputs(
    found: Findings,
    hypotheses: Hypotheses,
    steps: pd.DataFrame,
    *,
    root: Path = Path("data"),
    budget: int = PAGE_BUDGET,
) -> ReportInputs:
    """What a comparison found, and what lies under `root` (graded, runs, provenance) for its arms.

    steps: as of `curves.read_steps`, of the trained arms of the comparison. budget: bytes of rollouts in the page.
    Provenance is optional: a run without it is left out of the compute section.

    Raises:
        LabError: a file of a named run is missing.
    """
    cast = found.roles
    seeds = {arm: [run.seed for run in found.rates[arm].by_seed] for arm in cast if arm != BASE_ARM}
    every = rows.read_rows(root / "graded", root / "runs", seeds, BASE_ARM)
    examples = rows.with_texts(every.loc[rows.examples(every, found.h1.reference, found.h1.treatment)])
    costs = [_cost(root / "provenance", arm, seed) for arm, numbers in seeds.items() for seed in numbers]
    records = _provenance(root / "provenance", seeds)
    notes = (found.registration.sentence(), tables.power_sentence(found.power))
    return ReportInputs(
        cast=cast,
        rates=found.rates,
        arms=found.arms,
        claims=tuple(_claim(judged, found, hypotheses) for judged in found.judgements),
        limits=bounds(found.rates[found.h1.reference], found.rates[BASE_ARM], hypotheses.primary),
        confidence=found.confidence,
        drops={arm: _drop(found, arm) for arm in cast if arm != found.h1.reference},
        steps=steps,
        types=hack_types(every),
        rollouts=rows.stratified(every, budget, first=rows.group_names(examples).tolist()),
        examples=rows.cut(examples),
        costs=tuple(cost for cost in costs if cost is not None),
        provenance=records,
        notes=notes,
        nulls=nulls(steps, {arm: runs[0] for arm, runs in records.items()}),
    )


def _claim(judged: Judgement, found: Findings, hypotheses: Hypotheses) -> Claim:
    """A judgement as the page shows it."""
    effect, rules = judged.effect, hypotheses.claims[judged.name]
    said = tables.verdict_sentence if judged is found.h1 else tables.claim_sentence
    return Claim(
        name=judged.name,
        statement=judged.statement,
        verdict=judged.verdict.value,
        sentence=said(judged, found.confidence),
        reasons=judged.reasons,
        effect=effect.estimate,
        low=effect.low if effect.paired else None,
        high=effect.high if effect.paired else None,
        unit=effect.unit,
        supported_from=rules.supported_from,
        falsified_below=rules.falsified_below,
        pass_change_pp=judged.pass_change_pp,
        control=judged.control_name if judged.excess is not None else "",
        control_effect=judged.control_effect,
        written=tables.THRESHOLDS_SET[rules.written],
    )


def hack_types(every: pd.DataFrame) -> pd.DataFrame:
    """Share of each step's training rollouts that hold a construct of each type: arm, step, hack_type, share.

    Over all seeds together; "none" is left out; a type that an arm never shows has no row for it.
    """
    trained = every[(every["phase"] == rows.TRAINING) & (every["verdict"] != "grader error")]
    totals = trained.groupby(["arm", "step"], sort=False).size()
    found = trained[trained["hack_type"] != "none"].groupby(["arm", "step", "hack_type"]).size()
    wide = found.unstack("hack_type", fill_value=0).reindex(totals.index, fill_value=0)
    shares = wide.div(totals, axis=0).reset_index().melt(["arm", "step"], var_name="hack_type", value_name="share")
    shown = shares.groupby(["arm", "hack_type"])["share"].transform("max") > 0
    return shares[shown].reset_index(drop=True)


def kinds_of(types: pd.DataFrame) -> list[str]:
    """Hack types by falling share over all arms, "other" last: the order of legends and stacks."""
    shares = types.groupby("hack_type")["share"].sum()
    return sorted(map(str, shares.index), key=lambda name: (name == "other", -shares[name], name))


def _drop(found: Findings, arm: str) -> Drop:
    points = 100 * (found.rates[found.h1.reference].hack_rate - found.rates[arm].hack_rate)
    paired = found.arms[arm].drop
    return Drop(points, None, None) if paired is None else Drop(points, 100 * paired.low, 100 * paired.high)


def _cost(root: Path, arm: str, seed: int) -> RunCost | None:
    folder = root / arm / str(seed)
    if not (folder / "provenance.json").is_file() or not (folder / "timings.parquet").is_file():
        return None
    record, timings = _record(folder / "provenance.json"), pd.read_parquet(folder / "timings.parquet")
    phases = {name: float(timings[name].fillna(0).mean()) for name in PHASES if name in timings}
    return RunCost(
        arm=arm,
        seed=seed,
        wall_seconds=float(record["wall_seconds"]),
        cpu_seconds=float(record["cpu_seconds"]),
        peak_memory_mb=float(record["peak_memory_mb"]),
        steps=len(timings),
        step_seconds=float(timings["step_total"].mean()),
        phases=phases,
    )


def _provenance(root: Path, seeds: Mapping[str, Sequence[int]]) -> dict[str, list[Mapping[str, Any]]]:
    """Arm -> the records of its runs; an arm without one is left out."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for arm, numbers in seeds.items():
        paths = [root / arm / str(seed) / "provenance.json" for seed in numbers]
        if records := [_record(path) for path in paths if path.is_file()]:
            found[arm] = [*records]
    return found


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not {"wall_seconds", "cpu_seconds", "peak_memory_mb"} <= set(record):
        raise LabError(
            setting=str(path),
            value="not a record of a run",
            rule="is written beside every run, with its times and versions",
            fix="train this run again",
        )
    return record
