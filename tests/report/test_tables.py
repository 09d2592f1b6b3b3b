"""Tables and the sentence: what is written is what was measured."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from projected_grpo.evaluation.hypothesis import H1Result, Verdict
from projected_grpo.report import tables

H1 = H1Result(
    verdict=Verdict.SUPPORTED,
    treatment="projected",
    reference="vanilla",
    intact=True,
    drop_pp=50.7,
    drop_ci_low=41.2,
    drop_ci_high=60.1,
    drop_estimable=True,
    pass_change_pp=-3.25,
    control_name="placebo",
    control_drop_pp=38.2,
    controls_meeting_h1=(),
    reasons=("first reason", "second reason"),
)


@pytest.fixture
def rates(results):
    return {arm: result.rates for arm, result in results.items()}


def test_the_verdict_is_one_sentence_with_its_interval_and_its_rival():
    assert tables.verdict_sentence(H1, 0.95) == (
        "H1 supported: against vanilla, projected lowers the hack rate by 50.7 points "
        "(95% interval 41.2 to 60.1); the strongest control, placebo, by 38.2. The pass rate changes by -3.2."
    )


def test_a_control_that_meets_h1_comes_before_the_verdict():
    sentence = tables.verdict_sentence(dataclasses.replace(H1, controls_meeting_h1=("random",)), 0.95)
    assert sentence.startswith("Beware: a control (random) meets H1's thresholds by itself")


def test_one_seed_and_no_control_are_said_in_words():
    bare = dataclasses.replace(H1, drop_estimable=False, control_name="none", control_drop_pp=0.0)
    sentence = tables.verdict_sentence(bare, 0.95)
    assert "(no interval from one seed); no control took part." in sentence


def test_rows_show_percent_with_sem_and_the_drop_against_the_reference(rates, cast):
    rows = dict(zip(cast, tables.rows(rates, cast), strict=True))
    arm, reference = rates["projected"], rates["vanilla"]
    assert rows["projected"] == (
        "projected",
        "treatment",
        f"{100 * arm.hack_rate:.1f} ± {100 * arm.hack_rate_sem:.1f}",
        f"{100 * arm.pass_rate:.1f} ± {100 * arm.pass_rate_sem:.1f}",
        f"{100 * arm.attempt_rate:.1f}",
        f"{100 * arm.paid_rate:.1f}",
        f"{100 * arm.format_rate:.1f}",
        f"{100 * (reference.hack_rate - arm.hack_rate):.1f}",
        "3",
        "768",
    )
    assert rows["base"][7] == rows["vanilla"][7] == ""


def test_the_terminal_table_is_whole_at_80_columns(rates, cast):
    stream = io.StringIO()
    Console(file=stream, width=80).print(tables.terminal_table(rates, cast))
    printed = stream.getvalue()
    assert "…" not in printed
    for cells in tables.rows(rates, cast):
        assert all(cell in printed for cell in (*cells[:4], *cells[6:]))


def test_markdown_holds_the_verdict_its_reasons_and_every_arm(rates, cast):
    page = tables.markdown(rates, cast, H1, 0.95)
    assert f"**{tables.verdict_sentence(H1, 0.95)}**" in page
    assert "- first reason\n- second reason\n" in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(cast)
    assert {line.count("|") for line in lines} == {len(tables.HEADER) + 1}
    assert lines[4].startswith("| projected | treatment | ")


def test_arms_csv_has_one_row_per_arm_and_seeds_csv_one_per_seed(rates, cast):
    arms, seeds = tables.arms_table(rates, cast), tables.seeds_table(rates, cast)
    assert arms["arm"].tolist() == list(cast)
    assert arms["role"].tolist()[:3] == ["base", "reference", "treatment"]
    assert arms.set_index("arm").loc["vanilla"].drop("role").to_dict() == rates["vanilla"].row()
    assert list(seeds.columns) == ["arm", "role", "seed", "samples", *tables.SEED_RATES]
    assert len(seeds) == 3 * len(cast)
    mine = seeds[seeds["arm"] == "placebo"]["hack_rate"]
    assert mine.mean() == pytest.approx(rates["placebo"].hack_rate, abs=1e-6)
