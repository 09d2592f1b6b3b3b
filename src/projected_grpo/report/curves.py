"""Training logs -> curves over steps, by arm, with the spread over seeds.

The CSV files of `dvc plots` hold these curves as measured (no smoothing); figures smooth them, and say so.
A step's rates are shares of that step's student rollouts, paid with *training* tokens: they show when
hacking was learned, not the headline, which is measured afterwards with held-out tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from projected_grpo.errors import LabError
from projected_grpo.evaluation.metrics import DIGITS

RATES = {"hacked": "hack_rate", "correct": "pass_rate"}  # column of steps.csv -> name in plots/training.csv
ALIGNMENT = ("alignment_signed", "alignment", "alignment_null", "share_removed")
NEEDED = ("step", *RATES, *ALIGNMENT)


def read_steps(root: Path, seeds: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Stack `<root>/<arm>/<seed>/steps.csv` of the named runs; columns arm, seed and those of steps.csv.

    A step without a gradient (every group of equal reward) has no alignment; what was removed from it is 0.

    Raises: LabError: a log is missing, lacks a column, or has other steps than the first (arms that
        trained for different
            lengths are not compared).
    """
    logs: list[pd.DataFrame] = []
    for arm, arm_seeds in seeds.items():
        for seed in arm_seeds:
            path = root / arm / str(seed) / "steps.csv"
            log = _read(path)
            if logs and log["step"].tolist() != logs[0]["step"].tolist():
                raise LabError(
                    setting=str(path),
                    value=f"{len(log)} steps, the last is {log['step'].max()}",
                    rule=f"every compared run has the same steps; the first has {len(logs[0])}",
                    fix="train the arms for the same number of steps (`dvc repro`)",
                )
            removed = log["share_removed"].fillna(0.0)
            logs.append(log.assign(arm=arm, seed=int(seed), share_removed=removed))
    if not logs:
        raise LabError(setting=str(root), value="no run", rule="needs at least one", fix="name an arm to compare")
    return pd.concat(logs, ignore_index=True)


def check_budget(root: Path, seeds: Mapping[str, Sequence[int]]) -> None:
    """Refuse arms that were given unequal numbers of completions to learn from: equal compute, by count.

    Seconds would say more and cannot be asked: they differ between equal runs, so no result may depend on them.

    Raises:
        LabError: a run's log of rollouts is missing, or has another length than the first.
    """
    first: tuple[Path, int] | None = None
    for path in (root / arm / str(seed) / "rollouts.parquet" for arm in seeds for seed in seeds[arm]):
        if not path.is_file():
            rule, fix = "every compared arm is trained", "run `dvc repro`"
            raise LabError(setting=str(path), value="no such file", rule=rule, fix=fix)
        count = pq.read_metadata(path).num_rows
        first = first or (path, count)
        if count != first[1]:
            rule = f"every compared run samples as many completions in training as the first, {first[0]}: {first[1]}"
            fix = "train both with the same grpo.steps, prompts and samples"
            raise LabError(setting=str(path), value=f"{count} completions", rule=rule, fix=fix)


def smoothing_window(steps: pd.DataFrame) -> int:
    """Steps in a shown curve's moving mean: odd, about an eighth of the run, at least 1."""
    return 2 * (int(steps["step"].nunique()) // 16) + 1


def smoothed(steps: pd.DataFrame, columns: Sequence[str], window: int) -> pd.DataFrame:
    """Centred moving mean of `columns` within each run over `window` steps (fewer at both ends); gaps are
    skipped."""
    result = steps.sort_values(["arm", "seed", "step"], kind="stable").copy()
    runs = result.groupby(["arm", "seed"], sort=False)
    for column in columns:
        result[column] = runs[column].transform(lambda run: run.rolling(window, center=True, min_periods=1).mean())
    return result


def band(steps: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean, lowest and highest seed of `column` at each step: columns arm, step, mean, low, high.

    Arms keep the order of their first row. A step at which no seed has a value is left out.
    """
    rows = steps.dropna(subset=[column])
    spread = rows.groupby(["arm", "step"], sort=False)[column].agg(mean="mean", low="min", high="max").reset_index()
    order = {arm: place for place, arm in enumerate(steps["arm"].unique())}
    return spread.sort_values(["arm", "step"], key=lambda keys: keys.map(order) if keys.name == "arm" else keys)


def training_table(steps: pd.DataFrame) -> pd.DataFrame:
    """`plots/training.csv`: arm, step, then hack_rate and pass_rate, each with `_low` and `_high` over
    seeds."""
    renamed = steps.rename(columns=RATES)
    return _joined(renamed, tuple(RATES.values()))


def alignment_table(steps: pd.DataFrame) -> pd.DataFrame:
    """`plots/alignment.csv`: arm, step, then each of `ALIGNMENT` with `_low` and `_high` over seeds, and the leak where
    it was logged.

    A step at which no seed had a gradient has no alignment and no row.
    """
    return _joined(steps, (*ALIGNMENT, *(["leak"] if "leak" in steps else [])))


def _joined(steps: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    table: pd.DataFrame | None = None
    for column in columns:
        names = {"mean": column, "low": f"{column}_low", "high": f"{column}_high"}
        curve = band(steps, column).rename(columns=names)
        table = curve if table is None else table.merge(curve, on=["arm", "step"], how="inner", sort=False)
    assert table is not None
    return table.round(DIGITS)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise LabError(
            setting=str(path),
            value="no such file",
            rule="every compared run has a training log",
            fix="run `dvc repro`, which trains the missing run",
        )
    log = pd.read_csv(path)
    missing = [column for column in NEEDED if column not in log.columns]
    if missing:
        raise LabError(
            setting=str(path),
            value=f"columns {', '.join(log.columns)}",
            rule=f"needs also: {', '.join(missing)}",
            fix="train this run again; its log is from another version",
        )
    return log
