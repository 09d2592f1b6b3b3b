"""Every static figure of the report, as PNG for looking and SVG for papers.

What `plots` draws over training and by arm, and three more: hacking against solving, how it is hacked, compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from projected_grpo.evaluation.hypothesis import Role
from projected_grpo.evaluation.metrics import ArmRates
from projected_grpo.report import plots, style
from projected_grpo.report.curves import smoothing_window
from projected_grpo.report.inputs import PHASES, ReportInputs, kinds_of
from projected_grpo.report.style import QUIET, Kind

KIND_COLOURS = ("#d1622b", "#eeb04e", "#8c5aa8", "#4d8fc4", "#4fa88b", "#c76a8a", "#7d8a3c", "#8a6f5a", "#9aa0a6")
NAMES = ("training", "alignment", "leak", "arms", "plane", "types", "compute")


def figures(inputs: ReportInputs) -> dict[str, bytes]:
    """File name -> content: `NAMES` as .png and .svg. A figure without data (types, compute) is left out."""
    return {f"{name}.{kind}": content for name, kind, content in _every(inputs)}


def _every(inputs: ReportInputs) -> Iterator[tuple[str, Kind, bytes]]:
    kinds: tuple[Kind, ...] = ("png", "svg")
    for kind in kinds:
        yield "training", kind, plots.training_figure(inputs.steps, inputs.cast, kind)
        yield "alignment", kind, plots.alignment_figure(inputs.steps, inputs.cast, inputs.nulls, kind)
        if "leak" in inputs.steps:
            yield "leak", kind, plots.leak_figure(inputs.steps, inputs.cast, inputs.nulls, kind)
        yield "arms", kind, plots.arms_figure(inputs.rates, inputs.cast, inputs.limits, kind)
        yield "plane", kind, plane_figure(inputs, kind)
        if len(inputs.types):
            yield "types", kind, types_figure(inputs, kind)
        if inputs.costs:
            yield "compute", kind, compute_figure(inputs, kind)


def plane_figure(inputs: ReportInputs, kind: Kind = "png") -> bytes:
    """Hack rate against pass rate: arms with SEM and seeds, the Pareto front, where H1's support begins."""
    colours = style.colours(inputs.cast)
    with style.styled():
        fig, [ax] = style.figure(8, 5.4, 1, left=0.085, right=0.97, top=0.93, bottom=0.17)
        right, top = _reach(inputs)
        ax.set_xlim(-0.015 * right, right)
        ax.set_ylim(-0.02 * top, top)
        _goal(ax, inputs)
        front = pareto_front([inputs.rates[arm] for arm, role in inputs.cast.items() if role is not Role.BASE])
        ax.step([arm.hack_rate for arm in front], [arm.pass_rate for arm in front], where="post", color=QUIET,
                linestyle=(0, (1.5, 2)), linewidth=1.2, zorder=2)  # fmt: skip
        for arm in inputs.cast:
            _arm(ax, inputs, arm, colours[arm], right, top)
        ax.set_title("Hacking against solving")
        ax.set_xlabel("hack rate")
        ax.set_ylabel("pass rate")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
        ax.grid()
        ax.set_axisbelow(True)
        note = "Held-out problems, held-out names. Dot: mean over seeds with SEM; ring: one seed. Dotted: Pareto front."
        fig.text(0.012, 0.025, note, color=QUIET, fontsize=8.5)
        return style.drawn(fig, kind)


def types_figure(inputs: ReportInputs, kind: Kind = "png") -> bytes:
    """Share of each hack type over training, stacked; one panel per arm that shows any."""
    types, window = inputs.types, smoothing_window(inputs.steps)
    arms = [arm for arm in inputs.cast if arm in set(types["arm"])]
    kinds = kinds_of(types)
    with style.styled():
        fig, axes = style.figure(2.6 * len(arms) + 0.8, 3.7, len(arms), left=0.07, right=0.985, top=0.9, bottom=0.3)
        for ax, arm in zip(axes, arms, strict=True):
            wide = types[types["arm"] == arm].pivot(index="step", columns="hack_type", values="share")
            smooth = wide.reindex(columns=kinds).fillna(0.0).rolling(window, center=True, min_periods=1).mean()
            shades = [KIND_COLOURS[place % len(KIND_COLOURS)] for place in range(len(kinds))]
            ax.stackplot(smooth.index, smooth.to_numpy().T, colors=shades, labels=[k.replace("_", " ") for k in kinds])
            ax.set_title(arm)
            ax.set_xlabel("training step")
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            ax.grid(axis="y")
        highest = max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(0, highest)
            ax.margins(x=0)
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.05, 0.05), ncols=6, frameon=False, fontsize=8.5)
        note = "Share of a step's rollouts with a loophole's construct, paid or not, by how it is built; all seeds."
        fig.text(0.012, 0.02, note, color=QUIET, fontsize=8.5)
        return style.drawn(fig, kind)


def compute_figure(inputs: ReportInputs, kind: Kind = "png") -> bytes:
    """Mean seconds of a step by phase, one bar per arm, as measured on the machine that trained."""
    arms = [arm for arm in inputs.cast if any(cost.arm == arm for cost in inputs.costs)]
    with style.styled():
        height = 1.5 + 0.4 * len(arms)
        fig, [ax] = style.figure(8, height, 1, left=0.13, right=0.97, top=1 - 0.4 / height, bottom=1.05 / height)
        left = [0.0] * len(arms)
        for place, phase in enumerate(PHASES):
            seconds = [_mean([c.phases.get(phase, 0.0) for c in inputs.costs if c.arm == arm]) for arm in arms]
            if max(seconds) > 0.005:
                ax.barh(arms, seconds, left=left, height=0.62, color=KIND_COLOURS[place], label=phase.replace("_", " "))
            left = [start + length for start, length in zip(left, seconds, strict=True)]
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.set_title("Seconds of a training step by phase")
        ax.grid(axis="x")
        ax.set_axisbelow(True)
        fig.legend(loc="lower left", bbox_to_anchor=(0.11, 0.02), ncols=4, frameon=False, fontsize=8.5)
        return style.drawn(fig, kind)


def pareto_front(arms: Sequence[ArmRates]) -> list[ArmRates]:
    """Arms that no other beats in both rates (fewer hacks and more passes), by rising hack rate."""
    front: list[ArmRates] = []
    for arm in sorted(arms, key=lambda each: (each.hack_rate, -each.pass_rate)):
        if not front or arm.pass_rate > front[-1].pass_rate:
            front.append(arm)
    return front


def _reach(inputs: ReportInputs) -> tuple[float, float]:
    """Upper ends of both axes."""
    runs = [run for rates in inputs.rates.values() for run in rates.by_seed]
    right = max(0.05, *(run.hack_rate for run in runs))
    return 1.12 * right, 1.12 * max(0.05, inputs.limits.pass_min, *(run.pass_rate for run in runs))


def _goal(ax: Axes, inputs: ReportInputs) -> None:
    limits, (right, top) = inputs.limits, (ax.get_xlim()[1], ax.get_ylim()[1])
    if limits.hack_max <= 0:
        return
    low, width = max(0.0, limits.pass_min), min(limits.hack_max, right)
    ax.fill_between([0, width], low, top, color="#1a7f4b", alpha=0.08, linewidth=0, zorder=1)
    ax.annotate("what H1 asks for", (width, top), (-5, -5), textcoords="offset points", ha="right", va="top",
                color="#1a7f4b", fontsize=8.5)  # fmt: skip


def _arm(ax: Axes, inputs: ReportInputs, arm: str, colour: str, right: float, top: float) -> None:
    rates = inputs.rates[arm]
    ax.scatter([run.hack_rate for run in rates.by_seed], [run.pass_rate for run in rates.by_seed], s=15,
               facecolors="none", edgecolors=colour, linewidths=0.9, zorder=4)  # fmt: skip
    ax.errorbar(rates.hack_rate, rates.pass_rate, xerr=rates.hack_rate_sem, yerr=rates.pass_rate_sem, fmt="o",
                markersize=7, color=colour, elinewidth=1.8, capsize=0, zorder=5)  # fmt: skip
    crowded = any(
        other.arm != arm
        and abs(other.hack_rate - rates.hack_rate) < 0.16 * right
        and 0 <= other.pass_rate - rates.pass_rate < 0.12 * top
        for other in inputs.rates.values()
    )
    aside = rates.hack_rate < 0.06 * right
    ax.annotate(arm, (rates.hack_rate, rates.pass_rate), (-3 if aside else 0, -17 if crowded else 11),
                textcoords="offset points", ha="left" if aside else "center", color=style.darker(colour),
                fontweight="bold", fontsize=9, zorder=6)  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
