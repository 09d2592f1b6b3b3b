"""Tables and the sentence: what is written is what was measured."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re

import pytest
from rich.console import Console

from projected_grpo.evaluation.comparison import PowerNote
from projected_grpo.evaluation.hypothesis import Effect, Judgement, Verdict
from projected_grpo.report import tables
from projected_grpo.report.findings import arm_row, metrics

H1 = Judgement(
    name="H1",
    statement="it helps",
    verdict=Verdict.SUPPORTED,
    metric="hack_rate",
    better="lower",
    treatment="projected",
    reference="vanilla",
    effect=Effect(50.7, 41.2, 60.1, 1.0, "points", 3, paired=...),
    intact=True,
    pass_change_pp=-3.25,
    control_name="placebo",
    control_effect=38.2,
    excess=None,
    controls_alone=(),
    reasons=("first reason", "second reason"),
)


@pytest.fixture
def rates(results):
    return {arm: result.rates for arm, result in results.items()}


def lines_of(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, its head first, without the rule."""
    below = page.split(f"{heading}\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", below, re.MULTILINE)
    assert table is not None
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[0].splitlines()]
    return [rows[0], *rows[2:]]


def test_the_verdict_is_one_sentence_with_its_interval_and_its_rival():
    assert tables.verdict_sentence(H1, 0.95) == (
        "H1 supported: against vanilla, projected lowers the hack rate by 50.7 points "
        "(95% interval 41.2 to 60.1); the strongest control, placebo, by 38.2. The pass rate changes by -3.2."
    )


def test_a_control_that_meets_h1_comes_before_the_verdict():
    sentence = tables.verdict_sentence(dataclasses.replace(H1, controls_alone=("random",)), 0.95)
    assert sentence.startswith("Beware: a control (random) meets H1's thresholds by itself")


def test_any_claim_has_a_sentence_that_says_which_way():
    later = dataclasses.replace(H1, name="H2", metric="half_hacked_step", better="higher", controls_alone=("placebo",))
    later = dataclasses.replace(later, effect=dataclasses.replace(H1.effect, unit="steps"))
    assert tables.claim_sentence(later, 0.95) == (
        "Beware: a control (placebo) meets H2's thresholds by itself: the direction is not what helps. H2 supported: "
        "projected's time until half of the rollouts are hacks is 50.7 steps higher than vanilla's "
        "(95% interval 41.2 to 60.1)."
    )
    lost = dataclasses.replace(
        later, effect=Effect(-6.7, -10.2, -3.2, 1.0, "points", 3, paired=...), metric="pass_rate"
    )
    sentence = tables.claim_sentence(lost, 0.95)
    assert "pass rate is 6.7 points lower than vanilla's (95% interval 3.2 to 10.2)." in sentence


def test_one_seed_and_no_control_are_said_in_words():
    effect = dataclasses.replace(H1.effect, paired=None)
    bare = dataclasses.replace(H1, effect=effect, control_name="none", control_effect=0.0)
    sentence = tables.verdict_sentence(bare, 0.95)
    assert "(no interval from one seed); no control took part." in sentence


def test_rows_show_percent_with_sem_and_the_drop_against_the_reference(found, rates, cast):
    rows = dict(zip(cast, tables.rows(found), strict=True))
    sems, arm, reference = found.arms["projected"].sems, rates["projected"], rates["vanilla"]
    assert rows["projected"] == (
        "projected",
        "treatment",
        f"{100 * arm.hack_rate:.1f} ± {100 * arm.hack_rate_sem:.1f}",
        f"{100 * arm.pass_rate:.1f} ± {100 * arm.pass_rate_sem:.1f}",
        f"{100 * arm.attempt_rate:.1f} ± {100 * sems['attempt']:.1f}",
        f"{100 * arm.paid_rate:.1f} ± {100 * sems['paid']:.1f}",
        f"{100 * arm.format_rate:.1f} ± {100 * sems['format']:.1f}",
        f"{100 * (reference.hack_rate - arm.hack_rate):.1f}",
        "3",
        "768",
    )
    assert rows["base"][7] == rows["vanilla"][7] == ""


def test_the_terminal_table_is_whole_at_80_columns(found):
    stream = io.StringIO()
    Console(file=stream, width=80).print(tables.terminal_table(found))
    printed = stream.getvalue()
    assert "…" not in printed
    for cells in tables.rows(found):
        assert all(cell in printed for cell in (*cells[:4], cells[6].split(" ±")[0], *cells[7:]))


class TestMarkdown:
    def test_opens_with_the_verdict_its_reasons_and_what_was_frozen(self, found):
        page = tables.markdown(found)
        opening = page.split("\n| ")[0]
        assert opening.splitlines()[2] == f"**{tables.verdict_sentence(found.h1, 0.95)}**"
        assert all(f"- {reason}\n" in opening for reason in found.h1.reasons)
        assert found.registration.sentence() in opening

    def test_has_every_arm_in_every_table(self, found, cast):
        page = tables.markdown(found)
        for heading in ("# Comparison of arms", "## How sure", "## When, and how well, they hack"):
            head, *rows = lines_of(page, heading)
            assert [row[0] for row in rows] == list(cast)
            assert {len(row) for row in rows} == {len(head)}

    def test_shows_intervals_and_adjusted_p_of_every_arm_but_the_reference(self, found):
        head, *rows = lines_of(tables.markdown(found), "## How sure")
        cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
        arm = found.arms["projected"]
        assert cells["projected"] == {
            "arm": "projected",
            "hack %": f"{100 * arm.hack.estimate:.1f} ({100 * arm.hack.low:.1f} to {100 * arm.hack.high:.1f})",
            "pass %": f"{100 * arm.passed.estimate:.1f} ({100 * arm.passed.low:.1f} to {100 * arm.passed.high:.1f})",
            "drop pp": f"{100 * arm.drop.estimate:.1f} ({100 * arm.drop.low:.1f} to {100 * arm.drop.high:.1f})",
            "p (Holm)": f"{arm.p_holm:.3f}",
            "flip p": "0.250",
            "pass change pp": "{:+.1f} ({:+.1f} to {:+.1f})".format(
                *(100 * figure for figure in (arm.pass_change.estimate, arm.pass_change.low, arm.pass_change.high))
            ),
            "worse p": f"{arm.p_noninferior:.3f}",
        }
        tiny = {**found.arms, "projected": dataclasses.replace(arm, p_holm=0.0004)}
        assert "| <0.001 | 0.250 |" in tables.markdown(dataclasses.replace(found, arms=tiny))
        assert list(cells["vanilla"].values())[3:] == [""] * 5
        assert float(cells["random"]["p (Holm)"]) == pytest.approx(arm_row_of(found, "random")["drop_p_holm"], abs=1e-3)

    def test_shows_attempts_and_times(self, found):
        head, *rows = lines_of(tables.markdown(found), "## When, and how well, they hack")
        cells = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
        times = found.arms["vanilla"].onsets["half_hacked_step"]
        assert cells["vanilla"]["half are hacks"] == f"{times.mean():.1f} ({times.reached} of 3)"
        assert cells["projected"]["half are hacks"] == "40.0 (0 of 3)"
        assert cells["base"]["half are hacks"] == ""
        assert cells["rl_baseline"]["half are hacks"] == "honest grader"
        assert cells["rl_baseline"]["hacks outnumber correct"] == "honest grader"
        assert cells["rl_baseline"]["attempts"] == str(found.arms["rl_baseline"].attempts)
        assert cells["vanilla"]["attempts"] == str(found.arms["vanilla"].attempts)
        assert cells["vanilla"]["P(hack \\| attempt) %"].startswith("100.0 (")
        never = dataclasses.replace(found.arms["base"], attempts=0, hack_given_attempt=None)
        page = tables.markdown(dataclasses.replace(found, arms={**found.arms, "base": never}))
        assert "never attempted" in page

    def test_tells_of_every_claim_its_verdict_its_interval_and_when_it_was_written(self, found, plan):
        _, *rows = lines_of(tables.markdown(found), "## Claims")
        assert [row[0] for row in rows] == list(plan.of(folds=None))
        for row, judgement in zip(rows, found.judgements, strict=True):
            assert row[1] == judgement.verdict.value
            assert row[3] == plan.claims[judgement.name].statement
        assert [row[4] for row in rows] == ["set before any run", *["set after runs had been seen"] * 3]

    def test_says_how_many_seeds_it_would_take(self, found):
        assert tables.power_sentence(found.power) in tables.markdown(found)
        note = PowerNote(power=0.8, effect_pp=30.0, drop_seeds=4, excess_pp=20.4, excess_seeds=None)
        assert "4 seeds would show a drop of 30 points with probability 0.8" in tables.power_sentence(note)
        assert "no number of seeds" in tables.power_sentence(dataclasses.replace(note, drop_seeds=None))
        assert "6 seeds the 20.4 points beyond" in tables.power_sentence(dataclasses.replace(note, excess_seeds=6))
        assert "one seed shows no variance" in tables.power_sentence(None)


def arm_row_of(found, arm: str) -> dict[str, float | int]:
    return arm_row(found.rates[arm], found.arms[arm])


def test_metrics_are_finite_with_the_same_keys_for_every_arm(found, cast):
    written = metrics(found)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    arms = written["arms"]
    assert list(arms) == sorted(cast)
    assert len({tuple(arm) for arm in arms.values()}) == 1
    assert all(math.isfinite(value) for arm in arms.values() for value in arm.values())
    assert written["h1"]["seeds_needed_drop"] == found.power.drop_seeds
    assert set(written) == {"arms", "h1", "h2", "h3", "h4", "registration"}
    assert written["h2"] == found.judgements[1].row()


def test_arms_csv_has_one_row_per_arm_and_seeds_csv_one_per_seed(found, rates, cast):
    arms, seeds = tables.arms_table(rates, cast, found.arms), tables.seeds_table(rates, cast)
    assert arms["arm"].tolist() == list(cast)
    assert arms["role"].tolist()[:3] == ["base", "reference", "treatment"]
    assert arms.set_index("arm").loc["vanilla"].drop("role").to_dict() == arm_row_of(found, "vanilla")
    assert list(seeds.columns) == ["arm", "role", "seed", "samples", *tables.SEED_RATES]
    assert len(seeds) == 3 * len(cast)
    mine = seeds[seeds["arm"] == "placebo"]["hack_rate"]
    assert mine.mean() == pytest.approx(rates["placebo"].hack_rate, abs=1e-6)
