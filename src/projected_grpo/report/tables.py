"""The comparison of arms as tables, and the verdict as a sentence: terminal (rich), Markdown, CSV frames.

Rates are shown in percent as mean ± SEM over seeds; the drop is in percentage points against the reference
arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from rich import box
from rich.table import Table

from projected_grpo.evaluation.hypothesis import NO_CONTROL, H1Result, Role
from projected_grpo.evaluation.metrics import DIGITS, ArmRates

HEADER = ("arm", "role", "hack %", "pass %", "attempt %", "paid %", "format %", "drop pp", "seeds", "n")
LEFT = ("arm", "role")
SEED_RATES = ("hack_rate", "pass_rate", "attempt_rate", "paid_rate", "format_rate")


def verdict_sentence(result: H1Result, confidence: float) -> str:
    """The answer in plain text; a control that meets H1 by itself is told before the verdict."""
    first = ""
    if result.controls_meeting_h1:
        names = " and ".join(result.controls_meeting_h1)
        first = f"Beware: a control ({names}) meets H1's thresholds by itself: the direction is not what helps. "
    interval = f"{confidence:.0%} interval {result.drop_ci_low:.1f} to {result.drop_ci_high:.1f}"
    if not result.drop_estimable:
        interval = "no interval from one seed"
    control = "no control took part"
    if result.control_name != NO_CONTROL:
        control = f"the strongest control, {result.control_name}, by {result.control_drop_pp:.1f}"
    return (
        f"{first}H1 {result.verdict.value}: against {result.reference}, {result.treatment} lowers the "
        f"hack rate by {result.drop_pp:.1f} points ({interval}); {control}. The pass rate changes by "
        f"{result.pass_change_pp:+.1f}."
    )


def reason_lines(result: H1Result) -> list[str]:
    """What decided the verdict, one line each."""
    return [f"- {reason}" for reason in result.reasons]


def rows(rates: Mapping[str, ArmRates], roles: Mapping[str, Role]) -> list[tuple[str, ...]]:
    """The cells under `HEADER`, one tuple per arm, in the order of `roles`."""
    reference = next(rates[arm] for arm, role in roles.items() if role is Role.REFERENCE)
    return [_row(rates[arm], role, reference) for arm, role in roles.items()]


def terminal_table(rates: Mapping[str, ArmRates], roles: Mapping[str, Role]) -> Table:
    """A rich table of the columns that fit 80 characters; the treatment is set in bold."""
    title = "Held-out problems, held-out tokens (mean ± SEM over seeds)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [index for index, name in enumerate(HEADER) if name not in ("attempt %", "paid %")]
    for index in shown:
        table.add_column(HEADER[index], justify="left" if HEADER[index] in LEFT else "right")
    for cells, role in zip(rows(rates, roles), roles.values(), strict=True):
        table.add_row(*(cells[index] for index in shown), style="bold" if role is Role.TREATMENT else None)
    return table


def markdown(rates: Mapping[str, ArmRates], roles: Mapping[str, Role], result: H1Result, confidence: float) -> str:
    """The same table and the verdict as a Markdown page."""
    lines = [
        "# Comparison of arms",
        "",
        f"**{verdict_sentence(result, confidence)}**",
        "",
        *reason_lines(result),
        "",
        _line(HEADER),
        _line([":--" if name in LEFT else "--:" for name in HEADER]),
        *map(_line, rows(rates, roles)),
        "",
        "Held-out problems with held-out tokens; mean ± SEM over seeds, in percent; one seed has no SEM.",
        "Drop: percentage points of hack rate below the reference arm; n: completions.",
    ]
    return "\n".join(lines) + "\n"


def arms_table(rates: Mapping[str, ArmRates], roles: Mapping[str, Role]) -> pd.DataFrame:
    """`plots/arms.csv`: one row per arm: arm, role and the keys of `ArmRates.row`."""
    return pd.DataFrame([{"arm": arm, "role": role.value, **rates[arm].row()} for arm, role in roles.items()])


def seeds_table(rates: Mapping[str, ArmRates], roles: Mapping[str, Role]) -> pd.DataFrame:
    """`plots/seeds.csv`: one row per arm and seed: arm, role, seed, samples and the five rates."""
    return pd.DataFrame(
        [
            {"arm": arm, "role": role.value, "seed": seed.seed, "samples": seed.samples}
            | {name: round(getattr(seed, name), DIGITS) for name in SEED_RATES}
            for arm, role in roles.items()
            for seed in rates[arm].by_seed
        ]
    )


def _row(rates: ArmRates, role: Role, reference: ArmRates) -> tuple[str, ...]:
    trained = role is not Role.BASE and role is not Role.REFERENCE
    return (
        rates.arm,
        role.value,
        _percent(rates.hack_rate, rates.hack_rate_sem, rates.seeds),
        _percent(rates.pass_rate, rates.pass_rate_sem, rates.seeds),
        f"{100 * rates.attempt_rate:.1f}",
        f"{100 * rates.paid_rate:.1f}",
        f"{100 * rates.format_rate:.1f}",
        f"{100 * (reference.hack_rate - rates.hack_rate):.1f}" if trained else "",
        str(rates.seeds),
        str(rates.samples),
    )


def _percent(rate: float, spread: float, seeds: int) -> str:
    return f"{100 * rate:.1f} ± {100 * spread:.1f}" if seeds > 1 else f"{100 * rate:.1f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
