"""A defence that ends: the defence's own gradient before, the plain one after, and its state all along."""

import pytest
import torch

from projected_grpo.errors import ParamsError
from projected_grpo.interventions.base import DEFAULT, StepGradients
from projected_grpo.interventions.ended import Ended, Options, check
from projected_grpo.interventions.erase import Erase
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

SETTINGS = DirectionSettings(k=1, gate="one_sided", refresh_every=2, project="gradient")
GRADIENT = {"a": torch.tensor([3.0, 4.0])}


class Axis:
    """V is the first axis; counts how often it was asked anew."""

    independent = False

    def __init__(self):
        self.refreshes = 0

    def initial(self):
        return {"a": torch.tensor([[1.0, 0.0]])}

    def refreshed(self, step):  # noqa: ARG002
        self.refreshes += 1
        return self.initial()


def after_each_step(arm, steps):
    found = []
    for step in range(steps):
        arm.start_step(step)
        found.append(arm.gradient(StepGradients(GRADIENT, {}, {}, torch.ones(1)))[DEFAULT]["a"].tolist())
    return found


def test_the_defence_acts_before_the_end_and_not_after():
    assert after_each_step(Ended(Erase(SETTINGS, Axis()), 2), 4) == [[0.0, 4.0]] * 2 + [[3.0, 4.0]] * 2


def test_a_run_resumed_after_the_end_goes_on_without_it():
    arm = Ended(Erase(SETTINGS, Axis()), 2)
    arm.load_state(Ended(Erase(SETTINGS, Axis()), 2).state())
    arm.start_step(3)
    assert arm.gradient(StepGradients(GRADIENT, {}, {}, torch.ones(1)))[DEFAULT] is GRADIENT
    assert arm.bases() is None
    assert arm.figures()["axes"] == 0.0


def test_nothing_is_refreshed_after_the_end():
    source = Axis()
    after_each_step(Ended(Erase(SETTINGS, source), 3), 9)
    assert source.refreshes == 1


def test_an_end_at_zero_is_no_defence():
    assert after_each_step(Ended(Erase(SETTINGS, Axis()), 0), 2) == [[3.0, 4.0]] * 2


@pytest.mark.parametrize(
    ("options", "arm", "setting"),
    [
        (Options(defence="guarded", after=1), {"direction": "hack", "axes": {"k": 2}}, "axes.k"),
        (Options(defence="guarded", after=1), {"direction": "random"}, "direction"),
        (Options(after=1), {"direction": "clean"}, "direction"),
    ],
)
def test_what_the_defence_refuses_is_refused(options, arm, setting):
    with pytest.raises(ParamsError) as refused:
        check(options, ArmSettings(intervention="ended", **arm), SETTINGS)
    assert [fault.setting for fault in refused.value.faults] == [setting]


def test_what_both_defences_read_is_allowed():
    for defence in ("erase", "guarded"):
        arm = ArmSettings(intervention="ended", direction="hack", axes={"refresh_every": 5})
        check(Options(defence=defence, after=1), arm, SETTINGS)
