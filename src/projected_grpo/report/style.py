"""How every figure looks: one type size, quiet axes, colours that colour-blind readers can tell apart.

Colours are from the Okabe-Ito palette and belong to roles, so that an arm of another name keeps its
meaning. No text relies on colour alone: every line is labelled where it ends.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from projected_grpo.evaluation.hypothesis import Role

INK, QUIET, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
ROLE_COLOURS = {
    Role.BASE: "#6b6b6b",
    Role.REFERENCE: "#d55e00",
    Role.TREATMENT: "#0072b2",
    Role.HONEST: "#009e73",
}
CONTROL_COLOURS = ("#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
CONTROL_DASHES = ((0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)))
SETTINGS: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "svg.hashsalt": "projected-grpo",
}
DPI = 140
Kind = Literal["png", "svg"]


def colours(roles: Mapping[str, Role]) -> dict[str, str]:
    """Arm -> colour."""
    controls = [arm for arm, role in roles.items() if role is Role.CONTROL]
    return {
        arm: CONTROL_COLOURS[controls.index(arm) % len(CONTROL_COLOURS)] if role is Role.CONTROL else ROLE_COLOURS[role]
        for arm, role in roles.items()
    }


def dashes(roles: Mapping[str, Role]) -> dict[str, str | tuple[float, tuple[float, ...]]]:
    """Arm -> line style: solid, except for controls."""
    controls = [arm for arm, role in roles.items() if role is Role.CONTROL]
    return {
        arm: CONTROL_DASHES[controls.index(arm) % len(CONTROL_DASHES)] if role is Role.CONTROL else "-"
        for arm, role in roles.items()
    }


def darker(colour: str) -> tuple[float, float, float]:
    """The colour for text: light hues of the palette are hard to read on white."""
    red, green, blue = to_rgb(colour)
    return (0.72 * red, 0.72 * green, 0.72 * blue)


def figure(width: float, height: float, columns: int, **layout: float) -> tuple[Figure, list[Axes]]:
    """An Agg figure (inches) with one row of axes; never touches the global pyplot state."""
    fig = Figure(figsize=(width, height))
    FigureCanvasAgg(fig)
    axes = fig.subplots(1, columns, squeeze=False)[0]
    fig.subplots_adjust(**layout)
    return fig, list(axes)


def drawn(fig: Figure, kind: Kind = "png") -> bytes:
    """The figure as a file: the same bytes for the same figure and library version (no date, fixed ids)."""
    metadata: dict[str, Any] = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    stream = io.BytesIO()
    fig.savefig(stream, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
    return stream.getvalue()


def styled() -> AbstractContextManager[None]:
    """The context in which figures are drawn."""
    return mpl.rc_context(SETTINGS)


def spread_out(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least `gap`, keeping their order, within [low, high] as far as they fit.

    Neighbours that collide form a block centred on its members' mean; blocks merge until none overlap.
    """
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    blocks: list[tuple[list[int], float]] = []  # members, lowest position of the block
    for index in order:
        members = [index]
        start = min(max(positions[index], low), high)
        while blocks and blocks[-1][1] + gap * len(blocks[-1][0]) > start:
            members = blocks.pop()[0] + members
            centre = sum(positions[member] for member in members) / len(members)
            height = gap * (len(members) - 1)
            start = max(min(centre - height / 2, high - height), low)
        blocks.append((members, start))
    placed = [0.0] * len(positions)
    for members, start in blocks:
        for offset, member in enumerate(members):
            placed[member] = start + gap * offset
    return placed
