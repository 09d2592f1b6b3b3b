"""The guard on tiny gradients: who is left out, its control, and what a checkpoint must hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from projected_grpo.directions.discriminant import Discriminant
from projected_grpo.errors import ParamsError
from projected_grpo.interventions.base import DEFAULT, StepGradients, Workbench
from projected_grpo.interventions.guarded import Guarded, Options, check
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

# Along the first coordinate lies the hack: a gradient of direction (1, 0) reads 1, one of (-1, 0) reads 0.
KNOWN = Discriminant({"m": torch.tensor([1.0, 0.0])}, clean=-1.0, hack=1.0)
# A hack and a clean answer that are reinforced, the same two punished, and one of advantage 0.
ADVANTAGES = torch.tensor([2.0, 1.0, -1.0, -3.0, 0.0])
UNIT = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])


def guard(monkeypatch: pytest.MonkeyPatch, seed: int = 0, refresh_every: int = 0, **options: object) -> Guarded:
    monkeypatch.setattr(Guarded, "_fit", lambda _: KNOWN)
    direction = DirectionSettings(k=1, gate="one_sided", refresh_every=refresh_every, project="gradient")
    bench = Workbench(None, None, None, seed, "hack", direction)  # type: ignore[arg-type]
    return Guarded(Options.model_validate(options), bench)


def step(advantages: Tensor = ADVANTAGES, unit: Tensor = UNIT) -> StepGradients:
    rows = advantages[:, None] * unit
    return StepGradients({"m": rows.sum(0)}, {"m": rows}, {}, advantages)


def test_only_a_reinforced_completion_that_reads_as_a_hack_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = guard(monkeypatch)
    got = arm.gradient(step())[DEFAULT]["m"]
    # 2 (1,0) is left out; 1 (-1,0), -1 (1,0) and -3 (-1,0) stay: the punished hack keeps on teaching.
    assert got.tolist() == [1.0, 0.0]
    assert arm.scores() == [1.0, 0.0, 1.0, 0.0, 0.5]
    assert arm.figures()["flagged"] == pytest.approx(1 / 5)


def test_a_punished_completion_is_read_as_if_it_were_reinforced(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = guard(monkeypatch)
    arm.gradient(step())
    reinforced = arm.scores()
    arm.gradient(step(ADVANTAGES.abs()))
    assert arm.scores() == reinforced


def test_the_threshold_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    leaning = torch.tensor([[0.6, 0.8]])  # reads (0.6 + 1) / 2 = 0.8
    alone = step(torch.tensor([1.0]), leaning)
    assert guard(monkeypatch, threshold=0.79).gradient(alone)[DEFAULT]["m"].tolist() == [0.0, 0.0]
    assert guard(monkeypatch, threshold=0.81).gradient(alone)[DEFAULT] is alone.total


def test_switched_off_it_hands_on_the_very_same_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = step()
    assert guard(monkeypatch, enabled=False).gradient(gradients)[DEFAULT] is gradients.total


def test_the_shuffled_control_leaves_out_as_many_reinforced_ones_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    advantages = torch.cat([torch.ones(8), -torch.ones(2)])
    unit = torch.eye(10)
    unit[:3] = torch.eye(10)[0]  # three hacks among eight reinforced completions
    known = Discriminant({"m": torch.eye(10)[0]}, clean=0.0, hack=1.0)
    left_out = set()
    for at in range(20):
        arm = guard(monkeypatch, shuffled=True)
        arm.discriminant = known
        arm.start_step(at)
        gradients = step(advantages, unit)
        kept = arm.gradient(gradients)[DEFAULT]["m"]
        missing = gradients.total["m"] - kept
        assert missing.sum() == 3  # as many as read as hacks, all of them reinforced
        assert (missing >= 0).all()
        left_out.add(tuple(missing.tolist()))
        arm.start_step(at)
        assert torch.equal(arm.gradient(gradients)[DEFAULT]["m"], kept)  # of seed and step alone
    assert len(left_out) > 10


def test_it_is_fitted_anew_at_each_refresh_and_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = guard(monkeypatch, refresh_every=2)
    turned = Discriminant({"m": torch.tensor([0.0, 1.0])}, clean=-1.0, hack=1.0)
    monkeypatch.setattr(Guarded, "_fit", lambda _: turned)
    for at, expected in ((0, KNOWN), (1, KNOWN), (2, turned)):
        arm.start_step(at)
        assert arm.discriminant is expected
    assert arm.figures()["basis_overlap"] == 0.0
    resumed = guard(monkeypatch, refresh_every=2)
    resumed.discriminant = KNOWN
    resumed.load_state(arm.state())
    assert torch.equal(resumed.gradient(step())[DEFAULT]["m"], arm.gradient(step())[DEFAULT]["m"])
    assert (resumed.discriminant.clean, resumed.discriminant.hack) == (-1.0, 1.0)


def test_a_direction_without_pairs_is_refused() -> None:
    arm = ArmSettings.model_validate({"intervention": "guarded", "direction": "random"})
    with pytest.raises(ParamsError, match="shuffled"):
        check(Options(), arm, None)
