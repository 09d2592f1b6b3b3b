from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from projected_grpo.directions.algebra import Bases, alignment, removed_share
from projected_grpo.interventions import erase, measure
from projected_grpo.interventions.base import (
    DEFAULT,
    QUARANTINE,
    DirectionSource,
    Intervention,
    StepGradients,
    Vectors,
    Workbench,
)
from projected_grpo.interventions.erase import Erase
from projected_grpo.settings.direction import DirectionSettings

AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
GRADIENT = {"a": torch.tensor([2.0, -3.0, 5.0])}  # hack-ward along axis 0
UPDATE = {"a": torch.tensor([-2.0, 3.0, 5.0])}  # optimizers move against gradients: hack-ward along axis 0, too


@dataclasses.dataclass
class Recorder:
    """A source whose axes tell the step they were made for."""

    steps: list[int] = dataclasses.field(default_factory=list)
    independent: bool = False

    def initial(self) -> Bases:
        return {"a": AXES}

    def refreshed(self, step: int) -> Bases:
        self.steps.append(step)
        return {"a": AXES * step}


def settings(**changes: object) -> DirectionSettings:
    fields = {"k": 2, "gate": "one_sided", "refresh_every": 0, "project": "gradient"}
    return DirectionSettings(**{**fields, **changes})


def made(**changes: object) -> Erase:
    return Erase(settings(**changes), Recorder())


def built(
    direction: DirectionSettings | None, source: DirectionSource | None, reference: Bases | None = None
) -> Intervention:
    bench = Workbench(None, None, None, seed=0, direction=direction, source=source, reference=reference)
    return erase.build(erase.Options(), bench)


def idle() -> Intervention:
    return measure.build(measure.Options(), Workbench(None, None, None, seed=0))


def stepped(arm: Intervention, total: Vectors) -> Vectors:
    """What the deployed adapter gets of a gradient; an arm that erases has no other."""
    parts = arm.gradient(StepGradients(total, {}, {}, torch.zeros(0)))
    assert parts.keys() == {DEFAULT}
    return parts[DEFAULT]


def values(vectors: Vectors) -> list[float]:
    return vectors["a"].tolist()


GATES = {
    "one_sided": ([0.0, -3.0, 5.0], [0.0, 3.0, 5.0]),
    "both_sides": ([0.0, 0.0, 5.0], [0.0, 0.0, 5.0]),
    "reverse": ([-2.0, -3.0, 5.0], [2.0, 3.0, 5.0]),
}


@pytest.mark.parametrize("project", ["gradient", "update", "both"])
@pytest.mark.parametrize("gate", GATES)
def test_gate_and_place_of_the_projection(gate: str, project: str) -> None:
    arm = made(gate=gate, project=project)
    gradient, update = GATES[gate]
    assert values(stepped(arm, GRADIENT)) == (values(GRADIENT) if project == "update" else gradient)
    assert values(arm.update(DEFAULT, UPDATE)) == (values(UPDATE) if project == "gradient" else update)
    assert values(GRADIENT) == [2.0, -3.0, 5.0]  # nothing is changed in place
    assert values(UPDATE) == [-2.0, 3.0, 5.0]


@pytest.mark.parametrize("gate", GATES)
def test_for_plain_descent_it_does_not_matter_where_the_projection_stands(gate: str) -> None:
    """update = -rate * gradient, so projecting either gives the same step; a wrong sign would not."""
    arm = made(gate=gate, project="both")
    rate = 0.5
    descent = {name: -rate * vector for name, vector in GRADIENT.items()}
    assert values(arm.update(DEFAULT, descent)) == [-rate * x for x in values(stepped(arm, GRADIENT))]


def test_an_update_that_is_not_projected_is_handed_back_as_it_is() -> None:
    """The trainer writes parameters only where it gets another object back."""
    assert made(project="gradient").update(DEFAULT, UPDATE) is UPDATE
    assert stepped(made(project="update"), GRADIENT) is GRADIENT


@pytest.mark.parametrize("project", ["gradient", "update", "both"])
def test_only_the_deployed_adapters_update_is_projected(project: str) -> None:
    """What stands in an adapter that is thrown away may be as hack-ward as it likes."""
    assert made(project=project).update(QUARANTINE, UPDATE) is UPDATE


def test_negative_control_without_the_projection_the_gradient_is_not_orthogonal() -> None:
    hackward = {"a": AXES}
    off, on = idle(), made()
    assert alignment(stepped(off, GRADIENT), hackward) == pytest.approx(2 / 38**0.5)
    assert alignment(stepped(on, GRADIENT), hackward) == 0.0


def test_a_module_without_axes_is_an_error() -> None:
    with pytest.raises(KeyError, match="lonely"):
        stepped(made(), {**GRADIENT, "lonely": torch.ones(3)})
    with pytest.raises(KeyError, match="lonely"):
        made(project="update").update(DEFAULT, {**UPDATE, "lonely": torch.ones(3)})


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (6, [6]), (7, [])])
def test_axes_are_refreshed_every_n_steps_and_never_at_the_first(every: int, expected: list[int]) -> None:
    source = Recorder()
    arm = Erase(settings(refresh_every=every), source)
    for step in range(7):
        arm.start_step(step)
    assert source.steps == expected
    last = expected[-1] if expected else 1
    assert torch.equal(arm.bases()["a"], AXES * last)  # and they are the ones in use


def test_refreshed_axes_are_the_ones_that_are_erased() -> None:
    arm = Erase(settings(refresh_every=1), Turning(independent=True))
    assert values(stepped(arm, GRADIENT)) == [0.0, -3.0, 5.0]
    arm.start_step(1)
    assert values(stepped(arm, GRADIENT)) == [2.0, -3.0, 0.0]


def test_a_resumed_arm_continues_with_the_axes_it_had() -> None:
    arm = made(refresh_every=3)
    for step in range(5):
        arm.start_step(step)
    state = {name: tensor.clone() for name, tensor in arm.state().items()}
    source = Recorder()
    resumed = Erase(settings(refresh_every=3), source)
    assert not torch.equal(resumed.bases()["a"], arm.bases()["a"])
    resumed.load_state(state)
    resumed.start_step(5)
    assert source.steps == []  # the checkpoint's axes are used, none are made
    assert torch.equal(resumed.bases()["a"], arm.bases()["a"])
    assert values(stepped(resumed, GRADIENT)) == values(stepped(arm, GRADIENT))


# ---------------------------------------------------------------- refinements

Z_AXIS = torch.tensor([[0.0, 0.0, 1.0]])


@dataclasses.dataclass
class Turning:
    """Axes 0 and 1 at first; the third coordinate at a refresh."""

    independent: bool = False

    def initial(self) -> Bases:
        return {"a": AXES}

    def refreshed(self, step: int) -> Bases:
        del step
        return {"a": Z_AXIS}


@pytest.mark.parametrize("project", ["gradient", "update", "both"])
def test_at_overshoot_0_it_hands_back_the_very_same_tensors(project: str) -> None:
    arm = made(project=project, overshoot=0.0, purge_moments=True, refresh_every=2)
    arm.start_step(arm.settings.refresh_every)
    assert arm.purge(GRADIENT) is GRADIENT
    step = StepGradients(GRADIENT, {}, {}, torch.zeros(0))
    assert arm.gradient(step)[DEFAULT] is GRADIENT
    assert arm.update(DEFAULT, GRADIENT) is GRADIENT
    assert arm.figures()["overshoot"] == 0.0


def test_overshoot_and_magnitude_reach_the_projection() -> None:
    assert values(stepped(made(overshoot=1.5), GRADIENT)) == [-1.0, -3.0, 5.0]
    kept = stepped(made(preserve_magnitude=True), GRADIENT)["a"]
    assert float(kept.norm()) == pytest.approx(38**0.5)
    assert kept.tolist() == pytest.approx([0.0, -3.0 * (38 / 34) ** 0.5, 5.0 * (38 / 34) ** 0.5])
    assert values(made(project="update", overshoot=1.5).update(DEFAULT, UPDATE)) == [1.0, 3.0, 5.0]


def test_moments_are_purged_once_after_each_refresh() -> None:
    arm = Erase(settings(refresh_every=2, purge_moments=True), Turning(independent=True))
    moments = {"a": torch.tensor([1.0, 2.0, -3.0])}
    for step in (0, 1):
        arm.start_step(step)
        assert arm.purge(moments) is moments
    arm.start_step(2)
    assert values(arm.purge(moments)) == [1.0, 2.0, 0.0]  # all of the new V's span, on both sides
    assert values(moments) == [1.0, 2.0, -3.0]
    assert arm.purge(moments) is moments
    arm.start_step(3)
    assert arm.purge(moments) is moments


def test_moments_stay_where_nobody_asked() -> None:
    arm = Erase(settings(refresh_every=1), Turning(independent=True))
    arm.start_step(1)
    moments = {"a": torch.ones(3)}
    assert arm.purge(moments) is moments
    assert idle().purge(moments) is moments


def test_a_refresh_that_turns_v_away_warns_and_shows_in_the_log() -> None:
    arm = Erase(settings(refresh_every=2), Turning())
    arm.start_step(1)
    assert arm.figures()["basis_overlap"] == 1.0
    with pytest.warns(UserWarning, match=r"step 2: the refreshed V shares 0.00 of its span .* under 0.2"):
        arm.start_step(2)
    assert arm.figures()["basis_overlap"] == 0.0
    arm.start_step(3)
    assert arm.figures()["basis_overlap"] == 1.0


@pytest.mark.filterwarnings("error")
def test_a_random_v_may_turn_as_it_likes() -> None:
    arm = Erase(settings(refresh_every=1), Turning(independent=True))
    arm.start_step(1)
    assert arm.figures()["basis_overlap"] == 0.0


@pytest.mark.filterwarnings("error")
def test_a_v_that_stays_near_does_not_warn() -> None:
    arm = Erase(settings(refresh_every=1), Recorder())
    arm.start_step(1)
    assert arm.figures()["basis_overlap"] == pytest.approx(1.0)


def test_a_matched_control_takes_as_much_as_the_reference_would() -> None:
    """The reference would take 5 along its (0, 0, 1), the own axes take 2: so they take it 2.5 times."""
    arm = built(settings(), Recorder(), {"a": Z_AXIS})
    assert values(stepped(arm, GRADIENT)) == [-3.0, -3.0, 5.0]
    assert removed_share(GRADIENT, stepped(arm, GRADIENT)) == pytest.approx(5 / 38**0.5)
    assert arm.figures()["overshoot"] == pytest.approx(2.5)
    once_more = built(settings(overshoot=2.0), Recorder(), {"a": Z_AXIS})
    assert values(stepped(once_more, GRADIENT)) == [-8.0, -3.0, 5.0]


def test_every_arm_has_the_same_figures() -> None:
    arm = made()
    assert set(arm.figures()) == set(idle().figures())
    assert arm.figures() == {"basis_overlap": 1.0, "axes": 2.0, "bare_modules": 0.0, "overshoot": 1.0, "flagged": 0.0}


def test_modules_that_v_leaves_bare_are_counted_stay_and_survive_a_checkpoint(tmp_path: Path) -> None:
    class Sparse(Recorder):
        def initial(self) -> Bases:
            return {"a": AXES, "b": AXES[:0], "c": AXES[:0]}

    arm = Erase(settings(), Sparse())
    gradients = dict.fromkeys("abc", GRADIENT["a"])
    assert stepped(arm, gradients)["b"].tolist() == [2.0, -3.0, 5.0]
    assert (arm.figures()["axes"], arm.figures()["bare_modules"]) == (2.0, 2.0)
    save_file(arm.state(), tmp_path / "state.safetensors")
    resumed = Erase(settings(), Recorder())
    resumed.load_state(load_file(tmp_path / "state.safetensors"))
    assert {module: basis.shape for module, basis in resumed.bases().items()} == {"a": (2, 3), "b": (0, 3), "c": (0, 3)}


def test_build_gives_the_arm_or_refuses() -> None:
    arm = built(settings(gate="both_sides"), Recorder())
    assert values(stepped(arm, GRADIENT)) == [0.0, 0.0, 5.0]
    with pytest.raises(ValueError, match="needs direction settings and a direction"):
        built(None, Recorder())
    with pytest.raises(ValueError, match="needs direction settings and a direction"):
        built(settings(), None)
