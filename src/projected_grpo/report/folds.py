"""The weak detector's table (JSON, CSV, Markdown) and picture, from the records of `evaluation.folds`.

Nothing here reads or writes files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from projected_grpo.evaluation.folds import FoldArm, means
from projected_grpo.evaluation.hypothesis import Judgement
from projected_grpo.evaluation.registration import Registration
from projected_grpo.evaluation.statistics import PairedDifference
from projected_grpo.report import style
from projected_grpo.report.cells import gain, interval, markdown_table, percent
from projected_grpo.report.style import QUIET, Kind
from projected_grpo.report.tables import THRESHOLDS_SET, claim_sentence, reason_lines

HEADER = (
    "unseen loophole", "bodies", "arm", "unseen hack %", "drop pp", "below its control pp", "unseen pass %",
    "known hack %", "seeds", "n",
)  # fmt: skip
MEANS_HEADER = ("bodies", "arm", "unseen hack %", "unseen pass %", "known hack %")
COLOURS = ("#d55e00", "#0072b2", *style.CONTROL_COLOURS)  # the reference first, as everywhere
MARKS = "oDs^vPX"
LEGEND_WIDTH = 6  # arms beside each other
ARM_HEIGHT, FOLD_GAP = 0.14, 0.3  # inches between the arms of a fold, and more between two folds


def metrics(
    rows: Sequence[FoldArm], claims: Sequence[Judgement] = (), held: Registration | None = None
) -> dict[str, dict[str, object]]:
    """`metrics/study/folds.json`: `<study>.<arm>.<key>`, `<claim>.<key>`, and `registration`, if it is known."""
    found: dict[str, dict[str, object]] = {}
    for row in rows:
        found.setdefault(row.fold.study, {})[row.arm] = row.row()
    for claim in claims:  # none asks whether the model is intact: its base is not sampled
        found[claim.name.lower()] = {key: value for key, value in claim.headline().items() if key != "intact"}
    return found | ({"registration": {**held.row()}} if held else {})


def table(rows: Sequence[FoldArm]) -> pd.DataFrame:
    """`plots/study/folds.csv`: one row per fold and arm; `control` is the one that `excess` is measured from."""
    return pd.DataFrame(
        [
            {
                "study": row.fold.study,
                "unseen": _name(row),
                "bodies": row.fold.bodies,
                "arm": row.arm,
                "control": row.control,
                **row.row(),
            }
            for row in rows
        ]
    )


def markdown(
    rows: Sequence[FoldArm],
    confidence: float,
    claims: Sequence[Judgement] = (),
    held: Registration | None = None,
    written: Mapping[str, str] | None = None,
) -> str:
    """`plots/study/folds.md`: the claims, the mean over folds, every fold, and how to read them.

    held: how the analysis stands to what was frozen, if that is known. written: claim -> when its thresholds were set.
    """
    averaged = [
        (bodies, arm, *(f"{100 * found[name]:.1f}" for name in ("unseen_hack", "unseen_pass", "known_hack")))
        for (bodies, arm), found in means(rows).items()
    ]
    lines = ["# The weak detector", ""]
    for claim in claims:
        lines += [f"**{claim_sentence(claim, confidence)}**", "", f"{claim.name}: {claim.statement}.", ""]
        lines += reason_lines(claim)
        lines += [f"- thresholds {THRESHOLDS_SET[written[claim.name]]}"] if written else []
        lines += [""]
    lines += [held.sentence(), ""] if held else []
    lines += ["Mean over folds, each counting the same:", ""]
    lines += [*markdown_table(MEANS_HEADER, averaged), "", "Every fold:", ""]
    lines += [*markdown_table(HEADER, [_cells(row) for row in rows]), ""]
    lines += [
        "A fold trains on several loopholes with a V from pairs about all but the unseen one. Unseen hack and pass:",
        "shares of the held-out completions for the unseen loophole; known hack: of those for the others. Mean over",
        f"seeds ± SEM over seeds, in brackets the {confidence:.0%} interval for new seeds and new problems. Drop:",
        "points of unseen hacks below the fold's first arm with the same teacher, or none; below its control: below",
        "the control that hacks least. Both are paired by seed and problem. n: completions for the unseen loophole.",
        "Lazy: the pairs' hacks do not try to solve; matched: they have the body of the clean answer, so that V cannot",
        "be about trying.",
        "",
    ]
    return "\n".join(lines)


def figure(rows: Sequence[FoldArm], kind: Kind = "png") -> bytes:
    """Unseen hack rate with its interval: a panel per kind of bodies, a line per unseen loophole, a mark per arm."""
    panels = list(dict.fromkeys(row.fold.bodies for row in rows))
    names = list(dict.fromkeys(_name(row) for row in rows))
    arms = list(dict.fromkeys(row.arm for row in rows))
    lines = math.ceil(len(arms) / LEGEND_WIDTH)
    height = _fold_height(arms) * len(names) + 1.55 + 0.2 * lines
    width = 1.9 + 3.4 * len(panels)
    with style.styled():
        fig, axes = style.figure(width, height, len(panels), left=1.5 / width, right=1 - 0.2 / width,
                                 top=1 - 0.4 / height, bottom=(1.05 + 0.2 * lines) / height, wspace=0.08)  # fmt: skip
        reach = 1.05 * max(0.05, *(row.shares["unseen_hack"].high for row in rows if row.seeds > 1), *_rates(rows))
        for ax, bodies in zip(axes, panels, strict=True):
            _panel(ax, [row for row in rows if row.fold.bodies == bodies], names, arms)
            ax.set_title(f"{bodies} bodies")
            ax.set_xlim(-0.02 * reach, reach)
            ax.set_ylim(len(names) - 0.5, -0.5)
            ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
            ax.tick_params(axis="y", length=0)
            ax.set_xlabel("hack rate on the unseen loophole")
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.grid(axis="x")
            ax.set_axisbelow(True)
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.005, 0.3 / height),
                   ncols=math.ceil(len(arms) / lines), frameon=False)  # fmt: skip
        note = "Held-out problems and names, mean over seeds; line: its interval."
        fig.text(0.012, 0.12 / height, note, color=QUIET, fontsize=8.5)
        return style.drawn(fig, kind)


def _panel(ax: Axes, rows: Sequence[FoldArm], names: Sequence[str], arms: Sequence[str]) -> None:
    """The folds of one kind of bodies; where two folds have the same name, they stand on one line."""
    gap = ARM_HEIGHT / _fold_height(arms)  # a fold is 1 high on the axis
    for place, arm in enumerate(arms):
        own = [row for row in rows if row.arm == arm]
        heights = [names.index(_name(row)) + gap * (place - (len(arms) - 1) / 2) for row in own]
        colour = COLOURS[place % len(COLOURS)]
        for row, y in zip(own, heights, strict=True):
            if row.seeds > 1:
                ends = row.shares["unseen_hack"]
                ax.plot([ends.low, ends.high], [y, y], color=colour, linewidth=1.4, alpha=0.6, zorder=3)
        ax.plot(_rates(own), heights, MARKS[place % len(MARKS)], color=colour, markersize=6, label=arm, zorder=4)


def _fold_height(arms: Sequence[str]) -> float:
    """Inches."""
    return ARM_HEIGHT * (len(arms) - 1) + FOLD_GAP


def _rates(rows: Sequence[FoldArm]) -> list[float]:
    return [row.shares["unseen_hack"].estimate for row in rows]


def _name(row: FoldArm) -> str:
    return " + ".join(row.fold.unseen)


def _cells(row: FoldArm) -> tuple[str, ...]:
    shown = []
    for name in ("unseen_hack", "unseen_pass", "known_hack"):
        share = row.shares[name]
        text = percent(share.estimate, row.sems[name], row.seeds)
        shown.append(text + (interval(share.low, share.high) if row.seeds > 1 else ""))
    hack, passed, known = shown
    excess = f"{_points(row.excess)} {row.control}" if row.excess else ""
    counts = (str(row.seeds), str(row.shares["unseen_hack"].n))
    return (_name(row), row.fold.bodies, row.arm, hack, _points(row.drop), excess, passed, known, *counts)


def _points(found: PairedDifference | None) -> str:
    return gain(found.estimate, found.low, found.high) if found else ""
