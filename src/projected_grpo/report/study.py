"""The studies' tables (JSON, CSV, Markdown) and figures, from the records of `evaluation.study`.

Two figures per study: hack rate against pass rate, with each control linked to the arm it controls and a line through
every series of doses, and the hack rate over training, one small panel per arm. Nothing here reads or writes files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from projected_grpo.evaluation.controls import strongest
from projected_grpo.evaluation.held_back import HeldBack
from projected_grpo.evaluation.statistics import PairedDifference, Rate
from projected_grpo.evaluation.study import WINDOW, Cost, DoseSeries, LoopholeRates, StudyArm
from projected_grpo.report import style
from projected_grpo.report.cells import gain, interval, markdown_table, p_value, percent, reached
from projected_grpo.report.curves import band, smoothed, smoothing_window
from projected_grpo.report.figures import pareto_front
from projected_grpo.report.style import QUIET, Kind

REFERENCE, TREATED, CONTROL = "#d55e00", "#0072b2", "#cc79a7"
DOSES = ("#009e73", "#e69f00", "#56b4e9", "#8c6d31")  # one series each
HACK_AND_PASS = ("hack", "pass")
COLUMNS = 4  # small panels side by side
PANEL_WIDTH, PANEL_HEIGHT = 2.6, 2.0  # inches
HEADER = (
    "arm", "hack %", "attempt %", "pass %", "format %", "drop pp", "p (Holm)", "pass change pp",
    "hacks outnumber correct", "half are hacks", "relapse pp", "seeds", "n",
)  # fmt: skip
CONTROLS_HEADER = ("arm", "control", "its hack %", "its pass %", "below it pp", "more passes pp")
HELD_HEADER = ("arm", "hack % as trained", "deployed", "held back pp", "pass % as trained", "deployed")
ENDED_HEADER = (
    "arm",
    "hack % before the end",
    "at the end of the run",
    "rise pp",
    "undefended rise pp",
    "half are hacks after it",
)
CONTROLS = (
    "Below it: by how many points an arm hacks less than the control, more passes: solves more; paired by seed and\n"
    "problem. Where an interval holds 0, the effect is not shown to come from what the control lacks. Controls that\n"
    "only other studies have are not here."
)
HELD = (
    f"Held back: as trained, with the quarantine (training rollouts of the last {WINDOW} steps), minus deployed,\n"
    "without it (held-out problems, training names); mean over seeds ± SEM. The first arm has none: what it shows\n"
    "comes of the other problems. Fewer passes without the quarantine: a part of what is held back is ability."
)
AFTER_THE_END = (
    f"After the end: hack rate of the training rollouts, mean of the last {WINDOW} steps with the defence and of the\n"
    f"last {WINDOW} of the run; mean over seeds ± SEM over seeds. Undefended rise: of the study's first arm from its\n"
    "beginning over as many steps, which is what a policy that was never defended learns in that time. Half after\n"
    "it: seeds in which a step after the end had at least half hacks."
)


def metrics(rows: Sequence[StudyArm]) -> dict[str, object]:
    """`metrics/study/<study>.json`: `<arm>.<key>`, `<arm>.loopholes.<loophole>.<key>`, and for an arm with controls the
    name of the strongest, `<arm>.control`."""
    return {row.arm: {**row.row(), **_control(row), "loopholes": _by_loophole(row)} for row in rows}


def table(rows: Sequence[StudyArm]) -> pd.DataFrame:
    """`plots/study/<study>.csv`: one row per arm."""
    return pd.DataFrame(
        [
            {"study": row.study, "arm": row.arm, **row.row(), **_control(row)}
            | {f"{key}_{name}": value for name, found in _by_loophole(row).items() for key, value in found.items()}
            for row in rows
        ]
    )


def markdown(rows: Sequence[StudyArm], confidence: float, doses: Sequence[DoseSeries] = ()) -> str:
    """`plots/study/<study>.md`: the arms of one study, its series of doses, and how to read them."""
    reference = rows[0].arm
    lines = ["# Studies", "", f"## {rows[0].study}", ""]
    lines += [*markdown_table(HEADER, [_cells(row, reference) for row in rows]), ""]
    if cells := [line for row in rows for line in _controls(row)]:
        lines += ["Beside each control:", "", *markdown_table(CONTROLS_HEADER, cells), ""]
    if cells := [_held(row, row.held) for row in rows if row.held]:
        lines += ["What the quarantine holds back:", "", *markdown_table(HELD_HEADER, cells), ""]
    loopholes = sorted({name for row in rows for name in row.loopholes})
    if len(loopholes) > 1:
        cells = [(row.arm, *(_hack_and_pass(row.loopholes.get(name)) for name in loopholes)) for row in rows]
        lines += ["By loophole, hack % / pass %:", "", *markdown_table(("arm", *loopholes), cells), ""]
    if ended := [row for row in rows if row.ended]:
        lines += [
            "After the end of the defence:",
            "",
            *markdown_table(ENDED_HEADER, [_ended(row) for row in ended]),
            "",
        ]
    for series in doses:
        lines += [f"As `{series.axis}` rises:", "", *_dose_table(series, {row.arm: row for row in rows}), ""]
    lines += [
        "Held-out problems with held-out tokens. Rates: mean over seeds ± SEM over seeds, and in brackets the",
        f"{confidence:.0%} interval for new seeds and new problems. Drop and pass change: percentage points against",
        "the first arm of the study, paired by seed and problem; p of no drop, adjusted by Holm over the study's arms.",
        "Times: steps trained before it, mean over seeds; a run that never gets there counts as its length, and in",
        "brackets is in how many seeds it came. Relapse: hack rate of the last",
        f"{WINDOW} steps minus the lowest mean of any {WINDOW} steps of the run, training rollouts; ± SEM.",
        "n: completions.",
        *([CONTROLS] if any(row.controls for row in rows) else []),
        *([HELD] if any(row.held for row in rows) else []),
        *([AFTER_THE_END] if any(row.ended for row in rows) else []),
        "",
    ]
    return "\n".join(lines)


def cost_table(costs: Sequence[Cost]) -> pd.DataFrame:
    """`data/study/<study>/cost/cost.csv`: study, arm, seconds_ratio, peak_memory_mb, seeds."""
    return pd.DataFrame([dataclasses.asdict(cost) for cost in costs]).round({"seconds_ratio": 3, "peak_memory_mb": 1})


def cost_markdown(costs: Sequence[Cost]) -> str:
    """`data/study/<study>/cost/cost.md`."""
    cells = [
        (cost.study, cost.arm, f"{cost.seconds_ratio:.2f}", f"{cost.peak_memory_mb:.0f}", str(cost.seeds))
        for cost in costs
    ]
    header = ("study", "arm", "seconds / first arm", "peak memory, MB", "seeds")
    note = "Seconds of training steps beside the same seed of the study's first arm, as measured; equal runs differ."
    return "\n".join(["# What the arms took", "", *markdown_table(header, cells), "", note, ""])


def figures(
    study: str,
    rows: Sequence[StudyArm],
    steps: pd.DataFrame,
    links: Mapping[str, str],
    doses: Sequence[DoseSeries] = (),
) -> dict[str, bytes]:
    """File name -> content: the plane and the training curves of one study, as PNG and SVG."""
    kinds: tuple[Kind, ...] = ("png", "svg")
    found = {}
    for kind in kinds:
        found[f"{study}_plane.{kind}"] = plane_figure(study, rows, links, doses, kind)
        found[f"{study}_training.{kind}"] = training_figure(study, rows, steps, links, kind)
    return found


def plane_figure(
    study: str,
    rows: Sequence[StudyArm],
    links: Mapping[str, str],
    doses: Sequence[DoseSeries] = (),
    kind: Kind = "png",
) -> bytes:
    """Hack rate against pass rate: every arm with its SEM, a thin line from each control to the arm it controls, and
    where there are doses, a line through each series by rising value and the Pareto front of all arms."""
    by_arm = {row.arm: row for row in rows}
    height = max(4.6, 0.25 * len(rows) + 1.5)
    with style.styled():
        fig, [ax] = style.figure(9, height, 1, left=0.085, right=0.76, top=1 - 0.4 / height, bottom=1.0 / height)
        ax.set_xlim(-0.02, 1.1 * max(0.05, *(row.rates.hack_rate for row in rows)))
        ax.set_ylim(-0.01, 1.15 * max(0.05, *(row.rates.pass_rate for row in rows)))
        for control, arm in links.items():
            if control in by_arm and arm in by_arm:
                ends = [by_arm[name].rates for name in (control, arm)]
                ax.plot([end.hack_rate for end in ends], [end.pass_rate for end in ends], color=CONTROL,
                        linestyle=(0, (4, 2)), linewidth=0.9, zorder=2)  # fmt: skip
        if doses:
            _dose_lines(ax, by_arm, doses)
        for row in rows:
            ax.errorbar(row.rates.hack_rate, row.rates.pass_rate, xerr=row.rates.hack_rate_sem,
                        yerr=row.rates.pass_rate_sem, fmt="o", markersize=6, elinewidth=1.2, capsize=0,
                        color=_colour(row.arm, rows[0].arm, links), zorder=4)  # fmt: skip
        _names_aside(ax, rows, links)
        ax.set_title(f"{study}: hacking against solving")
        ax.set_xlabel("hack rate")
        ax.set_ylabel("pass rate")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid()
        ax.set_axisbelow(True)
        note = "Held-out problems, held-out names; mean over seeds ± SEM."
        note += " Dashed: from a control to the arm it controls." if links else ""
        note += " Dotted: Pareto front." if doses else ""
        fig.text(0.012, 0.12 / height, note, color=QUIET, fontsize=8.5)
        return style.drawn(fig, kind)


def training_figure(
    study: str, rows: Sequence[StudyArm], steps: pd.DataFrame, links: Mapping[str, str], kind: Kind = "png"
) -> bytes:
    """Hack rate of the training rollouts over steps, a panel per arm, the study's first arm in grey behind it."""
    window = smoothing_window(steps)
    spread = band(smoothed(steps, ["hacked"], window), "hacked")
    reference = spread[spread["arm"] == rows[0].arm]
    columns = min(COLUMNS, len(rows))
    lines = math.ceil(len(rows) / columns)
    width, height = PANEL_WIDTH * columns + 0.6, PANEL_HEIGHT * lines + 1.0
    with style.styled():
        fig = Figure(figsize=(width, height))
        FigureCanvasAgg(fig)
        grid = fig.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        fig.subplots_adjust(0.55 / width, 0.75 / height, 1 - 0.1 / width, 1 - 0.65 / height, 0.12, 0.35)
        for ax, row in zip(grid.flat, rows, strict=False):
            own = spread[spread["arm"] == row.arm]
            colour = _colour(row.arm, rows[0].arm, links)
            ax.plot(reference["step"], reference["mean"], color="#b0b0b0", linewidth=1.2, zorder=2)
            ax.fill_between(own["step"], own["low"], own["high"], color=colour, alpha=0.18, linewidth=0)
            ax.plot(own["step"], own["mean"], color=colour, linewidth=1.8, zorder=3)
            ax.set_title(row.arm, fontsize=9)
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.grid(axis="y")
        for ax in grid.flat[len(rows) :]:
            ax.set_visible(False)
        for ax in grid.flat[max(0, len(rows) - columns) : len(rows)]:  # the lowest panel of each column
            ax.tick_params(labelbottom=True)
        fig.text(0.012, 1 - 0.3 / height, f"{study}: hack rate while training", fontweight="bold", fontsize=11)
        smoothing = f", each a moving mean over {window} steps" if window > 1 else ""
        note = f"Against steps. Line: mean over seeds{smoothing}; band: lowest to highest seed; grey: {rows[0].arm}."
        fig.text(0.012, 0.12 / height, note, color=QUIET, fontsize=8.5)
        return style.drawn(fig, kind)


def _dose_lines(ax: Axes, by_arm: Mapping[str, StudyArm], doses: Sequence[DoseSeries]) -> None:
    """A line through each series, thicker at every dose, the values in the legend; the Pareto front behind."""
    front = pareto_front([row.rates for row in by_arm.values()])
    right, low = ax.get_xlim()[1], ax.get_ylim()[0]  # the front of one arm is a corner
    ax.step([front[0].hack_rate, *(arm.hack_rate for arm in front), right],
            [low, *(arm.pass_rate for arm in front), front[-1].pass_rate], where="post", color=QUIET,
            linestyle=(0, (1.5, 2)), linewidth=1.2, zorder=2)  # fmt: skip
    for place, series in enumerate(doses):
        rates = [by_arm[arm].rates for _, arm in series.doses]
        values = ", ".join(f"{value:g}" for value, _ in series.doses)
        x, y = [each.hack_rate for each in rates], [each.pass_rate for each in rates]
        colour = DOSES[place % len(DOSES)]
        ax.plot(x, y, color=colour, linewidth=2, alpha=0.75, zorder=3, label=f"{series.axis}: {values}")
        for at in (0, -1):  # the ends tell the direction
            ax.annotate(f"{series.axis} {series.doses[at][0]:g}", (x[at], y[at]), (6, 7 if place % 2 else -13),
                        textcoords="offset points", fontsize=8, color=style.darker(colour), zorder=5)  # fmt: skip
    ax.legend(frameon=False, fontsize=8.5, loc="upper right")


def _names_aside(ax: Axes, rows: Sequence[StudyArm], links: Mapping[str, str]) -> None:
    """Every arm's name to the right of the axes, at the height of its dot or as near as its neighbours leave it."""
    (_, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    gap = (high - low) / max(12, len(rows) + 1)
    places = style.spread_out([row.rates.pass_rate for row in rows], gap=gap, low=low, high=high)
    for row, place in zip(rows, places, strict=True):
        colour = _colour(row.arm, rows[0].arm, links)
        ax.annotate(row.arm, xy=(row.rates.hack_rate, row.rates.pass_rate), xytext=(1.03 * right, place),
                    color=style.darker(colour), fontsize=8.5, va="center", annotation_clip=False,
                    arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.5})  # fmt: skip


def _colour(arm: str, reference: str, links: Mapping[str, str]) -> str:
    return REFERENCE if arm == reference else CONTROL if arm in links else TREATED


def _dose_table(series: DoseSeries, by_arm: Mapping[str, StudyArm]) -> list[str]:
    cells = []
    for value, arm in series.doses:
        row = by_arm[arm]
        cells.append(
            (f"{value:g}", arm, *(_share(row.shares[name], row.sems[name], row.rates.seeds) for name in HACK_AND_PASS))
        )
    return markdown_table((series.axis, "arm", "hack %", "pass %"), cells)


def _by_loophole(row: StudyArm) -> dict[str, dict[str, float]]:
    return {name: row.loopholes[name].row() for name in sorted(row.loopholes)}


def _hack_and_pass(found: LoopholeRates | None) -> str:
    if found is None:
        return ""
    return " / ".join(
        f"{100 * share.estimate:.1f}{interval(share.low, share.high)}" for share in (found.hack, found.passed)
    )


def _cells(row: StudyArm, reference: str) -> tuple[str, ...]:
    compared, figures = row.compared, row.row()
    drop = change = p = ""
    if row.arm != reference and compared.drop and compared.pass_change:
        drop, change = _points(compared.drop), _points(compared.pass_change)
        p = p_value(compared.p_holm)
    return (
        row.arm,
        *(_share(share, row.sems[name], row.rates.seeds) for name, share in row.shares.items()),
        drop,
        p,
        change,
        *(reached(compared.onsets[kind]) for kind in ("hacks_lead_step", "half_hacked_step")),
        percent(figures["relapse"], figures["relapse_sem"], row.rates.seeds),
        str(row.rates.seeds),
        str(row.rates.samples),
    )


def _control(row: StudyArm) -> dict[str, str]:
    return {"control": strongest(row.controls).control.arm} if row.controls else {}


def _controls(row: StudyArm) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for each in row.controls:
        rates = each.control
        hack = percent(rates.hack_rate, rates.hack_rate_sem, rates.seeds)
        passed = percent(rates.pass_rate, rates.pass_rate_sem, rates.seeds)
        found.append((row.arm, rates.arm, hack, passed, _points(each.hacks), _points(each.passes)))
    return found


def _held(row: StudyArm, held: HeldBack) -> tuple[str, ...]:
    found, seeds = held.row(), row.rates.seeds
    hacks, passes = (
        [
            percent(found[f"{when}_{name}_rate"], found[f"{when}_{name}_rate_sem"], seeds)
            for when in ("trained", "deployed")
        ]
        for name in HACK_AND_PASS
    )
    spread = f" ± {found['held_back_pp_sem']:.1f}" if seeds > 1 else ""
    return row.arm, *hacks, f"{found['held_back_pp']:+.1f}{spread}", *passes


def _ended(row: StudyArm) -> tuple[str, ...]:
    found = row.row()
    cells = (percent(found[f"end_{part}"], found[f"end_{part}_sem"], row.rates.seeds) for part in ("before", "after"))
    rise = f"{100 * (found['end_after'] - found['end_before']):+.1f}"
    fresh = f"{100 * found['end_fresh_rise']:+.1f}"
    seeds = f"in {found['end_half_seeds']} of {row.rates.seeds} seeds"
    return row.arm, *cells, rise, fresh, seeds


def _share(share: Rate, spread: float, seeds: int) -> str:
    return percent(share.estimate, spread, seeds) + (interval(share.low, share.high) if seeds > 1 else "")


def _points(found: PairedDifference) -> str:
    return gain(found.estimate, found.low, found.high)
