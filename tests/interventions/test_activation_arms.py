"""Discounts before the group baseline by activations and by gradients, and activations projected while sampling."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from projected_grpo.directions.concept import Concept
from projected_grpo.directions.discriminant import Discriminant
from projected_grpo.errors import ParamsError
from projected_grpo.interventions import advantage, gradient_advantage, suppressed
from projected_grpo.interventions.advantage import Advantage, discounted, one_sided_z
from projected_grpo.interventions.base import DEFAULT, Rollouts, StepGradients, Task, Workbench
from projected_grpo.interventions.gradient_advantage import DiscriminantAdvantage, GradientAdvantage, Options
from projected_grpo.interventions.reading import Reader
from projected_grpo.interventions.registry import check_arms
from projected_grpo.interventions.suppressed import Suppressed
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

REWARDS = [3.0, 3.0, 0.5, 0.1 + 0.2]
BASES = {"m": torch.tensor([[1.0, 0.0]])}
MEANS = {"m": torch.tensor([1.0, 0.0])}


def rollouts(n: int = 4) -> Rollouts:
    task = Task("f", "", "run_tests", "run_tests")
    return Rollouts(0, n, (task,) * n, ("p",) * n, ("c",) * n, ((1,),) * n, (True,) * n, (False,) * n)


# ---------------------------------------------------------------- the discount


def test_z_is_one_sided_within_the_group_and_floored() -> None:
    z = one_sided_z(torch.tensor([1.0, 3.0, 0.0, 0.01]), 2, 0.1)
    assert z.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.05])  # the second group's sd 0.005 is under the floor


def test_a_discount_costs_and_never_pays() -> None:
    assert discounted([3.0, -3.0, 2.0], [1.0, 1.0, 0.0], "multiplicative", 2.0) == [1.0, -9.0, 2.0]
    assert discounted([3.0, -3.0, 2.0], [1.0, 1.0, 0.0], "additive", 2.0) == [1.0, -5.0, 2.0]


def advantage_arm(monkeypatch: pytest.MonkeyPatch, alpha: float, **options: float) -> Advantage:
    arm = Advantage.__new__(Advantage)
    arm.options, arm.model, arm.tokenizer = advantage.Options(alpha=alpha, **options), None, None  # type: ignore[assignment]
    arm.at_once = 4
    arm.concept, arm._scores, arm._flagged = Concept((0,), torch.tensor([[1.0, 0.0]]), 1.0), None, 0.0
    states = torch.tensor([[3.0, 9.0], [1.0, 9.0], [1.0, 9.0], [1.0, 9.0]]).view(4, 1, 2)
    monkeypatch.setattr(advantage, "hidden_means", lambda *_: states)
    return arm


def test_advantage_discounts_what_stands_out_of_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = advantage_arm(monkeypatch, 2.0)
    got = arm.reward(rollouts(), list(REWARDS))
    assert got == [pytest.approx(3.0 / (1 + 2 * 3**0.5)), *REWARDS[1:]]  # z = (3 - 1.5) / sqrt(0.75)
    assert arm.scores() == [3.0, 1.0, 1.0, 1.0]
    assert arm.figures()["flagged"] == 0.25
    floored = advantage_arm(monkeypatch, 2.0, floor=3.0).reward(rollouts(), list(REWARDS))
    assert floored[0] == pytest.approx(3.0 / (1 + 2 * 0.5))  # z = (3 - 1.5) / 3


def test_advantage_off_is_the_same_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    assert advantage_arm(monkeypatch, 0.0).reward(rollouts(), list(REWARDS)) == REWARDS


def test_depths_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="depth_low"):
        advantage.Options(depth_low=0.8)


# ---------------------------------------------------------------- by gradients


def step(advantages: list[float]) -> StepGradients:
    unit = {"m": torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])}
    a = torch.tensor(advantages)
    return StepGradients({"m": a @ unit["m"]}, {"m": a[:, None] * unit["m"]}, unit, a)


def test_gradient_advantage_rebuilds_the_gradient_of_discounted_rewards() -> None:
    arm = GradientAdvantage(Options(alpha=2.0), MEANS, BASES)
    rewards = [3.0, 3.0, 0.5, 0.5]
    assert arm.reward(rollouts(), rewards) == rewards
    paid = 3.0 / (1 + 2 * 3**0.5)  # scores 1, -1, -1, -1: z = (1 + 0.5) / sqrt(0.75)
    mean = (paid + 4.0) / 4
    wanted = (paid - mean) - (3.0 - mean) - 2 * (0.5 - mean)
    got = arm.gradient(step([1.25, 1.25, -1.25, -1.25]))[DEFAULT]["m"]
    torch.testing.assert_close(got, torch.tensor([wanted, 0.0]))
    assert arm.scores() == [1.0, -1.0, -1.0, -1.0]
    assert arm.weights() == pytest.approx([paid - mean, 3.0 - mean, 0.5 - mean, 0.5 - mean])


def test_gradient_advantage_leaves_an_ungraded_completion_out() -> None:
    arm = GradientAdvantage(Options(alpha=2.0), MEANS, BASES)
    """It is told so: a verdict whose reward equals its group's mean has advantage 0 as well."""
    arm.reward(dataclasses.replace(rollouts(), graded=(True, True, False, True)), [3.0, 3.0, 0.0, 0.0])
    got = arm._advantages(torch.tensor([1.0, 3.0, 9.0, 2.0]))
    assert got.tolist() == [-1.0, 1.0, 0.0, 0.0]


def test_gradient_advantage_off_is_the_same_tensors() -> None:
    arm = GradientAdvantage(Options(alpha=0.0), MEANS, BASES)
    assert not arm.unit_rollouts
    gradients = step([1.0, -1.0, 0.0, 0.0])
    assert arm.gradient(gradients)[DEFAULT] is gradients.total


def test_with_the_discriminant_its_reading_is_discounted_and_follows_the_refresh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores 1, 0, 0, 0: what stands out is discounted as by the cosine, whose scores are 1, -1, -1, -1."""
    turned = Discriminant({"m": torch.tensor([-1.0, 0.0])}, clean=-1.0, hack=1.0)
    fits = iter([Discriminant({"m": torch.tensor([1.0, 0.0])}, clean=-1.0, hack=1.0), turned])
    monkeypatch.setattr(Reader, "_fit", lambda _: next(fits))
    settings = DirectionSettings(k=1, gate="one_sided", refresh_every=2, project="gradient")
    bench = Workbench(None, None, None, 0, "hack", settings, SimpleNamespace(initial=lambda: BASES), MEANS)
    arm = gradient_advantage.build(Options(reading="discriminant"), bench)
    signed, rewards, gradients = GradientAdvantage(Options(), MEANS, BASES), [3.0, 3.0, 0.5, 0.5], step([1.0] * 4)
    for each in (arm, signed):
        each.reward(rollouts(), rewards)
    torch.testing.assert_close(arm.gradient(gradients)[DEFAULT]["m"], signed.gradient(gradients)[DEFAULT]["m"])
    assert arm.scores() == [1.0, 0.0, 0.0, 0.0]
    arm.start_step(2)
    arm.gradient(gradients)
    assert arm.scores() == [0.0, 1.0, 1.0, 1.0]
    assert arm.figures()["flagged"] == 0.75
    fits = iter([turned])
    resumed = gradient_advantage.build(Options(reading="discriminant"), bench)
    assert isinstance(resumed, DiscriminantAdvantage)
    resumed.load_state({"weights/m": torch.tensor([1.0, 0.0]), "ends": torch.tensor([0.0, 2.0])})
    assert resumed.read(gradients.unit).tolist() == [0.5, -0.5, -0.5, -0.5]
    assert arm.state()["weights/m"].tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("name", ["advantage", "suppressed", "absorbed", "gradient_advantage"])
def test_axes_that_are_not_read_are_refused(name: str) -> None:
    arm = ArmSettings.model_validate({"intervention": name, "direction": "hack", "axes": {"gate": "reverse"}})
    assert faults(arm) == ["arms.own.axes.gate"]


def test_the_axes_of_v_are_read_by_the_share_alone() -> None:
    block = {"intervention": "gradient_advantage", "direction": "hack", "axes": {"k": 2, "noise_floor": 0.1}}
    assert faults(ArmSettings.model_validate(block)) == ["arms.own.axes.k", "arms.own.axes.noise_floor"]
    assert faults(ArmSettings.model_validate({**block, "options": {"reading": "share"}})) == []
    late = {**block, "axes": {"refresh_every": 5}}
    for reading, refused in (("signed", 1), ("share", 1), ("discriminant", 0)):
        found = faults(ArmSettings.model_validate({**late, "options": {"reading": reading}}))
        assert found == ["arms.own.axes.refresh_every"] * refused


def test_the_ridge_is_the_discriminants() -> None:
    block = {"intervention": "gradient_advantage", "direction": "hack", "options": {"ridge": 0.1}}
    assert faults(ArmSettings.model_validate(block)) == ["arms.own.options.ridge"]
    read = {**block, "options": {"ridge": 0.1, "reading": "discriminant"}}
    assert faults(ArmSettings.model_validate(read)) == []


def test_the_discriminant_wants_pairs() -> None:
    block = {"intervention": "gradient_advantage", "direction": "random"}
    assert faults(ArmSettings.model_validate(block)) == []
    assert faults(ArmSettings.model_validate({**block, "options": {"reading": "discriminant"}})) == [
        "arms.own.direction"
    ]


@pytest.mark.parametrize("name", ["advantage", "suppressed"])
def test_no_concept_is_learned_from_single_answers(name: str) -> None:
    assert faults(ArmSettings.model_validate({"intervention": name, "direction": "clean"})) == ["arms.own.direction"]
    for kind in ("hack", "random", "placebo", "permuted", "flipped"):
        assert faults(ArmSettings.model_validate({"intervention": name, "direction": kind})) == []


def faults(arm: ArmSettings) -> list[str]:
    """The settings that `validate` refuses in an arm."""
    try:
        check_arms({"own": arm}, DirectionSettings(k=8, gate="one_sided", refresh_every=10, project="gradient"))
    except ParamsError as refusal:
        return [fault.setting for fault in refusal.faults]
    return []


# ---------------------------------------------------------------- while sampling


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Identity() for _ in range(4))
        self.config = SimpleNamespace(num_hidden_layers=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def suppressed_arm(**options: object) -> Suppressed:
    arm = Suppressed.__new__(Suppressed)
    arm.options, arm.model = suppressed.Options(**options), Tower()  # type: ignore[arg-type, assignment]
    arm.concept = Concept((2,), torch.tensor([[0.6, 0.8]]), 1.0)
    return arm


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [[0.0, 0.0], [0.0, 0.0], [0.8, -0.6]]),
        ({"strength": 0.5}, [[0.3, 0.4], [-0.3, -0.4], [0.8, -0.6]]),
        ({"one_sided": True}, [[0.0, 0.0], [-0.6, -0.8], [0.8, -0.6]]),
    ],
)
def test_the_component_is_projected_out_within_the_context_only(
    options: dict[str, object], left: list[list[float]]
) -> None:
    arm, x = suppressed_arm(**options), torch.tensor([[0.6, 0.8], [-0.6, -0.8], [0.8, -0.6]])
    with arm.rollout():
        torch.testing.assert_close(arm.model(x), torch.tensor(left))
    assert torch.equal(arm.model(x), x)


def test_hooks_go_when_sampling_fails_and_strength_0_has_none() -> None:
    arm = suppressed_arm()

    def failing() -> None:
        with arm.rollout():
            assert arm.model.layers[2]._forward_hooks
            raise RuntimeError("sampling failed")

    with pytest.raises(RuntimeError, match="sampling failed"):
        failing()
    off = suppressed_arm(strength=0.0)
    with off.rollout():
        assert not any(layer._forward_hooks for layer in [*off.model.layers, *arm.model.layers])
