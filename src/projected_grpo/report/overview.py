"""Every arm of every study in one table, from the studies' own metrics (`metrics/study/<study>.json`).

Nothing is computed anew: a row is what the study's table says, and beside it what a benchmark found the arm to cost.
Studies differ in steps, seeds, base and loopholes, so an arm is beside the first arm of its own study and no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from projected_grpo.report.cells import markdown_table, p_value, percent

Row = Mapping[str, Any]  # of one arm, as `evaluation.study.StudyArm.row` wrote it, and its loopholes
HEADER = (
    "study", "arm", "hack %", "attempt %", "pass %", "format %", "drop pp", "p (Holm)", "below its control pp",
    "hacks outnumber correct", "half are hacks", "relapse pp", "CPU time", "memory", "seeds", "n",
)  # fmt: skip


Costs = Mapping[str, Mapping[str, float]]  # arm -> "seconds" and "memory" of a training step, in shares of vanilla's


def table(studies: Mapping[str, Mapping[str, Row]], costs: Costs) -> pd.DataFrame:
    """`plots/study/overview.csv`: study -> arm -> row, one line each; the loopholes are in the studies' own tables."""
    return pd.DataFrame(
        [
            {"study": study, "arm": arm, **{key: value for key, value in row.items() if key != "loopholes"}}
            | {f"{name}_vs_vanilla": costs.get(arm, {}).get(name) for name in ("seconds", "memory")}
            for study, arms in studies.items()
            for arm, row in arms.items()
        ]
    )


def markdown(studies: Mapping[str, Mapping[str, Row]], settings: Mapping[str, str], costs: Costs) -> str:
    """`plots/study/overview.md`. settings: study -> what it changes of the scale, in words."""
    cells: list[Sequence[str]] = []
    for study, arms in studies.items():
        reference = next(iter(arms))
        cells += [_cells(study, arm, row, reference, costs.get(arm)) for arm, row in arms.items()]
    lines = ["# Every arm of every study", "", *markdown_table(HEADER, cells), ""]
    lines += [f"- `{study}`: {changed}" for study, changed in settings.items()]
    lines += [
        "",
        "Held-out problems with held-out tokens; mean over seeds ± SEM over seeds, of drops the interval. Drop:",
        "points of hack rate below the first arm of the same study; p of no drop, adjusted by Holm over its arms.",
        "Below its control: below the one of its controls in this study that hacks least, and below how many of them",
        "it is shown to be. Older tables leave it empty, and their controls are not looked at elsewhere.",
        "Times: steps before hacks outnumber correct answers, and before half are hacks; in brackets the seeds that",
        "got there. Relapse: hack rate of the last steps above the lowest, training rollouts. CPU time of a training",
        "step and peak memory: in shares of vanilla's, measured apart on the default recipe (`benchmarks/arms.py`);",
        f"vanilla once more took {costs['again']['seconds']:.2f}: the noise. Empty: not measured; a control costs what",
        "its arm does. Intervals of all rates are in `overview.csv`, rates by loophole in the studies' own tables, the",
        "folds of the weak detector in `folds.md`.",
        "",
    ]
    return "\n".join(lines)


def _cells(study: str, arm: str, row: Row, reference: str, cost: Mapping[str, float] | None) -> tuple[str, ...]:
    drop = p = below = ""
    if "control" in row:
        below = f"{row['excess_pp']:+.1f} ({row['excess_ci_low']:.1f} to {row['excess_ci_high']:.1f}) {row['control']}"
        below += f", {row['controls_beaten']} of {row['controls']}"
    if arm != reference and row["seeds"] > 1:
        drop = f"{row['drop_pp']:+.1f} ({row['drop_ci_low']:.1f} to {row['drop_ci_high']:.1f})"
        p = p_value(row["drop_p_holm"])
    times = (
        f"{row[f'{kind}_step']:.1f} ({row[f'{kind}_seeds']} of {row['seeds']})"
        for kind in ("hacks_lead", "half_hacked")
    )
    return (
        study,
        arm,
        *(
            percent(row[f"{name}_rate"], row[f"{name}_rate_sem"], row["seeds"])
            for name in ("hack", "attempt", "pass", "format")
        ),
        drop,
        p,
        below,
        *times,
        percent(row["relapse"], row["relapse_sem"], row["seeds"]),
        *("" if cost is None else f"{cost[name]:.2f}" for name in ("seconds", "memory")),
        str(row["seeds"]),
        str(row["samples"]),
    )
