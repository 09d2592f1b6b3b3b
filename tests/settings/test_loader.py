"""One reader, YAML 1.2; a stage that reads one section depends on that section alone."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from projected_grpo.errors import ParamsError
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.loader import active_scale, parse, read_params, section
from projected_grpo.settings.params import SECTIONS
from projected_grpo.settings.sampling import SamplingSettings
from projected_grpo.settings.seeds import Seeds

ROOT = Path(__file__).resolve().parents[2]
SAMPLING = """
scale: tiny
scales:
  tiny:
    seeds: [3, 1]
    sampling: {{samples_per_problem: 2, temperature: {temperature}, max_new_tokens: 64, batch_size: 8}}
  other: {{}}
"""


@pytest.mark.parametrize(
    ("text", "number"), [("1e-05", 1e-5), ("1e-5", 1e-5), ("3e-3", 3e-3), ("1", 1.0), ("2.5E+1", 25.0)]
)
def test_numbers_as_dvc_writes_them(make_params, text, number):
    settings = section(read_params(make_params(SAMPLING.format(temperature=text))), "sampling", SamplingSettings)
    assert settings.temperature == number
    assert type(settings.temperature) is float


@pytest.mark.parametrize("text", ["'1.0'", ".nan", ".inf", "true", "null", "[1.0]"])
def test_what_is_no_number(make_params, text):
    with pytest.raises(ParamsError) as caught:
        section(read_params(make_params(SAMPLING.format(temperature=text))), "sampling", SamplingSettings)
    assert caught.value.setting == "scales.tiny.sampling.temperature"


def test_yaml_1_2_words_are_text(make_params):
    """YAML 1.1 reads `no` as false and 010 as eight."""
    assert read_params(make_params("a: no\nb: 010\n")) == {"a": "no", "b": 10}


def test_sections_come_from_the_active_scale(make_params):
    params = read_params(make_params(SAMPLING.format(temperature=1.0)))
    assert active_scale(params) == "tiny"
    assert section(params, "seeds", Seeds).root == (3, 1)
    with pytest.raises(ParamsError) as caught:
        section(params, "direction", DirectionSettings)
    assert (caught.value.setting, caught.value.value) == ("scales.tiny.direction", "(not set)")


def test_parse_names_the_unknown_step_of_a_path(make_params):
    params = read_params(make_params("arms:\n  vanilla: {intervention: measure}\n"))
    assert parse(params, "arms.vanilla", ArmSettings).intervention == "measure"
    with pytest.raises(ParamsError) as caught:
        parse(params, "arms.vanila", ArmSettings)
    assert caught.value.setting == "arms.vanila"
    assert caught.value.fix == "did you mean `vanilla`?"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: 1\na: 2\n", "must be valid YAML 1.2"),
        ("a: [1\n", "must be valid YAML 1.2"),
        ("- 1\n", "must be a mapping of settings"),
        ("", "must be a mapping of settings"),
    ],
)
def test_files_that_are_no_params(make_params, text, rule):
    with pytest.raises(ParamsError) as caught:
        read_params(make_params(text))
    assert caught.value.rule == rule


def test_a_missing_file(tmp_path):
    with pytest.raises(ParamsError) as caught:
        read_params(tmp_path / "params.yaml")
    assert caught.value.setting == str(tmp_path / "params.yaml")
    assert caught.value.rule == "the file must exist"


def test_a_refusal_reads_well(make_params):
    params = read_params(make_params(SAMPLING.format(temperature="'1.0'")))
    with pytest.raises(ParamsError) as caught:
        section(params, "sampling", SamplingSettings)
    assert str(caught.value) == (
        "1 setting refused; nothing was run\n"
        "\n"
        "scales.tiny.sampling.temperature: '1.0'\n"
        "    rule: must be a number\n"
        "    fix:  temperature is: sampling temperature"
    )


@pytest.mark.parametrize(
    ("teacher", "setting", "fix"),
    [
        ({"pool": "a", "mixx": 0.5, "mix": 0.5}, "arm.teacher.mixx", "did you mean `mix`?"),
        ({"pool": "a", "mix": 2.0}, "arm.teacher.mix", "mix is: share of a group that comes from the pool"),
    ],
)
def test_a_block_that_may_be_null_is_looked_into(teacher: dict[str, object], setting: str, fix: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse({"arm": {"intervention": "measure", "teacher": teacher}}, "arm", ArmSettings)
    [fault] = caught.value.faults
    assert fault.setting == setting
    assert fault.fix.startswith(fix)


BROUGHT = {"arms": {"projected_grpo.settings.direction"}}  # an arm changes settings of that section


@pytest.mark.parametrize("name", [*SECTIONS, "arms", "comparison"])
def test_a_section_brings_in_no_other_and_nothing_heavy(name):
    code = (
        "import sys\n"
        f"import projected_grpo.settings.{name}, projected_grpo.settings.loader\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    ours = {module for module in modules if module.startswith("projected_grpo")}
    assert ours == {
        "projected_grpo",
        "projected_grpo.errors",
        "projected_grpo.settings",
        "projected_grpo.settings.loader",
        "projected_grpo.settings.section",
        f"projected_grpo.settings.{name}",
    } | BROUGHT.get(name, set())
    assert not {"torch", "numpy", "pandas", "transformers", "trl"} & set(modules)


def _documented(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        if name != "root":
            assert field.description, f"{model.__name__}.{name} says nothing of its meaning"
        for inner in (field.annotation, *get_args(field.annotation)):  # a block, or a block that may be null
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                _documented(inner)


@pytest.mark.parametrize("model", [*SECTIONS.values(), ArmSettings])
def test_every_setting_is_explained(model):
    _documented(model)


def test_the_sections_are_those_of_the_shipped_scales():
    scales = read_params(ROOT / "params.yaml")["scales"]
    assert {name: set(block) for name, block in scales.items()} == {name: set(SECTIONS) for name in scales}


def test_loopholes_in_use_are_ones_that_the_project_knows():
    from projected_grpo.problems.loopholes import LOOPHOLES
    from projected_grpo.settings.problems import ProblemsSettings

    annotation = ProblemsSettings.model_fields["loopholes"].annotation
    accepted = set(get_args(get_args(annotation)[0]))
    assert "run_tests" in accepted
    assert accepted <= set(LOOPHOLES)
