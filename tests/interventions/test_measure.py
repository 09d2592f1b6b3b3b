from __future__ import annotations

import torch

from projected_grpo.interventions import measure


def test_nothing_is_changed() -> None:
    arm = measure.build(None, None)
    arm.start_step(0)
    arm.start_step(10)
    rewards = [0.5, 3.5, 0.0]
    assert arm.reward(["a", "b", "c"], [False, True, False], rewards) == rewards
    advantages = torch.tensor([1.0, -1.0])
    assert arm.advantage(advantages) is advantages
    assert advantages.tolist() == [1.0, -1.0]
    vectors = {"a": torch.tensor([1.0, -2.0])}
    assert arm.gradient(vectors) is vectors
    assert arm.update(vectors) is vectors
    assert vectors["a"].tolist() == [1.0, -2.0]


def test_there_is_no_basis_and_nothing_to_restore() -> None:
    arm = measure.build(None, None)
    assert arm.bases() is None
    assert arm.state() == {}
    arm.load_state({"a": torch.ones(2)})
    assert arm.state() == {}


def test_rewards_are_a_copy() -> None:
    """An arm that edits what it got must not edit the log."""
    rewards = [1.0]
    assert measure.build(None, None).reward(["a"], [True], rewards) is not rewards
