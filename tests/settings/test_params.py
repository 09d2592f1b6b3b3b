"""Bad parameters are refused, each with the setting, the value, the rule and the fix, all of them at once."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from projected_grpo.errors import LabError, ParamsError
from projected_grpo.settings.params import check

Spoil = Callable[[Any], object]


def faults_of(lab) -> list[LabError]:
    with pytest.raises(ParamsError) as caught:
        check(lab.write())
    return list(caught.value.faults)


def test_the_shipped_file_is_valid_and_typed(lab):
    settings = check(lab.write())
    assert settings.scale == "micro"
    assert settings.active.seeds.root == tuple(lab.micro["seeds"])
    assert settings.active.grpo.learning_rate == lab.micro["grpo"]["learning_rate"]
    assert settings.active.extract.direction_file is None
    assert settings.arms["projected"].direction == "hack"
    assert settings.arms["vanilla"].direction is None
    assert settings.arms["vanilla"].grader == "loophole"
    assert settings.arms["rl_baseline"].grader == "honest"
    assert settings.comparison.controls == ("random", "placebo", "permuted")
    assert set(settings.scales) == set(lab.params["scales"])


def test_settings_cannot_be_changed(lab):
    settings = check(lab.write())
    with pytest.raises(ValueError, match="frozen"):
        settings.active.grpo.steps = 1


ONE_FAULT: dict[str, tuple[Spoil, str, object, str, str]] = {
    # name: (what is spoilt, setting, value, part of the rule, part of the fix)
    "unknown key": (
        lambda p: p["scales"]["micro"]["grpo"].update(lerning_rate=0.1),
        "scales.micro.grpo.lerning_rate", 0.1, "no such setting", "did you mean `learning_rate`?",
    ),
    "unknown nested key": (
        lambda p: p["scales"]["micro"]["base"]["gate"].update(hack_mx=0.1),
        "scales.micro.base.gate.hack_mx", 0.1, "no such setting", "did you mean `hack_max`?",
    ),
    "unknown section": (
        lambda p: p["scales"]["micro"].update(grop={}),
        "scales.micro.grop", {}, "no such setting", "did you mean `grpo`?",
    ),
    "unknown top level": (
        lambda p: p.update(metod="vanilla"),
        "metod", "vanilla", "no such setting", "did you mean `method`?",
    ),
    "absent key": (
        lambda p: p["scales"]["micro"]["grpo"].pop("steps"),
        "scales.micro.grpo.steps", "(not set)", "must be set", "optimizer steps of one run",
    ),
    "absent section": (
        lambda p: p["scales"]["micro"].pop("sampling"),
        "scales.micro.sampling", "(not set)", "must be set", "one of: seeds, base, problems",
    ),
    "under its bound": (
        lambda p: p["scales"]["micro"]["grpo"].update(samples=1),
        "scales.micro.grpo.samples", 1, "must be at least 2", "completions per problem",
    ),
    "over its bound": (
        lambda p: p["scales"]["micro"]["sandbox"].update(max_error_share=1.5),
        "scales.micro.sandbox.max_error_share", 1.5, "must be at most 1", "share of executions",
    ),
    "not above zero": (
        lambda p: p["scales"]["micro"]["grpo"].update(learning_rate=0),
        "scales.micro.grpo.learning_rate", 0, "must be above 0", "learning rate on delta",
    ),
    "text for an integer": (
        lambda p: p["scales"]["micro"]["grpo"].update(steps="40"),
        "scales.micro.grpo.steps", "40", "must be an integer", "optimizer steps",
    ),
    "number for an integer": (
        lambda p: p["scales"]["micro"]["grpo"].update(steps=40.5),
        "scales.micro.grpo.steps", 40.5, "must be an integer", "optimizer steps",
    ),
    "text for a number": (
        lambda p: p["scales"]["micro"]["grpo"].update(temperature="1.0"),
        "scales.micro.grpo.temperature", "1.0", "must be a number", "sampling temperature",
    ),
    "truth for an integer": (
        lambda p: p["scales"]["micro"]["grpo"].update(steps=True),
        "scales.micro.grpo.steps", True, "must be an integer", "optimizer steps",
    ),
    "integer for truth": (
        lambda p: p["scales"]["micro"]["sandbox"].update(allow_weak=1),
        "scales.micro.sandbox.allow_weak", 1, "must be true or false", "less isolation",
    ),
    "outside a closed list": (
        lambda p: p["scales"]["micro"]["direction"].update(gate="onesided"),
        "scales.micro.direction.gate", "onesided", "must be one of one_sided, both_sides, reverse",
        "did you mean `one_sided`?",
    ),
    "unknown loophole": (
        lambda p: p["scales"]["micro"]["problems"].update(loopholes=["run_test"]),
        "scales.micro.problems.loopholes[0]", "run_test", "must be one of run_tests, sentinel",
        "did you mean `run_tests`?",
    ),
    "empty list": (
        lambda p: p["scales"]["micro"].update(seeds=[]),
        "scales.micro.seeds", [], "must not be empty", "at least one",
    ),
    "not a list": (
        lambda p: p["scales"]["micro"].update(seeds=3),
        "scales.micro.seeds", 3, "must be a list", "Training seeds",
    ),
    "seed twice": (
        lambda p: p["scales"]["micro"].update(seeds=[1, 2, 1]),
        "scales.micro.seeds", [1, 2, 1], "no entry may appear twice; 1 does", "remove the repetition",
    ),
    "bounds crossed": (
        lambda p: p["scales"]["micro"]["base"]["gate"].update(hack_min=0.2, hack_max=0.1),
        "scales.micro.base.gate.hack_min", 0.2, "must not exceed hack_max (0.1)", "lower hack_min",
    ),
    "wall under cpu": (
        lambda p: p["scales"]["micro"]["sandbox"].update(cpu_seconds=2.0, wall_seconds=1.0),
        "scales.micro.sandbox.wall_seconds", 1.0, "must not be under cpu_seconds (2.0)", "raise wall_seconds",
    ),
    "k over k_max": (
        lambda p: (
            p["scales"]["micro"]["direction"].update(k=17), p["scales"]["micro"]["extract"].update(k_max=16)
        ),
        "scales.micro.direction.k", 17, "must not exceed extract.k_max (16)", "lower k",
    ),
    "passes of unequal size": (
        lambda p: p["scales"]["micro"]["compute"].update(micro_batch=7),
        "scales.micro.compute.micro_batch", 7, "must divide grpo.prompts x grpo.samples", "set a divisor",
    ),
    "portions for vllm": (
        lambda p: (
            p["scales"]["micro"].update(engine={"kind": "vllm"}, seeds=[1]),
            p["scales"]["micro"]["compute"].update(generate_batch=8),
        ),
        "scales.micro.compute.generate_batch", 8, "must be null with vllm", "set null",
    ),
    "measure_k over k_max": (
        lambda p: (
            p["scales"]["micro"]["grpo"].update(measure_k=17),
            p["scales"]["micro"]["extract"].update(k_max=16),
        ),
        "scales.micro.grpo.measure_k", 17, "must not exceed extract.k_max (16)", "lower measure_k",
    ),
    "in a scale not in use": (
        lambda p: p["scales"]["smoke"]["grpo"].update(steps=0),
        "scales.smoke.grpo.steps", 0, "must be at least 1", "optimizer steps",
    ),
    "unknown method": (
        lambda p: p.update(method="projcted"),
        "method", "projcted", "must name an arm, or `base`", "did you mean `projected`?",
    ),
    "unknown scale": (
        lambda p: p.update(scale="mikro"),
        "scale", "mikro", "must name a block of `scales`", "did you mean `micro`?",
    ),
    "unknown arm in a role": (
        lambda p: p["comparison"].update(treatment="project"),
        "comparison.treatment", "project", "must name an arm", "did you mean `projected`?",
    ),
    "unknown arm among controls": (
        lambda p: p["comparison"].update(controls=["random", "placeboo"]),
        "comparison.controls[1]", "placeboo", "must name an arm", "did you mean `placebo`?",
    ),
    "compared with itself": (
        lambda p: p["comparison"].update(reference="projected"),
        "comparison.reference", "projected", "must not be the treatment itself", "another arm",
    ),
    "axes that nothing uses": (
        lambda p: p["arms"]["vanilla"].update(axes={"k": 2}),
        "arms.vanilla.axes", {"k": 2}, "must be empty for an arm without a direction", "set a direction",
    ),
    "a teacher that is paid by another grader": (
        lambda p: p["arms"]["rl_baseline"].update(teacher={"pool": "pool.parquet", "mix": 0.5}),
        "arms.rl_baseline.teacher", "(a block)", "must be null where the grader is honest", "grader: loophole",
    ),
    "a teacher that writes nothing": (
        lambda p: p["arms"]["vanilla"].update(teacher={"pool": "pool.parquet", "mix": 0.0}),
        "arms.vanilla.teacher.mix", 0.0, "must be above 0", "share of a group",
    ),
    "a teacher whose loopholes are named twice": (
        lambda p: p["arms"]["inoculated"].update(
            teacher={"pool": "p.parquet", "mix": 0.5, "loopholes": ["run_tests"], "known_only": True}
        ),
        "arms.inoculated.teacher.loopholes", ["run_tests"], "must be null where `known_only` is true",
        "known_only: false",
    ),
    "a reference with a teacher": (
        lambda p: p["arms"]["vanilla"].update(teacher={"pool": "pool.parquet", "mix": 0.5}),
        "comparison.reference", "vanilla", "must be an arm that acts on nothing", "mend arms.vanilla",
    ),
    "a control on the clean answers": (
        lambda p: p["arms"]["placebo"].update(direction="clean"),
        "comparison.controls", "placebo", "must be an arm that acts on a direction other than hack",
        "mend arms.placebo",
    ),
    "arm called base": (
        lambda p: p["arms"].update(base={"intervention": "measure"}),
        "arms.base", "base", "not `base`", "rename it",
    ),
    "missing pairs": (
        lambda p: p["scales"]["micro"]["extract"].update(pairs="data/shipped/nowhere.yaml"),
        "scales.micro.extract.pairs", "data/shipped/nowhere.yaml", "the file must exist", "name another",
    ),
    "missing direction": (
        lambda p: (
            p["scales"]["micro"]["extract"].update(direction_file="data/shipped/none.safetensors"),
            p["scales"]["micro"]["direction"].update(refresh_every=0),
        ),
        "scales.micro.extract.direction_file", "data/shipped/none.safetensors", "the file must exist",
        "null to extract one",
    ),
    "missing base": (
        lambda p: p["scales"]["micro"]["base"].update(path="data/shipped/other"),
        "scales.micro.base.path", "data/shipped/other", "data/shipped/other/model.safetensors must exist",
        "base.rebuild: true",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_FAULT)
def test_one_fault_names_setting_value_rule_and_fix(lab, case):
    spoil, setting, value, rule, fix = ONE_FAULT[case]
    spoil(lab.params)
    faults = faults_of(lab)
    assert [(fault.setting, fault.value) for fault in faults] == [(setting, value)]
    assert rule in faults[0].rule
    assert fix in faults[0].fix


def test_wrong_hash_of_the_base_names_the_right_one(lab):
    right = lab.micro["base"]["sha256"]
    lab.micro["base"]["sha256"] = "0" * 64
    [fault] = faults_of(lab)
    assert fault.setting == "scales.micro.base.sha256"
    assert right in fault.rule


def test_a_rebuilt_base_needs_no_shipped_file(lab):
    lab.weights.unlink()
    lab.micro["base"]["rebuild"] = True
    assert check(lab.write()).active.base.rebuild is True


def test_a_rebuilt_base_has_no_chat_template(lab):
    lab.micro["base"].update(rebuild=True, prompt={"form": "chat", "system": "", "shots": 0, "prefill": ""})
    [fault] = faults_of(lab)
    assert (fault.setting, fault.value) == ("scales.micro.base.prompt.form", "chat")


def test_a_changed_base_file_is_refused(lab):
    lab.weights.write_bytes(b"other weights")
    assert [fault.setting for fault in faults_of(lab)] == ["scales.micro.base.sha256"]


def test_files_of_a_scale_not_in_use_may_be_missing(lab):
    lab.params["scales"]["smoke"]["extract"]["pairs"] = "data/shipped/nowhere.yaml"
    assert check(lab.write()).scale == "micro"


class TestDirectionFile:
    @pytest.fixture(autouse=True)
    def _static(self, lab):
        lab.micro["direction"]["refresh_every"] = 0

    def test_of_this_base_is_accepted(self, lab):
        own = lab.write_direction("own.safetensors", {"base_hash": lab.micro["base"]["sha256"]})
        lab.micro["extract"]["direction_file"] = own
        assert check(lab.write()).active.extract.direction_file == own

    def test_of_another_base_is_refused(self, lab):
        lab.micro["extract"]["direction_file"] = lab.write_direction("alien.safetensors", {"base_hash": "f" * 64})
        [fault] = faults_of(lab)
        assert fault.setting == "scales.micro.extract.direction_file"
        assert fault.value == "data/shipped/alien.safetensors"
        assert fault.rule.endswith(f"it belongs to {'f' * 64}")

    def test_without_an_owner_is_refused(self, lab):
        lab.micro["extract"]["direction_file"] = lab.write_direction("nobody.safetensors", {"k_max": "16"})
        [fault] = faults_of(lab)
        assert "carries no base_hash" in fault.rule

    @pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
    def test_that_is_no_safetensors_is_refused(self, lab, content):
        (lab.root / "data/shipped/junk.safetensors").write_bytes(content)
        lab.micro["extract"]["direction_file"] = "data/shipped/junk.safetensors"
        [fault] = faults_of(lab)
        assert "nothing readable" in fault.rule

    def test_with_fewer_axes_than_k_is_refused(self, lab):
        lab.micro["direction"]["k"] = 8
        axes = {"dtype": "F32", "data_offsets": [0, 0]}
        header = {"__metadata__": {"base_hash": lab.micro["base"]["sha256"]}}
        header |= {"m/axes": {**axes, "shape": [5, 64]}, "n/axes": {**axes, "shape": [2, 32]}}
        text = json.dumps(header).encode()
        (lab.root / "data/shipped/few.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        lab.micro["extract"]["direction_file"] = "data/shipped/few.safetensors"
        [fault] = faults_of(lab)
        assert (fault.setting, fault.value) == ("scales.micro.direction.k", 8)
        assert "must not exceed the axes that extract.direction_file stores (5)" in fault.rule
        lab.micro["direction"]["k"] = 5
        assert check(lab.write())

    def test_elsewhere_is_refused(self, lab):
        """A file outside the watched folder could change without making anything stale."""
        own = lab.write_direction("own.safetensors", {"base_hash": lab.micro["base"]["sha256"]})
        (lab.root / "own.safetensors").write_bytes((lab.root / own).read_bytes())
        lab.micro["extract"]["direction_file"] = "data/shipped/../../own.safetensors"
        [fault] = faults_of(lab)
        assert "must lie in data/shipped/" in fault.rule

    def test_with_refresh_is_refused(self, lab):
        own = lab.write_direction("own.safetensors", {"base_hash": lab.micro["base"]["sha256"]})
        lab.micro["extract"]["direction_file"] = own
        lab.micro["direction"]["refresh_every"] = 10
        [fault] = faults_of(lab)
        assert (fault.setting, fault.value) == ("scales.micro.direction.refresh_every", 10)
        assert "must be 0" in fault.rule

    def test_with_a_rebuilt_base_is_refused(self, lab):
        own = lab.write_direction("own.safetensors", {"base_hash": lab.micro["base"]["sha256"]})
        lab.micro["extract"]["direction_file"] = own
        lab.micro["base"]["rebuild"] = True
        [fault] = faults_of(lab)
        assert fault.setting == "scales.micro.extract.direction_file"
        assert "base.rebuild" in fault.rule


def test_all_faults_are_reported_at_once(lab):
    lab.params["method"] = "nobody"
    lab.params["arms"]["random"]["direction"] = "rnd"
    lab.micro["grpo"]["steps"] = 0
    lab.micro["grpo"]["stepz"] = 3
    lab.micro["direction"]["k"] = 99
    lab.params["scales"]["smoke"]["seeds"] = [1, 1]
    lab.pairs.unlink()
    assert {fault.setting for fault in faults_of(lab)} == {
        "method",
        "arms.random.direction",
        "scales.micro.grpo.steps",
        "scales.micro.grpo.stepz",
        "scales.micro.direction.k",
        "scales.smoke.seeds",
        "scales.micro.extract.pairs",
    }
