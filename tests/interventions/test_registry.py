"""Families are found by their files; an arm's options and axes are checked by its own family, all faults at once."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions import erase, registry
from projected_grpo.interventions.registry import check_arms, check_lab, check_needs, families, family, options_of
from projected_grpo.settings.arms import ArmSettings, direction_of
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.params import LabSettings, Study, check, check_read
from projected_grpo.settings.section import Section

ROOT = Path(__file__).resolve().parents[2]

SHARED = DirectionSettings(k=8, gate="one_sided", refresh_every=10, project="gradient")


def arm(**block: Any) -> ArmSettings:
    return ArmSettings.model_validate(block)


def faults_of(**arms: ArmSettings) -> list[LabError]:
    with pytest.raises(ParamsError) as caught:
        check_arms(arms, SHARED)
    return list(caught.value.faults)


def test_a_family_is_a_file_that_builds() -> None:
    found = families()
    assert {"erase", "measure"} <= set(found)
    assert not {"base", "registry", "__init__"} & set(found)


@pytest.mark.parametrize("name", families())
def test_every_family_says_what_can_be_set_and_what_it_needs(name: str) -> None:
    module = family(name)
    assert module.NEEDS_DIRECTION in (True, False, None)
    assert issubclass(module.Options, Section)
    assert callable(module.build)
    undescribed = [field for field, info in module.Options.model_fields.items() if not info.description]
    assert not undescribed


ONE_FAULT: dict[str, tuple[dict[str, Any], str, object, str, str]] = {
    # name: (the arm, setting, value, part of the rule, part of the fix)
    "unknown family": (
        {"intervention": "erse", "direction": "hack"},
        "arms.own.intervention", "erse", "must name a file of src/projected_grpo/interventions/", "mean `erase`?",
    ),
    "a module that is no family": (
        {"intervention": "base"},
        "arms.own.intervention", "base", "must name a file of src/projected_grpo/interventions/", "erase",
    ),
    "erase without direction": (
        {"intervention": "erase"},
        "arms.own.direction", None, "`erase` needs a direction to act on", "random, placebo, permuted, flipped, clean",
    ),
    "measure with direction": (
        {"intervention": "measure", "direction": "hack"},
        "arms.own.direction", "hack", "`measure` acts on no direction; the setting would be ignored", "remove it",
    ),
    "unknown option": (
        {"intervention": "measure", "options": {"strength": 2}},
        "arms.own.options.strength", 2, "no such setting", "restore",
    ),
    "unknown axes": (
        {"intervention": "erase", "direction": "hack", "axes": {"refresh_evry": 5}},
        "arms.own.axes.refresh_evry", 5, "no such setting", "did you mean `refresh_every`?",
    ),
    "axes out of bounds": (
        {"intervention": "erase", "direction": "hack", "axes": {"k": 0}},
        "arms.own.axes.k", 0, "must be at least 1", "k",
    ),
    "axes against the shared ones": (
        {"intervention": "erase", "direction": "hack", "axes": {"mean_diff": True}},
        "arms.own.axes.k", 8, "must be 1 where mean_diff is true", "1",
    ),
    "what the family refuses": (
        {"intervention": "erase", "direction": "clean"},
        "arms.own.direction", "clean", "must not be clean for `erase`", "trusted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_FAULT)
def test_one_fault_names_setting_value_rule_and_fix(case: str) -> None:
    block, setting, value, rule, fix = ONE_FAULT[case]
    [fault] = faults_of(own=arm(**block))
    assert (fault.setting, fault.value) == (setting, value)
    assert rule in fault.rule
    assert fix in fault.fix


def test_the_faults_of_all_arms_are_told_at_once() -> None:
    faults = faults_of(
        good=arm(intervention="measure"),
        bare=arm(intervention="erase"),
        odd=arm(intervention="erase", direction="hack", axes={"k": 0, "gate": "sideways"}),
    )
    assert [fault.setting for fault in faults] == ["arms.bare.direction", "arms.odd.axes.k", "arms.odd.axes.gate"]


def test_good_arms_pass() -> None:
    check_arms({"a": arm(intervention="measure"), "b": arm(intervention="erase", direction="random")}, SHARED)


def test_an_arm_has_the_shared_axes_but_for_its_own() -> None:
    own = direction_of(arm(intervention="erase", direction="hack", axes={"k": 2, "gate": "both_sides"}), SHARED, "a")
    assert own == SHARED.model_copy(update={"k": 2, "gate": "both_sides"})
    assert direction_of(arm(intervention="erase", direction="hack"), SHARED, "a") == SHARED
    assert direction_of(arm(intervention="measure"), SHARED, "a") is None


def test_options_are_the_familys_own() -> None:
    assert type(options_of(arm(intervention="erase", direction="hack"))) is family("erase").Options


# ---------------------------------------------------------------- what a family declares


def test_axes_that_a_family_does_not_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erase, "READS_AXES", frozenset({"k", "refresh_every"}), raising=False)
    check_arms({"own": arm(intervention="erase", direction="hack", axes={"k": 2})}, SHARED)
    [fault] = faults_of(own=arm(intervention="erase", direction="hack", axes={"k": 2, "gate": "reverse"}))
    assert (fault.setting, fault.value) == ("arms.own.axes.gate", "reverse")
    assert fault.rule == "`erase` does not read it; it would be ignored"
    assert fault.fix == "remove it; read are k, refresh_every"


def test_a_familys_check_hears_the_options_the_arm_and_its_own_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(erase, "check", lambda *given: heard.extend(given))
    own = arm(intervention="erase", direction="hack", axes={"k": 2})
    check_arms({"own": own}, SHARED)
    assert heard == [erase.Options(), own, SHARED.model_copy(update={"k": 2})]


@pytest.mark.parametrize("missing", ["NEEDS_DIRECTION", "Options"])
def test_a_file_that_lacks_what_a_family_defines_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    whole = {"NEEDS_DIRECTION": True, "Options": erase.Options, "build": erase.build}
    del whole[missing]
    monkeypatch.setattr(registry.importlib, "import_module", lambda _: SimpleNamespace(**whole))
    [fault] = faults_of(own=arm(intervention="erase", direction="hack"))
    assert fault.setting == "src/projected_grpo/interventions/erase.py"
    assert f"must define {missing}" in fault.rule


# ---------------------------------------------------------------- under the recipes that train it


@pytest.fixture(scope="module")
def lab() -> LabSettings:
    """The project's own parameters."""
    return check(ROOT / "params.yaml")


def recipe(**changes: Any) -> GrpoSettings:
    return section(read_params(ROOT / "params.yaml"), "grpo", GrpoSettings).model_copy(update=changes)


def study_of(lab: LabSettings, arms: dict[str, ArmSettings], **changes: Any) -> LabSettings:
    """The lab with these arms beside its own, in one study whose sections are changed."""
    sections = {name: getattr(lab.active, name).model_copy(update=values) for name, values in changes.items()}
    study = Study(tuple(arms), dataclasses.replace(lab.active, **sections))
    return dataclasses.replace(lab, arms={**lab.arms, **arms}, studies={"own": study})


def refused(lab: LabSettings) -> dict[str, object]:
    with pytest.raises(ParamsError) as caught:
        check_lab(lab)
    return {fault.setting: fault.value for fault in caught.value.faults}


BY_GRADIENT = ArmSettings(intervention="gradient_advantage", direction="hack")
BY_ROLLOUT = ArmSettings(intervention="rollout_routed", direction="hack")


def test_the_projects_own_arms_and_studies_pass(lab: LabSettings) -> None:
    assert set(lab.studies) == set(read_params(ROOT / "params.yaml")["studies"])
    check_lab(lab)


@pytest.mark.parametrize("scale", read_params(ROOT / "params.yaml")["scales"])
def test_every_scale_can_start(scale: str) -> None:
    """Studies are written for one scale; none may keep the main pipeline of another from starting."""
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    params["scale"] = scale
    if params["scales"][scale]["problems"].get("path"):
        params["scales"][scale]["problems"]["path"] = "data/shipped/pairs.yaml"  # stands in for what has to be fetched
    check_lab(check_read(params, ROOT))


def test_the_gradients_that_a_family_needs_are_asked_of_the_study_that_trains_it(lab: LabSettings) -> None:
    without = {"rollout_gradients": False, "kl_beta": 0.1, "probe_every": 0}
    both = study_of(lab, {"vanilla": lab.arms["vanilla"], "g": BY_GRADIENT, "r": BY_ROLLOUT}, grpo=without)
    assert refused(both) == {"studies.own.grpo.rollout_gradients": False, "studies.own.grpo.kl_beta": 0.1}
    check_lab(study_of(lab, {"vanilla": lab.arms["vanilla"]}, grpo=without))


def test_an_arm_of_no_study_is_checked_under_the_active_scale(lab: LabSettings) -> None:
    active = dataclasses.replace(lab.active, grpo=recipe(kl_beta=0.1))
    named = dataclasses.replace(lab, studies={}, arms={**lab.arms, "g": BY_GRADIENT}, scales={lab.scale: active})
    assert refused(named) == {f"scales.{lab.scale}.grpo.kl_beta": 0.1}


def test_a_compared_arms_own_axes_ask_for_no_more_than_is_extracted(lab: LabSettings) -> None:
    wide = ArmSettings(intervention="erase", direction="placebo", axes={"k": 7})
    arms = {**{name: lab.arms[name] for name in ("vanilla", "projected", "random", "permuted")}, "placebo": wide}
    arms["rl_baseline"] = lab.arms["rl_baseline"]
    few = {"direction": lab.active.direction.model_copy(update={"k": 2})}
    for k_max, expected in {7: {}, 6: {"arms.placebo.axes.k": 7}}.items():
        extract = lab.active.extract.model_copy(update={"k_max": k_max})
        active = dataclasses.replace(lab.active, **few, extract=extract)
        own = dataclasses.replace(lab, arms=arms, studies={}, scales={lab.scale: active})
        if expected:
            assert refused(own) == expected
        else:
            check_lab(own)


@pytest.mark.parametrize(
    ("own", "changes", "wanted"),
    [
        (BY_GRADIENT, {}, []),
        (BY_GRADIENT, {"rollout_gradients": False}, ["grpo.rollout_gradients"]),
        (BY_GRADIENT, {"kl_beta": 0.1}, ["grpo.kl_beta"]),
        (BY_ROLLOUT, {"kl_beta": 0.1}, []),
        (BY_ROLLOUT, {"rollout_gradients": False}, ["grpo.rollout_gradients"]),
        (ArmSettings(intervention="measure"), {"rollout_gradients": False, "kl_beta": 0.1}, []),
    ],
)
def test_needs(own: ArmSettings, changes: dict[str, Any], wanted: list[str]) -> None:
    with pytest.raises(ParamsError) if wanted else nullcontext() as caught:
        check_needs(own, recipe(**changes))
    assert [fault.setting for fault in (caught.value.faults if caught else ())] == wanted
