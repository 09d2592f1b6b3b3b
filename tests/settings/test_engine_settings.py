"""The engine block: transformers by itself, and no setting of vLLM that would be ignored."""

from __future__ import annotations

from functools import partial

import pytest
from refused_block import block_fault

from projected_grpo.errors import ParamsError
from projected_grpo.settings.engine import TRANSFORMERS, EngineSettings
from projected_grpo.settings.params import check

URL = "http://localhost:8000"


fault_of = partial(block_fault, "engine", EngineSettings)


def test_every_shipped_scale_samples_with_transformers(lab):
    assert {scale.engine for scale in check(lab.write()).scales.values()} == {TRANSFORMERS}


def test_vllm_needs_no_more_than_its_name():
    assert EngineSettings(kind="vllm").model_dump() == {
        "kind": "vllm",
        "mode": "colocate",
        "url": None,
        "memory_share": 0.3,
        "dtype": "auto",
        "context": None,
        "max_gap": 0.02,
    }
    assert EngineSettings(kind="vllm", mode="server", url=URL).url == URL


def test_every_engine_may_be_told_where_it_stops_a_run():
    for kind in ("transformers", "vllm"):
        assert EngineSettings(kind=kind).max_gap == 0.02
        assert EngineSettings(kind=kind, max_gap=0.1).max_gap == 0.1


@pytest.mark.parametrize(
    ("block", "setting", "value", "rule"),
    [
        ({"kind": "transformers", "dtype": "float32"}, "dtype", "float32", "ignored, as kind is transformers"),
        ({"kind": "transformers", "max_gap": 0.0}, "max_gap", 0.0, "must be above 0"),
        ({"kind": "vllm", "url": URL}, "url", URL, "would be ignored, as mode is colocate"),
        (
            {"kind": "vllm", "mode": "server", "url": URL, "dtype": "float32"},
            "dtype",
            "float32",
            "`vllm serve` is told",
        ),
        ({"kind": "vllm", "mode": "server"}, "url", None, "must be set where mode is server"),
        ({"kind": "vllm", "memory_share": 0.0}, "memory_share", 0.0, "must be above 0"),
        ({"kind": "vllm", "max_gap": 0.0}, "max_gap", 0.0, "must be above 0"),
        ({"kind": "sglang"}, "kind", "sglang", "must be one of transformers, vllm"),
    ],
)
def test_what_does_not_fit_is_refused(block, setting, value, rule):
    fault = fault_of(block)
    assert (fault.setting, fault.value) == (f"engine.{setting}", value)
    assert rule in fault.rule


def test_several_seeds_side_by_side_are_refused(lab):
    """Each would start a vLLM on the one device, or overwrite the weights of the others' server."""
    lab.micro.update(engine={"kind": "vllm"}, seeds=[1, 2], launcher=None)
    with pytest.raises(ParamsError) as refusal:
        check(lab.write())
    fault = refusal.value.faults[0]
    assert (fault.setting, fault.value) == ("scales.micro.engine.kind", "vllm")
    assert "one vLLM holds the weights of one run" in fault.rule


@pytest.mark.parametrize("alone", [{"seeds": [1]}, {"launcher": "one_gpu.yaml"}])
def test_one_run_at_a_time_may_have_a_vllm(lab, alone):
    (lab.root / "one_gpu.yaml").write_text("")
    lab.params["studies"] = {}
    lab.micro.update({"engine": {"kind": "vllm"}, "launcher": None} | alone)
    assert check(lab.write()).active.engine == EngineSettings(kind="vllm")
