"""The comparison of arms as tables, and the verdict as a sentence: terminal (rich), Markdown, CSV frames.

Rates are shown in percent as mean ± SEM over seeds, or with their interval; drops in percentage points against the
reference arm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from rich import box
from rich.table import Table

from projected_grpo.evaluation.comparison import SHARES, ArmComparison, PowerNote
from projected_grpo.evaluation.hypothesis import NO_CONTROL, WORDS, Effect, Judgement, Role
from projected_grpo.evaluation.metrics import DIGITS, ArmRates
from projected_grpo.evaluation.statistics import PairedDifference, Rate
from projected_grpo.report.cells import LEFT, interval, markdown_table, p_value, percent, reached
from projected_grpo.report.findings import Findings, arm_row

HEADER = ("arm", "role", "hack %", "pass %", "attempt %", "paid %", "format %", "drop pp", "seeds", "n")
HONEST = "honest grader"  # in the place of a time to hacking
THRESHOLDS_SET = {  # when, by a claim's `written`
    "before_data": "set before any run",
    "before_treatment": "set before any run of its treatment",
    "after_data": "set after runs had been seen",
}
SEED_RATES = ("hack_rate", "pass_rate", "attempt_rate", "paid_rate", "format_rate")


def verdict_sentence(result: Judgement, confidence: float) -> str:
    """H1's answer in plain text; a control that meets H1 by itself is told before the verdict."""
    effect, control = result.effect, "no control took part"
    within = f"{confidence:.0%} interval {effect.low:.1f} to {effect.high:.1f}"
    if effect.paired is None:
        within = "no interval from one seed"
    if result.control_name != NO_CONTROL:
        control = f"the strongest control, {result.control_name}, by {result.control_effect:.1f}"
    return (
        f"{_beware(result)}H1 {result.verdict.value}: against {result.reference}, {result.treatment} lowers the "
        f"hack rate by {effect.estimate:.1f} points ({within}); {control}. The pass rate changes by "
        f"{result.pass_change_pp:+.1f}."
    )


def claim_sentence(result: Judgement, confidence: float) -> str:
    """The answer to any claim in plain text, opened like that of H1."""
    effect, turned = result.effect, result.effect.estimate < 0
    low, high = (-effect.high, -effect.low) if turned else (effect.low, effect.high)
    direction = result.better if not turned else {"lower": "higher", "higher": "lower"}[result.better]
    within = f"{confidence:.0%} interval {low:.1f} to {high:.1f}" if effect.paired else "no interval from one seed"
    return (
        f"{_beware(result)}{result.name} {result.verdict.value}: {result.treatment}'s {WORDS[result.metric]} is "
        f"{abs(effect.estimate):.1f} {effect.unit} {direction} than {result.reference}'s ({within})."
    )


def reason_lines(result: Judgement) -> list[str]:
    """What decided the verdict, one line each."""
    return [f"- {reason}" for reason in result.reasons]


def power_sentence(note: PowerNote | None) -> str:
    """How many seeds it would take, in plain text."""
    if note is None:
        return "Power: unknown, one seed shows no variance."
    text = f"Power: with the variance seen, {_seeds(note.drop_seeds)} would show a drop of {note.effect_pp:g} points"
    if note.excess_seeds is not None:
        text += f", and {_seeds(note.excess_seeds)} the {note.excess_pp:.1f} points beyond the strongest control,"
    return f"{text} with probability {note.power:g}; the variance itself is a guess from few seeds."


def rows(found: Findings) -> list[tuple[str, ...]]:
    """The cells under `HEADER`, one tuple per arm of the comparison."""
    reference = next(found.rates[arm] for arm, role in found.roles.items() if role is Role.REFERENCE)
    return [_row(found.rates[arm], found.arms[arm].sems, role, reference) for arm, role in found.roles.items()]


def terminal_table(found: Findings) -> Table:
    """A rich table of the columns that fit 80 characters; the treatment is set in bold."""
    title = "Held-out problems, held-out tokens (mean ± SEM over seeds)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    shown = [index for index, name in enumerate(HEADER) if name not in ("attempt %", "paid %")]
    for index in shown:
        table.add_column(HEADER[index], justify="left" if HEADER[index] in LEFT else "right")
    for cells, role in zip(rows(found), found.roles.values(), strict=True):
        table.add_row(
            *(_narrow(HEADER[index], cells[index]) for index in shown), style="bold" if role is Role.TREATMENT else None
        )
    return table


def _narrow(column: str, cell: str) -> str:
    """The format rate hardly differs between seeds: its SEM gives way to the width of a terminal."""
    return cell.split(" ±")[0] if column == "format %" else cell


def markdown(found: Findings) -> str:
    """Verdict, tables of arms and of claims, and how to read them, as a Markdown page."""
    share = f"{found.confidence:.0%}"
    lines = [
        "# Comparison of arms",
        "",
        f"**{verdict_sentence(found.h1, found.confidence)}**",
        "",
        *reason_lines(found.h1),
        "",
        found.registration.sentence(),
        "",
        *markdown_table(HEADER, rows(found)),
        "",
        "Held-out problems with held-out tokens; mean ± SEM over seeds, in percent; one seed has no SEM.",
        "Drop: percentage points of hack rate below the reference arm; n: completions.",
        "",
        "## How sure",
        "",
        *markdown_table(*_certainty(found)),
        "",
        f"{share} intervals for new seeds and new problems ([how](../docs/method.md#the-interval)). p: of no drop,",
        "adjusted by Holm over the arms. Flip p: exact, by seed alone; with this number of seeds it cannot be below",
        f"{_least_flip(found):g}. Worse p: of a pass rate that fell by more than H1 allows.",
        "",
        power_sentence(found.power),
        "",
        "## When, and how well, they hack",
        "",
        *markdown_table(*_hacking(found)),
        "",
        "P(hack | attempt): of the answers that hold the construct, how many are paid for a wrong one. Times: steps",
        "trained before it, under training names, mean over seeds; a run that never gets there counts as its length,",
        "and in brackets is in how many seeds it came. Under the honest grader no rollout counts as a hack while",
        "training, so it has no times.",
        "",
        "## Claims",
        "",
        *markdown_table(
            ("claim", "verdict", "effect", "says", "thresholds"), [_claim(one, found) for one in found.judgements]
        ),
        "",
    ]
    for judgement in found.judgements[1:]:
        lines += [claim_sentence(judgement, found.confidence), "", *reason_lines(judgement), ""]
    return "\n".join(lines)


def arms_table(
    rates: Mapping[str, ArmRates], roles: Mapping[str, Role], arms: Mapping[str, ArmComparison]
) -> pd.DataFrame:
    """`plots/arms.csv`: one row per arm: arm, role and the keys of `findings.arm_row`."""
    return pd.DataFrame(
        [{"arm": arm, "role": role.value, **arm_row(rates[arm], arms[arm])} for arm, role in roles.items()]
    )


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


def _beware(result: Judgement) -> str:
    if not result.controls_alone:
        return ""
    names, name = " and ".join(result.controls_alone), result.name
    return f"Beware: a control ({names}) meets {name}'s thresholds by itself: the direction is not what helps. "


def _row(rates: ArmRates, sems: Mapping[str, float], role: Role, reference: ArmRates) -> tuple[str, ...]:
    trained = role is not Role.BASE and role is not Role.REFERENCE
    return (
        rates.arm,
        role.value,
        *(percent(getattr(rates, f"{name}_rate"), sems[name], rates.seeds) for name in SHARES),
        f"{100 * (reference.hack_rate - rates.hack_rate):.1f}" if trained else "",
        str(rates.seeds),
        str(rates.samples),
    )


def _certainty(found: Findings) -> tuple[Sequence[str], list[Sequence[str]]]:
    header = ("arm", "hack %", "pass %", "drop pp", "p (Holm)", "flip p", "pass change pp", "worse p")
    cells: list[Sequence[str]] = []
    for arm in (found.arms[name] for name in found.roles):
        tests = ("", "", "", "", "")
        if arm.drop and arm.pass_change:
            p = (p_value(arm.p_holm), p_value(arm.p_flip))
            tests = (_change(arm.drop), *p, _change(arm.pass_change, sign="+"), p_value(arm.p_noninferior))
        several = found.rates[arm.arm].seeds > 1
        cells.append((arm.arm, _interval(arm.hack, several), _interval(arm.passed, several), *tests))
    return header, cells


def _hacking(found: Findings) -> tuple[Sequence[str], list[Sequence[str]]]:
    header = ("arm", "attempts", "P(hack \\| attempt) %", "hacks outnumber correct", "half are hacks")
    cells: list[Sequence[str]] = []
    for name, role in found.roles.items():
        arm, honest = found.arms[name], role is Role.HONEST
        given = arm.hack_given_attempt
        shown = _interval(given, found.rates[name].seeds > 1) if given else "never attempted"
        times = [
            HONEST if honest else reached(arm.onsets.get(kind)) for kind in ("hacks_lead_step", "half_hacked_step")
        ]
        cells.append((arm.arm, str(arm.attempts), shown, *times))
    return header, cells


def _claim(judgement: Judgement, found: Findings) -> tuple[str, ...]:
    written = THRESHOLDS_SET[found.written[judgement.name]]
    return judgement.name, judgement.verdict.value, _effect(judgement.effect), judgement.statement, written


def _effect(effect: Effect) -> str:
    ends = f" ({effect.low:.1f} to {effect.high:.1f})" if effect.paired else ""
    return f"{effect.estimate:.1f} {effect.unit}{ends}"


def _interval(rate: Rate, estimable: bool) -> str:
    return f"{100 * rate.estimate:.1f}" + (interval(rate.low, rate.high) if estimable else "")


def _change(found: PairedDifference, sign: str = "") -> str:
    figures = (100 * found.estimate, 100 * found.low, 100 * found.high)
    return "{} ({} to {})".format(*(f"{figure:{sign}.1f}" for figure in figures))


def _least_flip(found: Findings) -> float:
    return 2.0 ** (1 - found.h1.effect.seeds)


def _seeds(count: int | None) -> str:
    return "no number of seeds" if count is None else f"{count} seeds"
