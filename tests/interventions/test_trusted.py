from __future__ import annotations

import dataclasses

import pytest
import torch

from projected_grpo.directions.algebra import Bases
from projected_grpo.errors import ParamsError
from projected_grpo.interventions import trusted
from projected_grpo.interventions.base import DEFAULT, StepGradients, Vectors, Workbench
from projected_grpo.settings.direction import DirectionSettings

AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
GRADIENT = {"a": torch.tensor([2.0, -3.0, 5.0])}
STEP = StepGradients(GRADIENT, {}, {}, torch.zeros(0))


@dataclasses.dataclass
class Turning:
    independent: bool = True

    def initial(self) -> Bases:
        return {"a": AXES}

    def refreshed(self, step: int) -> Bases:
        del step
        return {"a": torch.tensor([[0.0, 0.0, 1.0]])}


def made(kind: str = "clean", strength: float = 1.0, **changes: object) -> trusted.Trusted:
    fields = {"k": 2, "gate": "one_sided", "refresh_every": 0, "project": "gradient", **changes}
    bench = Workbench(None, None, None, 0, kind=kind, direction=DirectionSettings(**fields), source=Turning())
    return trusted.build(trusted.Options(strength=strength), bench)


def stepped(arm: trusted.Trusted) -> Vectors:
    parts = arm.gradient(STEP)
    assert parts.keys() == {DEFAULT}
    return parts[DEFAULT]


def test_only_what_lies_in_the_span_is_learned_on_both_sides_of_it() -> None:
    assert stepped(made())["a"].tolist() == [2.0, -3.0, 0.0]
    assert stepped(made(strength=0.5))["a"].tolist() == [2.0, -3.0, 2.5]
    assert GRADIENT["a"].tolist() == [2.0, -3.0, 5.0]


def test_updates_are_restricted_in_the_same_way() -> None:
    both = made(project="both")
    assert stepped(both)["a"].tolist() == both.update(DEFAULT, GRADIENT)["a"].tolist() == [2.0, -3.0, 0.0]
    late = made(project="update")
    assert stepped(late) is GRADIENT
    assert late.update(DEFAULT, GRADIENT)["a"].tolist() == [2.0, -3.0, 0.0]
    assert made().update(DEFAULT, GRADIENT) is GRADIENT


@pytest.mark.parametrize("project", ["gradient", "update", "both"])
def test_at_strength_nothing_everything_is_handed_back_as_it_is(project: str) -> None:
    arm = made(strength=0.0, project=project)
    assert stepped(arm) is GRADIENT
    assert arm.update(DEFAULT, GRADIENT) is GRADIENT


def test_the_span_is_refreshed_and_survives_a_checkpoint() -> None:
    arm = made(refresh_every=2)
    arm.start_step(2)
    assert stepped(arm)["a"].tolist() == [0.0, 0.0, 5.0]
    assert arm.figures() == {"basis_overlap": 0.0, "axes": 1.0, "bare_modules": 0.0, "overshoot": 1.0, "flagged": 0.0}
    resumed = made(refresh_every=2)
    resumed.load_state(arm.state())
    assert stepped(resumed)["a"].tolist() == [0.0, 0.0, 5.0]


def test_directions_and_refinements_with_no_meaning_here_are_refused() -> None:
    for kind in ("random", "permuted", "placebo"):
        assert stepped(made(kind))["a"].tolist() == [2.0, -3.0, 0.0]
    for kind in ("hack", "flipped"):
        with pytest.raises(ParamsError, match="must be clean"):
            made(kind)
    refused = {"overshoot": 1.5, "preserve_magnitude": True, "random_match": "energy"}
    for name, value in refused.items():
        with pytest.raises(ParamsError, match=f"axes.{name}"):
            made(**{name: value})
    with pytest.raises(ParamsError, match=r"axes.purge_moments"):
        made(purge_moments=True, refresh_every=1)
