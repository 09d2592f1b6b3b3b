"""The compute block: where the factors of each shipped scale live, and what cannot be mapped."""

from __future__ import annotations

from functools import partial

from refused_block import block_fault

from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.loader import parse
from projected_grpo.settings.params import check

BLOCK = {
    "device": "cpu", "dtype": "float32", "micro_batch": None, "generate_batch": None, "checkpointing": False,
    "keep_factors": False, "factors": "device",
}  # fmt: skip


fault_of = partial(block_fault, "compute", ComputeSettings)


def test_factors_leave_the_card_of_the_large_scales_alone(lab):
    assert {name: scale.compute.factors for name, scale in check(lab.write()).scales.items()} == {
        "micro": "device",
        "smoke": "device",
        "smollm2": "device",
        "qwen3-4b": "cpu",
        "qwen3-4b-fast": "cpu",
    }


def test_mapped_factors_need_files():
    fault = fault_of({**BLOCK, "factors": "disk"})
    assert (fault.setting, fault.value) == ("compute.factors", "disk")
    assert fault.rule == "needs keep_factors, whose files are mapped"
    assert fault.fix == "set compute.keep_factors: true, or factors: cpu"
    for home, keep in (("disk", True), ("cpu", False), ("cpu", True), ("device", False)):
        block = {**BLOCK, "factors": home, "keep_factors": keep}
        assert parse({"compute": block}, "compute", ComputeSettings).factors == home


def test_factors_live_in_one_of_three_places():
    fault = fault_of({**BLOCK, "factors": "cuda"})
    assert (fault.setting, fault.value) == ("compute.factors", "cuda")
    assert "must be one of device, cpu, disk" in fault.rule
    assert fault_of({name: value for name, value in BLOCK.items() if name != "factors"}).setting == "compute.factors"
