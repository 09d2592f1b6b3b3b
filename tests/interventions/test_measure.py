from __future__ import annotations

import torch

from projected_grpo.interventions import measure
from projected_grpo.interventions.base import DEFAULT, Intervention, Rollouts, StepGradients, Task, Workbench


def made() -> Intervention:
    return measure.build(measure.Options(), Workbench(None, None, None, seed=0))


ROLLOUTS = Rollouts(
    step=0,
    group_size=3,
    tasks=(Task("f", "", "none", ""),) * 3,
    prompts=("ask",) * 3,
    completions=("a", "b", "c"),
    token_ids=((1,), (2,), (3,)),
    paid=(False, True, False),
    teacher=(False,) * 3,
)


def test_nothing_is_changed() -> None:
    arm = made()
    assert arm.prompt("ask", 7) == "ask"
    arm.start()
    arm.start_step(0)
    arm.start_step(10)
    rewards = [0.5, 3.5, 0.0]
    with arm.rollout():
        assert arm.reward(ROLLOUTS, rewards) == rewards
    advantages = torch.tensor([1.0, -1.0])
    assert arm.advantage(advantages) is advantages
    assert advantages.tolist() == [1.0, -1.0]
    vectors = {"a": torch.tensor([1.0, -2.0])}
    parts = arm.gradient(StepGradients(vectors, {}, {}, advantages))
    assert parts.keys() == {DEFAULT}
    assert parts[DEFAULT] is vectors
    assert arm.update(DEFAULT, vectors) is vectors
    assert arm.purge(vectors) is vectors
    assert vectors["a"].tolist() == [1.0, -2.0]


def test_one_adapter_is_trained_sampled_with_and_deployed() -> None:
    arm = made()
    assert arm.adapters == arm.deploy() == (DEFAULT,)
    assert not arm.unit_rollouts
    assert not arm.uses_oracle


def test_there_is_no_basis_nothing_judged_and_nothing_to_restore() -> None:
    arm = made()
    assert arm.bases() is None
    assert arm.scores() is None
    assert arm.state() == {}
    arm.load_state({"a": torch.ones(2)})
    assert arm.state() == {}


def test_rewards_are_a_copy() -> None:
    """An arm that edits what it got must not edit the log."""
    rewards = [0.5, 3.5, 0.0]
    assert made().reward(ROLLOUTS, rewards) is not rewards
