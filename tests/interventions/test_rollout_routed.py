"""Routing of whole completions on tiny gradients: who goes where, and how the discriminant is fitted anew."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor

from projected_grpo.directions.algebra import Bases, total_norm
from projected_grpo.directions.discriminant import Discriminant
from projected_grpo.errors import ParamsError
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, StepGradients, Vectors, Workbench
from projected_grpo.interventions.reading import Reader
from projected_grpo.interventions.registry import check_arms
from projected_grpo.interventions.rollout_routed import Options, RolloutRouted, build
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.spectral import deltas
from projected_grpo.spectral.names import deltas_in_use

# A gradient of direction (1, 0) reads 1, one of (-1, 0) reads 0, and (x, y) of length 1 reads (x + 1) / 2.
KNOWN = Discriminant({"m": torch.tensor([1.0, 0.0])}, clean=-1.0, hack=1.0)
# Reinforced: a hack (1), one that nobody can tell (.4), a clean answer (0). Punished: a hack. The last has advantage 0.
UNIT = torch.tensor([[1.0, 0.0], [-0.2, 0.96**0.5], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
ADVANTAGES = torch.tensor([2.0, 1.0, 1.0, -4.0, 0.0])
HACK, UNSURE, CLEAN, PUNISHED, _ = ADVANTAGES[:, None] * UNIT
SETTINGS = DirectionSettings(k=1, gate="one_sided", refresh_every=2, project="gradient")


def made(monkeypatch: pytest.MonkeyPatch, model: PeftModel | None = None, **options: object) -> RolloutRouted:
    monkeypatch.setattr(Reader, "_fit", lambda _: KNOWN)
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
    monkeypatch.setattr(Reader, "_fit", lambda _: pytest.fail("it was fitted anew"))
    arm.start_step(2)


def test_it_is_fitted_anew_with_the_quarantine_off_and_resumes(
    monkeypatch: pytest.MonkeyPatch, policy: PeftModel
) -> None:
    arm = made(monkeypatch, policy)
    seen: list[set[str]] = []

    def fit(_: Reader) -> Discriminant:
        seen.append({adapter for vectors in deltas_in_use(policy).values() for adapter in vectors})
        return Discriminant({"m": torch.tensor([0.0, 1.0])}, clean=-1.0, hack=1.0)

    monkeypatch.setattr(Reader, "_fit", fit)
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


# ---------------------------------------------------------------- read by alignment with V, against its null band


@dataclasses.dataclass
class Turning:
    """One axis of four along the first coordinate, then along the second; sees which adapters are on at a refresh."""

    model: PeftModel | None = None
    independent: bool = True
    seen: list[set[str]] = dataclasses.field(default_factory=list)

    def initial(self) -> Bases:
        return {"m": torch.eye(4)[:1]}

    def refreshed(self, step: int) -> Bases:
        del step
        self.seen.append({adapter for vectors in deltas_in_use(self.model).values() for adapter in vectors})
        return {"m": torch.eye(4)[1:2]}


def by_share(model: PeftModel | None = None, source: Turning | None = None, **options: object) -> RolloutRouted:
    bench = Workbench(model, None, None, 0, "hack", SETTINGS, source or Turning(model))  # type: ignore[arg-type]
    return build(Options.model_validate({"reading": "share", **options}), bench)


# Shares 1, 0 (it points away) and the null's own, sqrt(k / 2r) = .354; a punished one of share 1.
ALONG = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0], [0.125**0.5, 0.875**0.5, 0, 0], [1.0, 0, 0, 0]])
PAID = torch.tensor([2.0, 1.0, 1.0, -1.0])


def test_an_alignment_is_read_in_deviations_of_the_null() -> None:
    arm = by_share()
    parts = arm.gradient(step(PAID, ALONG))
    deviation = (5 / 32 - 1 / 64) ** 0.5  # sqrt(5 / 8r - k / 4r^2)
    null = 0.125**0.5
    assert arm.scores() == pytest.approx(
        [(1 - null) / deviation, -null / deviation, 0.0, (1 - null) / deviation], abs=1e-6
    )
    assert arm.options.band == (-2.0, 2.0)  # nothing leaves a band as wide as this, in four dimensions
    assert parts[DEFAULT]["m"].tolist() == step(PAID, ALONG).total["m"].tolist()
    assert arm.figures()["flagged"] == 0.0
    assert arm.bases() is not None


def test_beyond_the_null_band_a_completion_is_sent_away_and_below_it_is_kept() -> None:
    gradients = step(PAID, ALONG)
    arm = by_share(low=-0.9, high=1.0)
    parts = arm.gradient(gradients)
    away, kept, shared, punished = PAID[:, None] * ALONG
    assert same(parts[DEFAULT], kept + shared + punished)
    assert same(parts[QUARANTINE], away + shared)
    assert arm.figures() | {"flagged": 0.25, "axes": 1.0} == arm.figures()


def test_v_is_refreshed_with_the_quarantine_off_and_resumes(policy: PeftModel) -> None:
    source = Turning(policy)
    arm = by_share(policy, source, low=-0.9, high=1.0)
    for at in range(3):
        arm.start_step(at)
    assert source.seen == [{DEFAULT}]
    assert {adapter for vectors in deltas_in_use(policy).values() for adapter in vectors} == {DEFAULT, QUARANTINE}
    assert arm.figures()["basis_overlap"] == 0.0
    arm.gradient(step(PAID, ALONG))
    assert arm.scores()[0] < 0  # the old axis is none of the new ones
    resumed = by_share(policy, low=-0.9, high=1.0)
    resumed.load_state(arm.state())
    resumed.gradient(step(PAID, ALONG))
    assert resumed.scores() == arm.scores()
    off = by_share(policy, enabled=False)
    off.start_step(2)
    assert off.figures()["basis_overlap"] == 1.0
    gradients = step(PAID, ALONG)
    assert off.gradient(gradients)[DEFAULT] is gradients.total
    assert off.scores() is None


def test_seeded_the_quarantine_begins_away_from_zero(policy: PeftModel) -> None:
    for asked in (0.0, 3.0):
        by_share(policy, seeded=asked).start()
        assert total_norm(dict(deltas(policy, QUARANTINE))) == pytest.approx(asked)


def test_what_the_share_reads_and_what_it_does_not() -> None:
    def refused(direction: str, axes: dict[str, object], **options: object) -> list[str]:
        block = {"intervention": "rollout_routed", "direction": direction, "axes": axes, "options": options}
        try:
            check_arms({"own": ArmSettings.model_validate(block)}, SETTINGS)
        except ParamsError as refusal:
            return [fault.setting for fault in refusal.faults]
        return []

    assert refused("random", {"k": 1}, reading="share") == []
    assert refused("clean", {}, reading="share") == ["arms.own.direction"]
    assert refused("hack", {"k": 1}) == ["arms.own.axes.k"]
    assert refused("hack", {"gate": "reverse"}, reading="share") == ["arms.own.axes.gate"]
    assert refused("hack", {}, reading="share", ridge=1e-3) == ["arms.own.options.ridge"]
    assert Options(reading="share", low=0.0).band == (0.0, 2.0)


@pytest.mark.parametrize("direction", ["random", "clean"])
def test_a_direction_without_pairs_is_refused(direction: str) -> None:
    arm = ArmSettings.model_validate({"intervention": "rollout_routed", "direction": direction})
    with pytest.raises(ParamsError, match="two sides of pairs") as refusal:
        check_arms({"own": arm}, SETTINGS)
    assert [(fault.setting, fault.value) for fault in refusal.value.faults] == [("arms.own.direction", direction)]


def test_thresholds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be at least low"):
        Options(low=0.6)
