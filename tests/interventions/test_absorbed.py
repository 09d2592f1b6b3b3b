from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from projected_grpo.directions.algebra import cosine, total_norm
from projected_grpo.interventions import absorbed
from projected_grpo.interventions.absorbed import Absorbed
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, StepGradients, Vectors, Workbench
from projected_grpo.spectral import deltas

GRADIENT = {"a": torch.tensor([2.0, -3.0])}
STEP = StepGradients(GRADIENT, {}, {}, torch.zeros(0))


def means_of(policy: PeftModel) -> Vectors:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(delta.shape, generator=generator) for name, delta in deltas(policy).items()}


def made(model: PeftModel | None = None, means: Vectors = GRADIENT, **options: object) -> Absorbed:
    return absorbed.build(absorbed.Options(**options), Workbench(model, None, None, 0, kind="hack", means=means))


def test_the_seed_is_a_descent_step_along_the_mean_of_the_length_asked_for(policy: PeftModel) -> None:
    means = means_of(policy)
    arm = made(policy, means, strength=0.7, shape="mean")
    assert total_norm(dict(deltas(policy, QUARANTINE))) == 0.0  # not before the run begins
    arm.start()
    seed = dict(deltas(policy, QUARANTINE))
    assert total_norm(seed) == pytest.approx(0.7)
    assert cosine(seed, means) == pytest.approx(-1.0)  # against the gradient
    assert total_norm(dict(deltas(policy))) == 0.0
    assert all(delta.requires_grad and delta.grad is None for delta in seed.values())


def test_by_default_every_coordinate_of_the_seed_is_as_long(policy: PeftModel) -> None:
    means = means_of(policy)
    made(policy, means, strength=0.7).start()
    seed = dict(deltas(policy, QUARANTINE))
    each = 0.7 / sum(delta.numel() for delta in seed.values()) ** 0.5
    for name, delta in seed.items():
        assert torch.allclose(delta, -each * means[name].sign(), rtol=1e-5)


def test_nothing_is_routed() -> None:
    parts = made().gradient(STEP)
    assert parts[DEFAULT] is GRADIENT
    assert parts[QUARANTINE] is GRADIENT
    assert made().update(QUARANTINE, GRADIENT) is GRADIENT


def test_a_frozen_seed_gets_exact_zeros_and_no_weight_decay() -> None:
    arm = made(train_quarantine=False)
    parts = arm.gradient(STEP)
    assert parts[DEFAULT] is GRADIENT
    assert parts[QUARANTINE]["a"].tolist() == [0.0, 0.0]
    assert arm.update(QUARANTINE, GRADIENT)["a"].tolist() == [0.0, 0.0]
    assert arm.update(DEFAULT, GRADIENT) is GRADIENT


def test_at_strength_nothing_the_seed_stays_at_zero(policy: PeftModel) -> None:
    made(policy, {}, strength=0.0).start()
    assert total_norm(dict(deltas(policy, QUARANTINE))) == 0.0


def test_only_the_default_adapter_is_deployed_and_a_mean_of_zero_is_refused() -> None:
    assert made().deploy() == (DEFAULT,)
    assert made().state() == {}
    with pytest.raises(ValueError, match="nothing to seed"):
        made(means={"a": torch.zeros(2)})
