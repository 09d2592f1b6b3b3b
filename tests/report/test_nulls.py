"""The lines that shares are read by: those of the algebra, with each arm's own number of axes."""

from __future__ import annotations

import copy
from functools import cache

import pandas as pd
import pytest
import torch

from projected_grpo.directions.algebra import alignment_null, erase_all, haar_basis
from projected_grpo.report.nulls import Null, Nulls, nulls, of_arms

R, MATRICES, MEASURED = 100, 3, 8


@cache
def bases(k: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(k)
    return {f"m{place}": haar_basis(k, R, generator) for place in range(MATRICES)}


def record(k: int | None, **direction: object) -> dict:
    own = {"k": k, "gate": "one_sided", "overshoot": 1.0, "noise_floor": 0.0, "preserve_magnitude": False,
           "random_match": "rank"}  # fmt: skip
    kind = "erase" if k else "measure"
    return {"settings": {"direction": own | direction if k else None, "grpo": {"measure_k": MEASURED},
                         "arm_settings": {"intervention": kind, "direction": "random"}}}  # fmt: skip


@pytest.fixture(scope="module")
def steps() -> pd.DataFrame:
    return pd.DataFrame({"arm": ["vanilla", "a", "b"], "alignment_null": alignment_null(bases(MEASURED))})


@pytest.mark.parametrize("k", [1, 2, 8, 16])
def test_leak_is_read_by_the_arms_own_axes(steps, k):
    found = nulls(steps, {"vanilla": record(None), "a": record(k), "b": record(MEASURED)})
    assert {arm: line.value for line in found.leak for arm in line.arms} == {
        "a": pytest.approx(alignment_null(bases(k)), abs=1e-6),
        "b": pytest.approx(alignment_null(bases(MEASURED)), abs=1e-6),
    }
    [measured] = found.alignment
    assert measured == Null(pytest.approx(alignment_null(bases(MEASURED)), abs=1e-6), MEASURED, ("vanilla", "a", "b"))


@pytest.mark.parametrize("gate", ["one_sided", "both_sides", "reverse"])
@pytest.mark.parametrize("overshoot", [0.5, 1.0])
def test_what_is_removed_by_chance_is_what_the_gate_takes_of_noise(steps, gate, overshoot):
    [line] = nulls(steps, {"a": record(4, gate=gate, overshoot=overshoot)}).removed
    generator = torch.Generator().manual_seed(1)
    noise = {name: torch.randn(100, R, generator=generator) for name in bases(4)}
    left = erase_all(noise, bases(4), gate, overshoot)
    taken = sum(float((noise[name] - left[name]).square().sum()) for name in noise)
    assert line.value == pytest.approx((taken / (100 * R * MATRICES)) ** 0.5, rel=0.05)


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"noise_floor": 0.2}, (0, 0)),
        ({"preserve_magnitude": True}, (1, 0)),
        ({"random_match": "energy"}, (1, 0)),
        ({}, (1, 1)),
    ],
)
def test_where_the_settings_do_not_tell_there_is_no_line(steps, change, lines):
    found = nulls(steps, {"a": record(4, **change)})
    assert (len(found.leak), len(found.removed)) == lines


def test_an_arm_that_does_not_erase_has_no_line_of_what_it_removes(steps):
    guarded = copy.deepcopy(record(4))
    guarded["settings"]["arm_settings"]["intervention"] = "guarded"
    found = nulls(steps, {"a": guarded})
    assert len(found.leak) == 1
    assert found.removed == ()


def test_without_records_only_the_measured_null_is_known(steps):
    found = nulls(steps, {})
    assert found == Nulls(alignment=(Null(found.alignment[0].value, None, ("vanilla", "a", "b")),))
    assert found.alignment[0].label() == "null"


def test_a_line_names_its_arms_where_it_is_not_that_of_all():
    lines = (Null(0.1, 2, ("a",)), Null(0.2, 8, ("b", "c")))
    assert of_arms(lines, ["a", "b"]) == {"null, k = 2 (a)": 0.1, "null, k = 8 (b)": 0.2}
    assert of_arms(lines, ["b", "c"]) == {"null, k = 8": 0.2}
