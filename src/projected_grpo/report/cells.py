"""Cells of the Markdown tables that people read, and the tables themselves."""

from __future__ import annotations

from collections.abc import Sequence

from projected_grpo.evaluation.onset import Onset

# Columns that hold words.
LEFT = (
    "arm",
    "role",
    "study",
    "claim",
    "verdict",
    "says",
    "thresholds",
    "unseen loophole",
    "bodies",
    "control",
)


def p_value(p: float) -> str:
    """Three digits, or that it is below them."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def percent(share: float, error: float, seeds: int) -> str:
    """A share in percent, with its standard error over seeds where there are several."""
    return f"{100 * share:.1f}" + (f" ± {100 * error:.1f}" if seeds > 1 else "")


def interval(low: float, high: float) -> str:
    """Of a share, in percent, as it stands behind the estimate."""
    return f" ({100 * low:.1f} to {100 * high:.1f})"


def gain(difference: float, low: float, high: float) -> str:
    """A difference of shares in points, signed, with its interval."""
    return f"{100 * difference:+.1f}{interval(low, high)}"


def reached(onset: Onset | None) -> str:
    """Mean step, and in how many runs it came; empty for none."""
    return f"{onset.mean():.1f} ({onset.reached} of {len(onset.by_seed)})" if onset else ""


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; words to the left, figures to the right."""
    rule = [":--" if name in LEFT else "--:" for name in header]
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *cells)]
