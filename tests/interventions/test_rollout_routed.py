"""Routing of whole completions on tiny gradients: who goes where, and how the discriminant is fitted anew."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from projected_grpo.directions.discriminant import Discriminant
from projected_grpo.errors import ParamsError
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, StepGradients, Vectors, Workbench
from projected_grpo.interventions.registry import check_arms
from projected_grpo.interventions.rollout_routed import Options, RolloutRouted, build
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.spectral.names import deltas_in_use

# A gradient of direction (1, 0) reads 1, one of (-1, 0) reads 0, and (x, y) of length 1 reads (x + 1) / 2.
KNOWN = Discriminant({"m": torch.tensor([1.0, 0.0])}, clean=-1.0, hack=1.0)
# Reinforced: a hack (1), one that nobody can tell (.4), a clean answer (0). Punished: a hack. The last has advantage 0.
UNIT = torch.tensor([[1.0, 0.0], [-0.2, 0.96**0.5], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
ADVANTAGES = torch.tensor([2.0, 1.0, 1.0, -4.0, 0.0])
HACK, UNSURE, CLEAN, PUNISHED, _ = ADVANTAGES[:, None] * UNIT
SETTINGS = DirectionSettings(k=1, gate="one_sided", refresh_every=2, project="gradient")


def made(monkeypatch: pytest.MonkeyPatch, model: PeftModel | None = None, **options: object) -> RolloutRouted:
    monkeypatch.setattr(RolloutRouted, "_fit", lambda _: KNOWN)
    bench = Workbench(model, None, None, 0, "hack", SETTINGS)  # type: ignore[arg-type]
    return build(Options.model_validate(options), bench)


def step(advantages: Tensor = ADVANTAGES, unit: Tensor = UNIT) -> StepGradients:
    rows = advantages[:, None] * unit
    return StepGradients({"m": rows.sum(0)}, {"m": rows}, {}, advantages)


def same(parts: Vectors, wanted: Tensor) -> bool:
    return torch.allclose(parts["m"], wanted, rtol=0, atol=1e-6)


def test_completions_go_to_one_adapter_to_both_or_to_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = made(monkeypatch)
    parts = arm.gradient(step())
    assert list(parts) == [DEFAULT, QUARANTINE]
    assert same(parts[DEFAULT], UNSURE + CLEAN + PUNISHED)
    assert same(parts[QUARANTINE], HACK + UNSURE)
    assert arm.scores() == pytest.approx([1.0, 0.4, 0.0, 1.0, 0.5])
    assert arm.figures()["flagged"] == pytest.approx(1 / 5)
    assert arm.deploy() == (DEFAULT,)


def test_without_a_band_between_the_parts_add_up_to_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = made(monkeypatch, low=0.5, high=0.5).gradient(step())
    assert same(parts[QUARANTINE], HACK)
    assert same(parts[DEFAULT], step().total["m"] - HACK)


def test_the_thresholds_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    for low, high, in_quarantine, in_deployed in (
        (0.41, 0.5, HACK, UNSURE + CLEAN + PUNISHED),  # the unsure one is deployed alone
        (0.25, 0.39, HACK + UNSURE, CLEAN + PUNISHED),  # ... is sent away
        (-0.1, 1.1, HACK + UNSURE + CLEAN, HACK + UNSURE + CLEAN + PUNISHED),  # everything is shared
    ):
        parts = made(monkeypatch, low=low, high=high).gradient(step())
        assert same(parts[QUARANTINE], in_quarantine)
        assert same(parts[DEFAULT], in_deployed)


def test_a_punished_hack_trains_the_deployed_adapter_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    punished = step(-ADVANTAGES.abs())
    arm = made(monkeypatch, low=-9.0, high=-9.0)
    parts = arm.gradient(punished)
    assert parts[DEFAULT] is punished.total
    assert parts[QUARANTINE]["m"].tolist() == [0.0, 0.0]
    assert arm.scores()[0] == 1.0  # it is read as if it were reinforced


def test_nobody_sent_away_leaves_the_very_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = step()
    assert made(monkeypatch, high=1.5).gradient(gradients)[DEFAULT] is gradients.total


def test_switched_off_the_deployed_adapter_gets_the_very_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = step()
    arm = made(monkeypatch, enabled=False, low=-9.0, high=-9.0)
    parts = arm.gradient(gradients)
    assert parts[DEFAULT] is gradients.total
    assert parts[QUARANTINE]["m"].tolist() == [0.0, 0.0]
    assert arm.scores() is None
    assert arm.figures()["flagged"] == 0.0
    monkeypatch.setattr(RolloutRouted, "_fit", lambda _: pytest.fail("it was fitted anew"))
    arm.start_step(2)


def test_it_is_fitted_anew_with_the_quarantine_off_and_resumes(
    monkeypatch: pytest.MonkeyPatch, policy: PeftModel
) -> None:
    arm = made(monkeypatch, policy)
    seen: list[set[str]] = []

    def fit(_: RolloutRouted) -> Discriminant:
        seen.append({adapter for vectors in deltas_in_use(policy).values() for adapter in vectors})
        return Discriminant({"m": torch.tensor([0.0, 1.0])}, clean=-1.0, hack=1.0)

    monkeypatch.setattr(RolloutRouted, "_fit", fit)
    for at in range(3):
        arm.start_step(at)
    assert seen == [{DEFAULT}]
    assert {adapter for vectors in deltas_in_use(policy).values() for adapter in vectors} == {DEFAULT, QUARANTINE}
    assert arm.figures()["basis_overlap"] == 0.0
    resumed = made(monkeypatch, policy)
    resumed.load_state(arm.state())
    parts, wanted = resumed.gradient(step()), arm.gradient(step())
    assert torch.equal(parts[DEFAULT]["m"], wanted[DEFAULT]["m"])
    assert same(wanted[QUARANTINE], HACK + UNSURE + CLEAN)  # (0, 1) is a hack's now: the unsure one alone is sent away
    assert same(wanted[DEFAULT], HACK + CLEAN + PUNISHED)


@pytest.mark.parametrize("direction", ["random", "clean"])
def test_a_direction_without_pairs_is_refused(direction: str) -> None:
    arm = ArmSettings.model_validate({"intervention": "rollout_routed", "direction": direction})
    with pytest.raises(ParamsError, match="two sides of pairs") as refusal:
        check_arms({"own": arm}, SETTINGS)
    assert [(fault.setting, fault.value) for fault in refusal.value.faults] == [("arms.own.direction", direction)]


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be at least low"):
        Options(low=0.6)
