from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from projected_grpo.errors import ParamsError
from projected_grpo.interventions import monitored
from projected_grpo.interventions.base import Rollouts, Task, Workbench
from projected_grpo.interventions.monitored import Monitored, Options, build
from projected_grpo.interventions.monitors import Asked, Flags, Probe, Stateless, Truth
from projected_grpo.interventions.registry import check_arms, options_of
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

JUDGE = {"base_url": "http://localhost:1/v1", "model": "m"}
BENCH = Workbench(None, None, None, seed=0)  # type: ignore[arg-type]
REWARDS = [3.5, 0.1 + 0.2, 0.0]


class Says(Stateless):
    """A monitor with fixed scores."""

    def __init__(self, *scores: float | None) -> None:
        self.given = scores

    def judge(self, _: Rollouts) -> list[float | None]:
        return list(self.given)


def rollouts(hacked: tuple[bool, ...] | None = None) -> Rollouts:
    n = 3
    task = Task("f", "", "run_tests", "run_tests")
    return Rollouts(4, n, (task,) * n, ("p",) * n, ("c",) * n, ((1,),) * n, (True,) * n, (False,) * n, hacked)


def acted(*scores: float | None, **options: Any) -> tuple[list[float | None], Monitored]:
    arm = Monitored(Options(**{"monitor": "truth", **options}), Says(*scores))
    return arm.reward(rollouts(), list(REWARDS)), arm


def test_a_penalty_is_taken_off_flagged_rewards_alone() -> None:
    paid, arm = acted(0.5, 0.49, 1.0, monitor="probe", penalty=2.0)
    assert paid == [1.5, REWARDS[1], -2.0]
    assert arm.scores() == [0.5, 0.49, 1.0]
    assert arm.figures()["flagged"] == pytest.approx(2 / 3)


def test_screening_leaves_flagged_completions_out() -> None:
    assert acted(0.0, 1.0, 1.0, action="screening")[0] == [3.5, None, None]
    assert acted(1.0, 1.0, 1.0, action="screening")[0] == [None, None, None]


def test_the_threshold_is_where_flagging_begins() -> None:
    assert acted(0.6, 0.67, 0.7, monitor="probe", action="screening", threshold=0.67)[0] == [3.5, None, None]


@pytest.mark.parametrize("action", ["penalty", "screening"])
def test_a_completion_without_a_verdict_is_left_out_and_counted(action: str) -> None:
    paid, arm = acted(None, 0.0, 0.0, action=action)
    assert paid == [None, *REWARDS[1:]]
    assert arm.scores() == [-1.0, 0.0, 0.0]
    assert arm.figures()["flagged"] == pytest.approx(1 / 3)


def test_an_arm_that_watches_changes_nothing_and_logs_its_scores() -> None:
    """The off switch: rewards bit for bit, no draw from torch's generator."""
    before = torch.get_rng_state()
    paid, arm = acted(1.0, None, 0.2, action="watch")
    assert paid == REWARDS
    assert arm.scores() == [1.0, -1.0, 0.2]
    assert torch.equal(before, torch.get_rng_state())
    vector = {"m": torch.ones(2)}
    assert arm.update("default", vector) is vector
    assert arm.prompt("p", 0) == "p"


def test_figures_have_the_keys_of_every_arm_before_any_step() -> None:
    arm = Monitored(Options(monitor="truth"), Says())
    assert set(arm.figures()) == {"basis_overlap", "axes", "bare_modules", "overshoot", "flagged"}
    assert arm.scores() is None


def test_only_the_truth_asks_the_oracle() -> None:
    arm = build(Options(monitor="truth", action="screening"), BENCH)
    assert arm.uses_oracle
    assert arm.reward(rollouts((True, False, True)), list(REWARDS)) == [None, REWARDS[1], None]
    assert not build(Options(monitor="flags"), BENCH).uses_oracle
    assert not build(Options(monitor="judge", judge=JUDGE), BENCH).uses_oracle
    assert Monitored.uses_oracle is False


def test_the_truth_with_errors_is_the_monitor_of_that_seed() -> None:
    arm = build(Options(monitor="truth", accuracy=0.5), dataclasses.replace(BENCH, seed=7))
    shown = rollouts((True, False, True))
    arm.reward(shown, list(REWARDS))
    assert arm.scores() == Truth(0.5, 7).judge(shown)


def test_each_monitor_is_built_by_its_name() -> None:
    def monitor(bench: Workbench = BENCH, **options: Any) -> object:
        arm = build(Options(**options), bench)
        assert isinstance(arm, Monitored)
        return arm.monitor

    assert type(monitor(monitor="flags")) is Flags
    assert type(monitor(monitor="judge", judge=JUDGE)) is Asked
    assert type(monitor(monitor="truth")) is Truth


def refusal_of(monitor: str, direction: str | None, **block: object) -> list[tuple[str, object]]:
    """Setting and value of every fault that `validate` finds in such an arm."""
    options = {"monitor": monitor, **({"judge": JUDGE} if monitor == "judge" else {})}
    arm = ArmSettings.model_validate({"intervention": "monitored", "direction": direction, "options": options, **block})
    shared = DirectionSettings(k=2, gate="one_sided", refresh_every=0, project="gradient")
    try:
        check_arms({"own": arm}, shared)
    except ParamsError as refusal:
        return [(fault.setting, fault.value) for fault in refusal.faults]
    return []


def test_the_probe_learns_from_pairs_and_the_other_monitors_from_nothing() -> None:
    for kind in ("hack", "placebo", "permuted", "flipped"):
        assert refusal_of("probe", kind) == []
    for kind in (None, "random", "clean"):
        assert refusal_of("probe", kind) == [("arms.own.direction", kind)]
    for monitor in ("truth", "flags", "judge"):
        assert refusal_of(monitor, None) == []
        assert refusal_of(monitor, "hack") == [("arms.own.direction", "hack")]
    assert refusal_of("probe", "hack", axes={"k": 1}) == [("arms.own.axes.k", 1)]


def test_the_oracle_is_never_asked_by_default() -> None:
    with pytest.raises(ParamsError) as refusal:
        options_of(ArmSettings(intervention="monitored", options={"action": "screening"}), "arms.own")
    assert [fault.setting for fault in refusal.value.faults] == ["arms.own.options.monitor"]


def test_the_probes_weights_are_the_arms_state(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe.__new__(Probe)
    probe.weights, probe.bias = torch.ones(3), torch.tensor(0.5)
    arm = Monitored(Options(monitor="probe"), probe)
    other = Probe.__new__(Probe)
    Monitored(Options(monitor="probe"), other).load_state(arm.state())
    assert torch.equal(other.weights, torch.ones(3))
    assert float(other.bias) == 0.5
    begun: list[bool] = []
    monkeypatch.setattr(probe, "start", lambda: begun.append(True))
    arm.start()
    assert begun == [True]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"action": "screening", "penalty": 2.0}, "penalty"),
        ({"action": "watch", "penalty": 2.0}, "penalty"),
        ({"monitor": "probe", "accuracy": 0.9}, "accuracy"),
        ({"monitor": "truth", "threshold": 0.6}, "threshold"),
        ({"monitor": "flags", "depth_low": 0.5}, "depth_low"),
        ({"monitor": "judge", "judge": JUDGE, "depth_high": 0.9}, "depth_high"),
        ({"monitor": "truth", "ridge": 0.5}, "ridge"),
        ({"monitor": "probe", "ridge": 0.0}, "ridge"),
        ({"monitor": "judge", "judge": JUDGE, "flag": "stub_passes"}, "flag"),
        ({"monitor": "flags", "judge": JUDGE}, "judge"),
        ({"monitor": "judge"}, "judge"),
        ({"penalty": 0.0}, "penalty"),
        ({"accuracy": 0.4}, "accuracy"),
        ({"monitor": "probe", "threshold": 0.0}, "threshold"),
    ],
)
def test_settings_that_are_ignored_missing_or_out_of_bounds_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ParamsError) as refusal:
        options_of(ArmSettings(intervention="monitored", options={"monitor": "truth", **options}), "arms.x")
    assert [fault.setting for fault in refusal.value.faults] == [f"arms.x.options.{field}"]


def test_every_monitor_can_be_set_from_a_file() -> None:
    for options in (
        {"monitor": "truth"},
        {"monitor": "truth", "accuracy": 0.7, "action": "screening"},
        {"monitor": "probe", "threshold": 0.67, "penalty": 1},
        {"monitor": "flags", "flag": "stub_passes"},
        {"monitor": "judge", "judge": {**JUDGE, "api_key_env": "KEY", "retries": 0}, "threshold": 0.9},
    ):
        assert isinstance(options_of(ArmSettings(intervention="monitored", options=options)), monitored.Options)
    with pytest.raises(ValidationError):
        Options(monitor="oracle")  # type: ignore[arg-type]
