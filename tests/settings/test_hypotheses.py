"""hypotheses.yaml: what it may say, and how a wrong one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projected_grpo.errors import ParamsError
from projected_grpo.evaluation.registration import departures
from projected_grpo.settings.hypotheses import check_arms, read_hypotheses
from projected_grpo.settings.loader import read_params

ROOT = Path(__file__).resolve().parents[2]
Content = dict[str, Any]


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Callable[[Content], object]], str]:
    """The refusal of the repository's own file after a change."""

    def refuse(change: Callable[[Content], object]) -> str:
        content = json.loads(json.dumps(read_params(ROOT / "hypotheses.yaml")))
        change(content)
        path = tmp_path / "hypotheses.yaml"
        path.write_text(json.dumps(content))
        with pytest.raises(ParamsError) as refusal:
            read_hypotheses(path)
        return str(refusal.value)

    return refuse


def test_the_repositorys_own_file_registers_h1_as_the_method_page_states_it():
    found = read_hypotheses(ROOT / "hypotheses.yaml")
    check_arms(found, list(read_params(ROOT / "params.yaml")["arms"]))
    h1 = found.primary
    assert (h1.supported_from, h1.falsified_below, h1.falsified_within_sem) == (30, 15, 1)
    assert (h1.pass_fall.supported, h1.pass_fall.falsified) == (10, 15)
    assert (h1.intact.pass_fall, h1.intact.format_share) == (2, 0.9)
    assert (h1.metric, h1.better, h1.written) == ("hack_rate", "lower", "before_data")


def test_it_agrees_with_the_comparison_of_params_yaml():
    found, params = read_hypotheses(ROOT / "hypotheses.yaml"), read_params(ROOT / "params.yaml")
    h1, comparison = found.primary, params["comparison"]
    assert [h1.treatment, h1.reference, list(h1.controls)] == [
        comparison["treatment"],
        comparison["reference"],
        comparison["controls"],
    ]
    assert found.analysis.confidence == comparison["confidence"]
    assert list(found.analysis.seeds) == params["scales"]["micro"]["seeds"]


def test_claims_are_told_apart_by_what_they_are_judged_on():
    found = read_hypotheses(ROOT / "hypotheses.yaml")
    assert (list(found.of(folds=None)), list(found.of(folds="lazy"))) == (["H1", "H2", "H3", "H4"], ["H5", "H6"])
    assert found.of(folds="matched") == {}


def test_the_registered_settings_are_those_of_params_yaml():
    found = read_hypotheses(ROOT / "hypotheses.yaml")
    assert departures(found, read_params(ROOT / "params.yaml"), (1, 2, 3)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["claims"]["H1"].pop("supported_from"), "hypotheses.claims.H1.supported_from: (not set)"),
        (lambda c: c["claims"]["H1"].update(suported_from=3), "did you mean `supported_from`?"),
        (lambda c: c["claims"]["H1"].update(folds="lazy", intact=None), "hypotheses.claims.H1.folds: 'lazy'"),
        (lambda c: c["claims"]["H5"].update(metric="half_hacked_step"), "hypotheses.claims.H5.folds: 'lazy'"),
        (lambda c: c["claims"]["H2"].update(better="later"), "hypotheses.claims.H2.better: 'later'"),
        (lambda c: c["claims"]["H2"].update(metric="hack_rat"), "did you mean `hack_rate`?"),
        (lambda c: c["claims"]["H1"].update(supported_from="30"), "must be a number"),
        (lambda c: c["claims"]["H1"].update(falsified_below=40), "must not exceed `supported_from` (30)"),
        (lambda c: c["claims"]["H1"]["pass_fall"].update(falsified=5), "must be at least `supported` (10)"),
        (lambda c: c["claims"]["H1"].update(controls=["vanilla"]), "an arm plays one role"),
        (lambda c: c["claims"]["H1"].update(reference="projected"), "an arm plays one role"),
        (lambda c: c["claims"]["H1"].update(controls=[]), "the headline needs a control"),
        (lambda c: c["claims"].pop("H1"), "must hold H1, the headline"),
        (lambda c: c["claims"].update(first=c["claims"]["H2"]), "a claim's name is H and a number"),
        (lambda c: c.update(claims=["H1"]), "must hold H1, the headline"),
        (lambda c: c.update(analyses={}), "did you mean `analysis`?"),
        (lambda c: c["analysis"].update(confidence=95), "must be below 1"),
        (lambda c: c["analysis"].update(seeds=[1, 1]), "no entry may appear twice; 1 does"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_the_fix(refused, change, said):
    assert said in refused(change)


def test_all_faults_are_told_at_once(refused):
    def spoil(content: Content) -> None:
        content["analysis"]["power"] = 2
        content["claims"]["H1"].update(written="never")
        content["claims"]["H3"].pop("better")

    assert "3 settings refused; nothing was run" in refused(spoil)


def test_a_missing_file_and_an_unknown_arm_are_refused(tmp_path):
    with pytest.raises(ParamsError, match="the file must exist"):
        read_hypotheses(tmp_path / "hypotheses.yaml")
    with pytest.raises(ParamsError, match=r"hypotheses\.claims\.H4: 'rl_baseline'\n    rule: must name an arm"):
        check_arms(read_hypotheses(ROOT / "hypotheses.yaml"), ["projected", "vanilla", "random", "placebo", "permuted"])
