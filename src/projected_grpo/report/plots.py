"""Figures of training curves and of the arms' rates, as PNG or SVG bytes; their numbers are in plots/*.csv.

Figures are drawn without a display (Agg) from records and frames; nothing here reads or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from projected_grpo.evaluation.hypothesis import H1Bounds, Role
from projected_grpo.evaluation.metrics import ArmRates, sem
from projected_grpo.report import style
from projected_grpo.report.curves import RATES, band, smoothed, smoothing_window
from projected_grpo.report.nulls import Nulls, of_arms
from projected_grpo.report.style import INK, QUIET, Kind

PANELS = {"hack_rate": "Hack rate", "pass_rate": "Pass rate", "format_rate": "Format rate"}
RING_DROP = 0.27  # rows
ASIDE = 12  # characters of a label that fit beside the axes
NULL = "Null: what a gradient without direction would show along k axes a matrix, sqrt(k / 2r)"


def training_figure(steps: pd.DataFrame, roles: Mapping[str, Role], kind: Kind = "png") -> bytes:
    """Hack and pass rate of the training rollouts over steps; one line per arm, band over seeds."""
    window = smoothing_window(steps)
    curves = smoothed(steps, list(RATES), window)
    titles = ("Hack rate while training", "Pass rate while training")
    with style.styled():
        fig, axes = style.figure(10, 4.5, 2, left=0.06, right=0.89, top=0.91, bottom=0.23, wspace=0.45)
        for ax, column, title in zip(axes, RATES, titles, strict=True):
            ax.set_ylim(0, min(1.0, max(0.1, 1.08 * float(curves[column].max()))))
            _curves(ax, curves, column, roles)
            _finish(ax, title)
        _note(
            fig, steps, window, "Shares of each step's rollouts, solved with training tokens." + _honest(steps, roles)
        )
        return style.drawn(fig, kind)


def alignment_figure(steps: pd.DataFrame, roles: Mapping[str, Role], nulls: Nulls, kind: Kind = "png") -> bytes:
    """Signed alignment of the gradient with the hack direction by arm, and the share removed where any is."""
    window = smoothing_window(steps)
    curves = smoothed(steps, ["alignment_signed", "share_removed"], window)
    removing = [str(arm) for arm, share in steps.groupby("arm")["share_removed"].max().items() if share > 0]
    shape = (10, 4.5, 2) if removing else (6.8, 4.5, 1)
    sides = (0.07, 0.89) if removing else (0.105, 0.835)
    with style.styled():
        fig, axes = style.figure(*shape, left=sides[0], right=sides[1], top=0.91, bottom=0.23, wspace=0.45)
        ax = axes[0]
        _curves(ax, curves, "alignment_signed", roles, {"null": 0.0})
        _finish(ax, "Gradient's cosine with the hack direction", percent=False)
        if removing:
            ax, kept = axes[1], curves[curves["arm"].isin(removing)]
            lines = of_arms(nulls.removed, removing)
            ax.set_ylim(0, min(1.0, 1.15 * max(float(kept["share_removed"].max()), *lines.values(), 0.0)))
            _curves(ax, kept, "share_removed", roles, lines)
            _finish(ax, "Share of the gradient that was removed")
        text = "Above 0 the gradient teaches hacking."
        text += f" {NULL}, by the arm's own V." if removing and nulls.removed else ""
        _note(fig, steps, window, text)
        return style.drawn(fig, kind)


def leak_figure(steps: pd.DataFrame, roles: Mapping[str, Role], nulls: Nulls, kind: Kind = "png") -> bytes:
    """Hack-ward share of the raw gradient of every arm, and of the optimizer's step of the arms that remove."""
    window = smoothing_window(steps)
    curves = smoothed(steps, ["alignment", "leak"], window)
    removing = [str(arm) for arm, share in steps.groupby("arm")["share_removed"].max().items() if share > 0]
    every = [str(arm) for arm in steps["arm"].unique()]
    panels = [(curves, "alignment", "Hack-ward share of the gradient", of_arms(nulls.alignment, every))]
    if removing:
        kept = curves[curves["arm"].isin(removing)]
        panels.append((kept, "leak", "Leak: the same of the optimizer's step", of_arms(nulls.leak, removing)))
    with style.styled():
        shape, sides = ((10, 4.5, 2), (0.06, 0.89)) if removing else ((6.8, 4.5, 1), (0.105, 0.835))
        fig, axes = style.figure(*shape, left=sides[0], right=sides[1], top=0.91, bottom=0.23, wspace=0.45)
        for ax, (kept, column, title, lines) in zip(axes, panels, strict=True):
            highest = kept[column].max()
            ax.set_ylim(0, min(1.0, 1.15 * max(0.01, *lines.values(), 0.0 if pd.isna(highest) else float(highest))))
            _curves(ax, kept, column, roles, lines)
            _finish(ax, title)
            ax.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
        text = f"{NULL}. Left: the measured axes of every arm. Leak: each arm's own V."
        _note(fig, steps, window, text)
        return style.drawn(fig, kind)


def arms_figure(
    rates: Mapping[str, ArmRates], roles: Mapping[str, Role], bounds: H1Bounds, kind: Kind = "png"
) -> bytes:
    """Held-out hack, pass and format rates of all arms: mean, SEM and seeds, with H1's bounds as lines."""
    limits = {"hack_rate": bounds.hack_max, "pass_rate": bounds.pass_min, "format_rate": bounds.format_min}
    with style.styled():
        height = 1.45 + 0.47 * len(roles)
        margins = {"top": 1 - 0.62 / height, "bottom": 0.72 / height}
        fig, axes = style.figure(11, height, len(PANELS), left=0.135, right=0.985, wspace=0.16, **margins)
        for ax, (key, title) in zip(axes, PANELS.items(), strict=True):
            _dots(ax, rates, roles, key)
            _threshold(ax, limits[key], "≤" if key == "hack_rate" else "≥")
            ax.set_title(title, pad=20)
        _arm_names(axes, roles)
        seeds = sorted({rates[arm].seeds for arm in roles})
        text = (
            f"Held-out problems, held-out tokens. Dot: mean of {_listed(seeds)} seeds; bar: ± SEM; "
            "ring: one seed. Dashed: where H1 wants the treatment."
        )
        fig.text(0.012, 0.12 / height, text, color=QUIET, fontsize=8.5)
        return style.drawn(fig, kind)


def _curves(
    ax: Axes, curves: pd.DataFrame, column: str, roles: Mapping[str, Role], lines: Mapping[str, float] | None = None
) -> None:
    """Lines with bands, the treatment on top, each labelled at its end; so are `lines`, values to read them by."""
    colours, dashes = style.colours(roles), style.dashes(roles)
    spread = band(curves, column)
    ends: dict[str, float] = {}
    for arm in [arm for arm in roles if arm in set(spread["arm"])]:
        rows = spread[spread["arm"] == arm]
        order = 4 if roles[arm] is Role.TREATMENT else 3
        ax.fill_between(rows["step"], rows["low"], rows["high"], color=colours[arm], alpha=0.13, linewidth=0)
        ax.plot(rows["step"], rows["mean"], color=colours[arm], linestyle=dashes[arm], linewidth=2, zorder=order)
        ends[arm] = float(rows["mean"].iloc[-1])
    for label, value in (lines or {}).items():
        ax.axhline(value, color=QUIET, linestyle=(0, (2, 2)), linewidth=1, zorder=2)
        if len(label) <= ASIDE:
            ends[label] = value
            colours[label] = QUIET
        else:
            ax.annotate(label, (float(curves["step"].min()), value), (4, 3), textcoords="offset points", color=QUIET,
                        fontsize=8.5, bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5},
                        zorder=5)  # fmt: skip
    first, last = float(curves["step"].min()), float(curves["step"].max())
    ax.set_xlim(first, last if last > first else first + 1)
    low, high = ax.get_ylim()
    places = style.spread_out(list(ends.values()), gap=0.062 * (high - low), low=low, high=high)
    for (arm, end), place in zip(ends.items(), places, strict=True):
        _end_label(ax, arm, end, place, colours[arm])


def _end_label(ax: Axes, text: str, end: float, place: float, colour: str) -> None:
    """Name a line beside its `end`, at the height `place` that its neighbours leave to it."""
    last = ax.get_xlim()[1]
    ax.annotate(
        text,
        xy=(last, end),
        xytext=(14, _points(ax, place) - _points(ax, end)),
        textcoords="offset points",
        color=style.darker(colour),
        fontweight="bold",
        fontsize=9,
        va="center",
        annotation_clip=False,
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 1},
    )


def _points(ax: Axes, y: float) -> float:
    """Height of a data value on the page, in points."""
    return float(ax.transData.transform((0, y))[1]) * 72 / ax.figure.dpi


def _finish(ax: Axes, title: str, percent: bool = True) -> None:
    ax.set_title(title)
    ax.set_xlabel("training step")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if percent:
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.grid(axis="y")
    ax.set_axisbelow(True)


def _note(fig: Figure, steps: pd.DataFrame, window: int, text: str) -> None:
    counts = sorted(set(steps.groupby("arm")["seed"].nunique()))
    smoothing = f", each a moving mean over {window} steps" if window > 1 else ""
    note = f"{text}\nLine: mean of {_listed(counts)} seeds{smoothing}; band: lowest to highest seed."
    fig.text(0.012, 0.025, note, color=QUIET, fontsize=8.5, linespacing=1.4)


def _dots(ax: Axes, rates: Mapping[str, ArmRates], roles: Mapping[str, Role], key: str) -> None:
    """One row per arm: the mean with its SEM on the line, the seeds as rings just below it."""
    colours = style.colours(roles)
    for place, arm in enumerate(roles):
        values = [getattr(seed, key) for seed in rates[arm].by_seed]
        mean, colour = getattr(rates[arm], key), colours[arm]
        ax.errorbar(mean, place, xerr=sem(values), color=colour, linewidth=2.2, capsize=0, zorder=4)
        ax.scatter([mean], [place], s=44, color=colour, zorder=5)
        rings = [place + RING_DROP] * len(values)
        ax.scatter(values, rings, s=17, facecolors="white", edgecolors=colour, linewidths=0.9, zorder=4)
        ax.annotate(
            f"{100 * mean:.1f}",
            xy=(mean, place),
            xytext=(0, 11),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            zorder=6,
        )
    ax.set_ylim(len(roles) - 0.5, -0.6)
    ax.set_xlim(-0.03, 1.03)
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y")
    ax.set_axisbelow(True)


def _threshold(ax: Axes, value: float, relation: str) -> None:
    """A dashed line with its value above; a bound that no rate can meet or miss has the text only."""
    shown = min(max(value, 0.0), 1.0)
    if 0 < value < 1:
        ax.axvline(value, color=INK, linestyle=(0, (4, 3)), linewidth=1, zorder=2)
    ax.annotate(
        f"H1: {relation} {100 * value:.1f}%",
        xy=(shown, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="left" if shown < 0.15 else "right" if shown > 0.85 else "center",
        fontsize=8.5,
        color=INK,
    )


def _arm_names(axes: Sequence[Axes], roles: Mapping[str, Role]) -> None:
    colours = style.colours(roles)
    for ax in axes:
        ax.set_yticks(range(len(roles)), labels=["" for _ in roles])
    axes[0].set_yticks(range(len(roles)), labels=[_with_role(arm, role) for arm, role in roles.items()])
    for label, arm in zip(axes[0].get_yticklabels(), roles, strict=True):
        label.set_color(style.darker(colours[arm]))
        label.set_fontweight("bold" if roles[arm] is Role.TREATMENT else "normal")


def _with_role(arm: str, role: Role) -> str:
    shown = {Role.BASE: "untrained", Role.HONEST: "honest grader"}.get(role, role.value)
    return f"{arm}\n({shown})"


def _honest(steps: pd.DataFrame, roles: Mapping[str, Role]) -> str:
    """That an honest grader's hack rate is no finding, where there is one."""
    arms = [arm for arm in steps["arm"].unique() if roles[arm] is Role.HONEST]
    return "".join(f" {arm} cannot be paid for a hack (honest grader): 0 by construction." for arm in arms)


def _listed(counts: Sequence[int]) -> str:
    return " or ".join(map(str, counts))
