"""`ReportInputs` -> the plain data that the page draws: JSON values only, numbers rounded, NaN as null."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from projected_grpo.evaluation.hypothesis import Role
from projected_grpo.evaluation.onset import ONSETS
from projected_grpo.evaluation.statistics import Rate
from projected_grpo.report import rows
from projected_grpo.report.curves import band, smoothed, smoothing_window
from projected_grpo.report.inputs import ReportInputs, kinds_of

CURVES = ("hacked", "correct", "alignment_signed", "alignment", "leak", "share_removed")
RATES = ("hack_rate", "pass_rate", "attempt_rate", "paid_rate", "format_rate")
DIGITS = 5
POINTS = 300  # of a curve


def report_payload(inputs: ReportInputs) -> dict[str, Any]:
    """All data of the page, by section."""
    window = smoothing_window(inputs.steps)
    return {
        "kind": "report",
        "confidence": inputs.confidence,
        "claims": [dataclasses.asdict(claim) for claim in inputs.claims],
        "notes": list(inputs.notes),
        "limits": _rounded(dataclasses.asdict(inputs.limits)),
        "arms": [_arm(inputs, arm, role) for arm, role in styled_arms(inputs.cast).items()],
        "examples": _records(inputs.examples),
        "window": window,
        "curves": _curves(inputs.steps, window),
        "removing": _removing(inputs.steps),
        "nulls": _rounded(dataclasses.asdict(inputs.nulls)),
        "kinds": kinds_of(inputs.types),
        "types": _types(inputs.types, window),
        "costs": [_rounded(dataclasses.asdict(cost)) for cost in inputs.costs],
        "compute": _compute(inputs.steps),
        "provenance": _provenance(inputs.provenance),
        "rollouts": {**rows.packed(inputs.rollouts.rows), "total": inputs.rollouts.total, "cut": rows.CUT},
    }


def styled_arms(cast: Mapping[str, Role]) -> dict[str, str]:
    """Arm -> the name of its look in report.css: its role, controls numbered."""
    controls = [arm for arm, role in cast.items() if role is Role.CONTROL]
    return {
        arm: f"control-{controls.index(arm) % 4}" if role is Role.CONTROL else role.value for arm, role in cast.items()
    }


def _arm(inputs: ReportInputs, arm: str, look: str) -> dict[str, Any]:
    rates = inputs.rates[arm]
    drop = inputs.drops.get(arm)
    return {
        "name": arm,
        "role": inputs.cast[arm].value,
        "look": look,
        **_rounded({key: getattr(rates, key) for key in RATES}),
        **_rounded({f"{name}_rate_sem": error for name, error in inputs.arms[arm].sems.items()}),
        "seeds": rates.seeds,
        "samples": rates.samples,
        "runs": [
            _rounded({"seed": run.seed, "hack_rate": run.hack_rate, "pass_rate": run.pass_rate})
            for run in rates.by_seed
        ],
        "drop": _rounded(dataclasses.asdict(drop)) if drop else None,
        "sure": _sure(inputs, arm),
    }


def _sure(inputs: ReportInputs, arm: str) -> dict[str, Any]:
    """Intervals, tests and times of an arm. Null: of the reference beside itself, of one seed, of an arm without times
    (the untrained base) or to which they say nothing (under the honest grader)."""
    found, several = inputs.arms[arm], inputs.rates[arm].seeds > 1
    tested = found.drop is not None
    times = {} if inputs.cast[arm] is Role.HONEST else found.onsets
    return {
        "hack": _interval(found.hack, several),
        "pass": _interval(found.passed, several),
        "attempts": found.attempts,
        "given_attempt": _interval(found.hack_given_attempt, several) if found.hack_given_attempt else None,
        "p_holm": _plain(found.p_holm) if tested else None,
        "p_flip": _plain(found.p_flip) if tested else None,
        "p_noninferior": _plain(found.p_noninferior) if tested else None,
        "times": [
            {"mean": _plain(times[kind].mean()), "reached": times[kind].reached} if kind in times else None
            for kind in ONSETS
        ],
    }


def _interval(rate: Rate, several: bool) -> dict[str, float | None]:
    """One seed says nothing about the next: no interval."""
    ends = (rate.low, rate.high) if several else (None, None)
    return _rounded(dict(zip(("estimate", "low", "high"), (rate.estimate, *ends), strict=True)))


def _curves(steps: pd.DataFrame, window: int) -> dict[str, list[dict[str, Any]]]:
    """Column -> points {arm, step, mean, low, high}, each run smoothed before the mean over seeds is taken."""
    columns = [column for column in CURVES if column in steps]
    curves = _thinned(smoothed(steps, columns, window))
    return {column: _records(band(curves, column)) for column in columns}


def _thinned(curves: pd.DataFrame) -> pd.DataFrame:
    """At most about `POINTS` steps, the first and the last among them: no screen shows more, and a page is finite."""
    every = sorted(curves["step"].unique())
    kept = {*every[:: -(-len(every) // POINTS)], every[-1]}
    return curves[curves["step"].isin(kept)]


def _removing(steps: pd.DataFrame) -> list[str]:
    """Arms that took something out of a gradient: those whose leak means anything."""
    largest = steps.groupby("arm", sort=False)["share_removed"].max()
    return [str(arm) for arm, share in largest.items() if share > 0]


def _types(types: pd.DataFrame, window: int) -> list[dict[str, Any]]:
    """Shares of hack types over steps, a moving mean like the curves."""
    ordered = types.sort_values(["arm", "hack_type", "step"], kind="stable")
    groups = ordered.groupby(["arm", "hack_type"], sort=False)["share"]
    means = groups.transform(lambda share: share.rolling(window, center=True, min_periods=1).mean())
    smooth = ordered.assign(share=means)[["arm", "step", "hack_type", "share"]]
    return _records(_thinned(smooth)) if len(smooth) else []


def _compute(steps: pd.DataFrame) -> list[dict[str, Any]]:
    """What every arm did, independent of the machine: optimizer steps, completions, runs."""
    return [
        {
            "arm": str(arm),
            "runs": int(log["seed"].nunique()),
            "steps": int(log.groupby("seed").size().max()),
            "completions": int(log["n"].sum()) if "n" in log else None,
        }
        for arm, log in steps.groupby("arm", sort=False)
    ]


def _provenance(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Under what the runs were trained, each value once with the number of its runs, and what is an arm's own: settings
    and inputs' hashes, of its first run."""
    if not records:
        return {}
    every = [record for runs in records.values() for record in runs]
    facts: dict[str, list[dict[str, Any]]] = {}
    for key in ("git_revision", "python", "versions", "host", "sandbox_isolation"):
        values = [record.get(key) for record in every]
        facts[key] = [
            {"value": value, "runs": values.count(value)}
            for place, value in enumerate(values)
            if value not in values[:place]
        ]
    arms = {arm: {key: runs[0].get(key) for key in ("settings", "inputs")} for arm, runs in records.items()}
    return {"facts": facts, "arms": arms}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_rounded({str(key): value for key, value in row.items()}) for row in frame.to_dict("records")]


def _rounded(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in record.items()}


def _plain(value: Any) -> Any:
    """Finite numbers with a few digits, None for NaN; everything else as it is."""
    if isinstance(value, Mapping):
        return _rounded(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, float):
        return round(value, DIGITS)
    return value.item() if hasattr(value, "item") else value
