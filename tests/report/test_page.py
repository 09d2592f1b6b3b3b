"""The page as a file: hostile text stays data, nothing leaves, equal inputs give equal bytes, and it is small."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from projected_grpo.report import page
from projected_grpo.report.inputs import PAGE_BUDGET, Claim, ReportInputs
from projected_grpo.report.payload import POINTS, report_payload, styled_arms
from projected_grpo.report.rows import RolloutSample

HOSTILE = "</script><script>alert(1)</script><!-- & \u2028 {{POLICY}} </style><img src=x onerror=alert(2)>"
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@pytest.fixture(scope="module")
def payload(inputs: ReportInputs) -> dict[str, Any]:
    return report_payload(inputs)


@pytest.fixture(scope="module")
def content(payload) -> str:
    return page.render(payload, title="H1").decode()


def poisoned(inputs: ReportInputs) -> ReportInputs:
    """The same with one hostile completion, prompt and token."""
    rows = inputs.rollouts.rows.copy()
    rows.loc[0, ["completion", "prompt", "token"]] = [HOSTILE, HOSTILE, HOSTILE]
    return dataclasses.replace(inputs, rollouts=RolloutSample(rows, inputs.rollouts.total))


def policy(content: str) -> dict[str, list[str]]:
    [found] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', content)
    return {parts[0]: parts[1:] for parts in (directive.split() for directive in found.split("; "))}


def test_a_hostile_completion_is_data_and_comes_back_unchanged(inputs, content):
    hostile = page.render(report_payload(poisoned(inputs)), title="H1").decode()
    assert len(SCRIPT.findall(hostile)) == len(SCRIPT.findall(content)) == 3
    [text] = DATA.findall(hostile)
    assert not set("<>&\u2028") & set(text)
    assert HOSTILE in json.loads(text)["rollouts"]["texts"]
    assert hostile.count("Content-Security-Policy") == 1


@pytest.mark.parametrize("text", ["\ud800 alone", "nul \x00", "\u2029", "]]>", "é 漢 😀"])
def test_any_text_survives_as_json(text):
    written = page.as_json({"text": text})
    assert json.loads(written.encode()) == {"text": text}
    assert "<" not in written
    assert ">" not in written


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        page.as_json({"rate": float("nan")})


def test_the_policy_lets_run_this_code_and_nothing_else(content):
    allowed = policy(content)
    assert allowed["default-src"] == allowed["connect-src"] == ["'none'"]
    for directive, pieces in (("script-src", SCRIPT.findall(content)), ("style-src", STYLE.findall(content))):
        hashes = [base64.b64encode(hashlib.sha256(piece.encode()).digest()).decode() for piece in pieces]
        assert allowed[directive] == [f"'sha256-{digest}'" for digest in hashes]
    markup = DATA.sub("", STYLE.sub("", SCRIPT.sub("", content)))
    assert re.findall(r"\b(?:src|href|action)=\"?([^\"> ]*)", markup) == ["data:,", "#top"]
    assert not re.search(r"<[^>]*\s(?:on\w+|style)=", markup)


@pytest.mark.parametrize("name", page.CODE)
def test_the_code_never_turns_text_into_markup_or_code(name):
    code = page._asset(name)
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc|\.html\("
    )
    assert not re.search(forbidden, code)
    assert len(code.splitlines()) < 400
    if name != "source.js":
        assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", code)


def test_what_is_vendored_has_its_licence_and_its_version_told():
    readme = page._asset("README.md")
    for name in page.VENDORED:
        version = re.search(r"v(\d+\.\d+\.\d+)", page._asset(name)[:100])[1]
        assert f"{Path(name).name} | {version}" in readme
        assert "Permission to use, copy, modify" in page._asset(name.replace(".min.js", ".LICENSE"))


def test_equal_inputs_give_equal_bytes(inputs, tmp_path: Path):
    first = page.write_report(inputs, tmp_path / "a.html").read_bytes()
    assert page.write_report(inputs, tmp_path / "b.html").read_bytes() == first
    renamed = dataclasses.replace(inputs, claims=(dataclasses.replace(inputs.claims[0], name="<b>"),))
    assert b"<title>&lt;b&gt; " in page.write_report(renamed, tmp_path / "c.html").read_bytes()


def test_a_default_run_stays_under_five_megabytes(content):
    data = len(DATA.findall(content)[0].encode())
    assert len(content.encode()) - data + PAGE_BUDGET < 4_500_000
    assert data < 2_000_000


def test_long_runs_are_thinned_with_both_ends_kept(inputs):
    steps = pd.concat([inputs.steps.assign(step=inputs.steps["step"] + 40 * block) for block in range(25)])
    curves = report_payload(dataclasses.replace(inputs, steps=steps))["curves"]["hacked"]
    shown = sorted({point["step"] for point in curves})
    assert POINTS / 2 < len(shown) <= POINTS + 1
    assert (shown[0], shown[-1]) == (steps["step"].min(), steps["step"].max())


def test_the_payload_says_what_was_found(inputs, payload, results):
    claim = payload["claims"][0]
    assert (claim["name"], claim["verdict"]) == ("H1", inputs.claims[0].verdict)
    assert claim["sentence"].startswith("H1 ")
    assert claim["low"] < claim["effect"] < claim["high"]
    arms = {arm["name"]: arm for arm in payload["arms"]}
    assert arms["vanilla"]["drop"] is None
    assert arms["projected"]["drop"]["points"] == pytest.approx(claim["effect"], abs=1e-4)
    assert arms["projected"]["hack_rate"] == pytest.approx(inputs.rates["projected"].hack_rate, abs=1e-5)
    assert [run["seed"] for run in arms["base"]["runs"]] == [1, 2, 3]
    assert payload["notes"][0].startswith("Nothing was frozen beforehand")
    assert payload["examples"][0]["verdict"] == "hacked"
    assert {cost["wall_seconds"] for cost in payload["costs"]} == {101.0, 102.0, 103.0}
    assert payload["costs"][0]["phases"] == {"generate": 1.0, "grade": 0.25, "projection": 0.0}
    runs = sum(result.rates.seeds for arm, result in results.items() if arm != "base")
    assert payload["provenance"]["facts"]["git_revision"] == [{"value": "c0ffee", "runs": runs}]
    assert payload["removing"] == ["projected", "random", "placebo"]


def test_the_payload_says_how_sure_it_is(inputs, payload, found):
    sure = {arm["name"]: arm["sure"] for arm in payload["arms"]}
    arm = found.arms["projected"]
    for name, rate in (("hack", arm.hack), ("pass", arm.passed), ("given_attempt", arm.hack_given_attempt)):
        assert sure["projected"][name] == pytest.approx(
            {"estimate": rate.estimate, "low": rate.low, "high": rate.high}, abs=1e-5
        )
    for name in ("p_holm", "p_flip", "p_noninferior"):
        assert sure["projected"][name] == pytest.approx(getattr(arm, name), abs=1e-5)
        assert sure["vanilla"][name] is None
    lead, half = (found.arms["vanilla"].onsets[kind] for kind in ("hacks_lead_step", "half_hacked_step"))
    assert [at["mean"] for at in sure["vanilla"]["times"]] == pytest.approx([lead.mean(), half.mean()], abs=1e-5)
    assert sure["projected"]["times"][1] == {"mean": 40.0, "reached": 0}
    assert sure["base"]["times"] == sure["rl_baseline"]["times"] == [None, None]
    assert sure["base"]["attempts"] == found.arms["base"].attempts
    never = dataclasses.replace(arm, attempts=0, hack_given_attempt=None)
    quiet = report_payload(dataclasses.replace(inputs, arms={**inputs.arms, "projected": never}))
    assert next(each for each in quiet["arms"] if each["name"] == "projected")["sure"]["given_attempt"] is None
    rates = {**inputs.rates, "projected": dataclasses.replace(inputs.rates["projected"], seeds=1)}
    lone = report_payload(dataclasses.replace(inputs, rates=rates))
    assert next(each for each in lone["arms"] if each["name"] == "projected")["sure"]["hack"]["low"] is None


def test_looks_belong_to_roles(cast):
    assert styled_arms(cast) == {
        "base": "base", "vanilla": "reference", "projected": "treatment", "random": "control-0",
        "placebo": "control-1", "rl_baseline": "honest",
    }  # fmt: skip


def test_one_seed_has_no_interval(inputs):
    claim: Claim = dataclasses.replace(inputs.claims[0], low=None, high=None)
    found = report_payload(dataclasses.replace(inputs, claims=(claim,), costs=(), provenance={}))
    assert found["claims"][0]["low"] is None
    assert found["provenance"] == {}
