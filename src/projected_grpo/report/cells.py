"""Cells of the Markdown tables that people read, and the tables themselves."""

from __future__ import annotations

from collections.abc import Sequence

from projected_grpo.evaluation.onset import Onset

# Columns that hold words.
LEFT = ("arm", "role", "study", "claim", "verdict", "says", "thresholds", "unseen loophole", "bodies")


def p_value(p: float) -> str:
    """Three digits, or that it is below them."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def reached(onset: Onset | None) -> str:
    """Mean step, and in how many runs it came; empty for none."""
    return f"{onset.mean():.1f} ({onset.reached} of {len(onset.by_seed)})" if onset else ""


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; words to the left, figures to the right."""
    rule = [":--" if name in LEFT else "--:" for name in header]
    return ["| " + " | ".join(line) + " |" for line in (header, rule, *cells)]
