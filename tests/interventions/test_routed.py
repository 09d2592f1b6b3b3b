from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import PeftModel

from projected_grpo.directions.algebra import Bases, cosine, total_norm
from projected_grpo.errors import ParamsError
from projected_grpo.interventions import routed
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, StepGradients, Workbench
from projected_grpo.interventions.registry import check_arms
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.spectral import deltas
from projected_grpo.spectral.names import deltas_in_use

AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
GRADIENT = {"a": torch.tensor([2.0, -3.0, 5.0])}
STEP = StepGradients(GRADIENT, {}, {}, torch.zeros(0))


@dataclasses.dataclass
class Watching:
    """A source that looks which adapters are active while it refreshes."""

    model: PeftModel | None = None
    fails: bool = False
    independent: bool = True
    seen: list[list[str]] = dataclasses.field(default_factory=list)

    def initial(self) -> Bases:
        return {"a": AXES}

    def refreshed(self, step: int) -> Bases:
        del step
        assert self.model is not None
        self.seen.append(active(self.model))
        if self.fails:
            raise FloatingPointError("no axes")
        return {"a": torch.tensor([[0.0, 0.0, 1.0]])}


def active(model: PeftModel) -> list[str]:
    """Adapters in use and being trained; the same in all modules."""
    used = {tuple(vectors) for vectors in deltas_in_use(model).values()}
    assert len(used) == 1
    return list(used.pop())


def settings(**changes: object) -> DirectionSettings:
    return DirectionSettings(**{"k": 2, "gate": "one_sided", "refresh_every": 0, "project": "gradient", **changes})


def made(
    source: Watching | None = None, direction: DirectionSettings | None = None, **options: object
) -> routed.Routed:
    source = source or Watching()
    bench = Workbench(source.model, None, None, 0, kind="hack", direction=direction or settings(), source=source)
    return routed.build(routed.Options(**options), bench)


def test_the_quarantine_gets_what_the_deployed_adapter_does_not() -> None:
    parts = made().gradient(STEP)
    assert list(parts) == [DEFAULT, QUARANTINE]
    assert parts[DEFAULT]["a"].tolist() == [0.0, -3.0, 5.0]
    assert parts[QUARANTINE]["a"].tolist() == [2.0, 0.0, 0.0]


def test_the_two_parts_add_up_to_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    total = {"a": torch.randn(3, generator=generator)}
    for gate in ("one_sided", "both_sides", "reverse"):
        parts = made(direction=settings(gate=gate)).gradient(StepGradients(total, {}, {}, torch.zeros(0)))
        assert torch.allclose(parts[DEFAULT]["a"] + parts[QUARANTINE]["a"], total["a"], atol=1e-7, rtol=0)


def test_switched_off_the_deployed_adapter_gets_everything_and_the_quarantine_exact_zeros() -> None:
    arm = made(direction=settings(refresh_every=1, purge_moments=True), enabled=False, capacity="span")
    parts = arm.gradient(STEP)
    assert parts[DEFAULT] is GRADIENT
    assert parts[QUARANTINE]["a"].tolist() == [0.0, 0.0, 0.0]
    arm._purge_due = True
    assert arm.purge(GRADIENT) is GRADIENT
    assert arm.update(QUARANTINE, GRADIENT) is GRADIENT


def test_capacity_span_keeps_the_quarantines_update_on_the_axes() -> None:
    arm = made(capacity="span")
    assert arm.update(QUARANTINE, GRADIENT)["a"].tolist() == [2.0, -3.0, 0.0]
    assert arm.update(DEFAULT, GRADIENT) is GRADIENT
    assert made().update(QUARANTINE, GRADIENT) is GRADIENT


def test_seeded_the_quarantine_begins_away_from_zero_in_a_direction_of_the_runs_seed(policy: PeftModel) -> None:
    def begun(seed: int, **options: object) -> dict[str, torch.Tensor]:
        bench = Workbench(policy, None, None, seed, "hack", settings(), Watching(policy))  # type: ignore[arg-type]
        routed.build(routed.Options.model_validate(options), bench).start()
        return {module: delta.detach().clone() for module, delta in deltas(policy, QUARANTINE).items()}

    assert total_norm(begun(1)) == 0.0
    first, again, other = begun(1, seeded=5.0), begun(1, seeded=5.0), begun(2, seeded=5.0)
    assert total_norm(first) == pytest.approx(5.0)
    assert all(torch.equal(first[module], again[module]) for module in first)
    assert abs(cosine(first, other)) < 0.5
    assert len({float(delta[0]) for delta in first.values()}) == len(first)  # modules are drawn apart
    assert total_norm(dict(deltas(policy))) == 0.0  # the deployed adapter is left where it is


@pytest.mark.parametrize("family", ["routed", "rollout_routed"])
def test_switched_off_it_may_not_begin_away_from_zero(family: str) -> None:
    block = {"intervention": family, "direction": "hack", "options": {"enabled": False, "seeded": 5.0}}
    with pytest.raises(ParamsError, match="must be 0 where enabled is false") as refusal:
        check_arms({"own": ArmSettings.model_validate(block)}, settings())
    assert [fault.setting for fault in refusal.value.faults] == ["arms.own.options.seeded"]


def test_axes_are_refreshed_on_the_deployed_policy_alone(policy: PeftModel) -> None:
    source = Watching(policy)
    arm = made(source, settings(refresh_every=2))
    for step in range(3):
        arm.start_step(step)
    assert source.seen == [[DEFAULT]]
    assert active(policy) == [DEFAULT, QUARANTINE]
    assert arm.gradient(STEP)[QUARANTINE]["a"].tolist() == [0.0, 0.0, 5.0]


def test_a_refresh_that_fails_leaves_both_adapters_on(policy: PeftModel) -> None:
    arm = made(Watching(policy, fails=True), settings(refresh_every=1))
    with pytest.raises(FloatingPointError):
        arm.start_step(1)
    assert active(policy) == [DEFAULT, QUARANTINE]


def test_a_resumed_arm_continues_with_the_axes_it_had(policy: PeftModel) -> None:
    arm = made(Watching(policy), settings(refresh_every=2))
    arm.start_step(2)
    resumed = made(Watching(policy), settings(refresh_every=2))
    resumed.load_state(arm.state())
    assert resumed.gradient(STEP)[DEFAULT]["a"].tolist() == [2.0, -3.0, 0.0]


@pytest.mark.parametrize(
    ("block", "changes", "setting"),
    [
        ({"direction": "hack"}, {"project": "update"}, "axes.project"),
        ({"direction": "hack"}, {"project": "both"}, "axes.project"),
        ({"direction": "hack"}, {"preserve_magnitude": True}, "axes.preserve_magnitude"),
        ({"direction": "clean"}, {}, "direction"),
    ],
)
def test_parts_that_are_not_what_erasing_keeps_and_drops_are_refused(
    block: dict[str, object], changes: dict[str, object], setting: str
) -> None:
    arm = ArmSettings.model_validate({"intervention": "routed", **block})
    for own, shared in ((arm, settings(**changes)), (arm.model_copy(update={"axes": changes}), settings())):
        with pytest.raises(ParamsError) as refusal:
            check_arms({"own": own}, shared)
        assert [fault.setting for fault in refusal.value.faults] == [f"arms.own.{setting}"]
    check_arms({"own": arm.model_copy(update={"direction": "random"})}, settings())


def test_nobody_is_judged_and_the_figures_are_those_of_every_arm() -> None:
    arm = made()
    arm.gradient(STEP)
    assert arm.scores() is None
    assert arm.figures() == {"basis_overlap": 1.0, "axes": 2.0, "bare_modules": 0.0, "overshoot": 1.0, "flagged": 0.0}
    assert arm.deploy() == (DEFAULT,)
