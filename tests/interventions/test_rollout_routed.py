from __future__ import annotations

import dataclasses

import pytest
import torch
from pydantic import ValidationError

from projected_grpo.directions.algebra import Bases, alignment_null, alignment_rows, cosine_rows, haar_basis
from projected_grpo.errors import ParamsError
from projected_grpo.interventions import rollout_routed
from projected_grpo.interventions.base import DEFAULT, QUARANTINE, StepGradients, Vectors, Workbench
from projected_grpo.interventions.rollout_routed import RolloutRouted, share_null, signed_null
from projected_grpo.settings.direction import DirectionSettings

# D = 4: the signed null's sd is 1/2. Cosines with the mean: -1, 0, .6 and 1.
ROWS = {"a": torch.tensor([[-3.0, 0.0], [0.0, 7.0], [3.0, 0.0], [2.0, 0.0]]),
        "b": torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 4.0], [0.0, 0.0]])}  # fmt: skip
MEANS = {"a": torch.tensor([5.0, 0.0]), "b": torch.zeros(2)}
AXES = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[1.0, 0.0]])}


@dataclasses.dataclass
class Fixed:
    independent: bool = True

    def initial(self) -> Bases:
        return AXES

    def refreshed(self, step: int) -> Bases:
        del step
        raise AssertionError("nobody asked")


def made(project: str = "gradient", **options: object) -> RolloutRouted:
    direction = DirectionSettings(k=1, gate="one_sided", refresh_every=0, project=project)
    bench = Workbench(None, None, None, 0, kind="hack", direction=direction, source=Fixed(), means=MEANS)
    return rollout_routed.build(rollout_routed.Options(**options), bench)


def step(rows: Vectors = ROWS) -> StepGradients:
    return StepGradients({m: g.sum(0) for m, g in ROWS.items()}, rows, {}, torch.ones(4))


def lists(vectors: Vectors) -> dict[str, list[float]]:
    return {module: vector.tolist() for module, vector in vectors.items()}


def test_rollouts_go_to_one_adapter_to_both_or_to_the_other() -> None:
    """Thresholds .5 and .9: the last is sent away, the one at .6 is shared."""
    arm = made(low=1.0, high=1.8)
    parts = arm.gradient(step())
    assert lists(parts[DEFAULT]) == {"a": [0.0, 7.0], "b": [0.0, 4.0]}
    assert lists(parts[QUARANTINE]) == {"a": [5.0, 0.0], "b": [0.0, 4.0]}
    assert arm.scores() == pytest.approx([-1.0, 0.0, 0.6, 1.0])
    assert arm.figures()["flagged"] == 0.25


def test_without_a_band_between_the_parts_add_up_to_the_gradient() -> None:
    gradients = step()
    parts = made(low=1.0, high=1.0).gradient(gradients)
    assert lists(parts[QUARANTINE]) == {"a": [5.0, 0.0], "b": [0.0, 4.0]}
    for module, total in gradients.total.items():
        assert torch.equal(parts[DEFAULT][module] + parts[QUARANTINE][module], total)


def test_nobody_sent_away_leaves_the_very_gradient() -> None:
    gradients = step()
    assert made(low=1.0, high=3.0).gradient(gradients)[DEFAULT] is gradients.total  # the cosine ends at 2 sds
    arm = made(enabled=False, low=-9.0, high=-9.0)
    parts = arm.gradient(gradients)
    assert parts[DEFAULT] is gradients.total
    assert lists(parts[QUARANTINE]) == {"a": [0.0, 0.0], "b": [0.0, 0.0]}
    assert arm.scores() is None
    assert arm.figures()["flagged"] == 0.0


def test_the_share_is_read_with_the_axes_in_use() -> None:
    arm = made(reading="share")
    arm.gradient(step())
    assert arm.scores() == pytest.approx([0.0, 0.0, 0.6, 1.0])
    arm.load_state({"a": torch.tensor([[0.0, 1.0]]), "b": torch.tensor([[0.0, 1.0]])})
    arm.gradient(step())
    assert arm.scores() == pytest.approx([0.0, 1.0, 0.8, 0.0])
    assert made().read(ROWS).tolist() == pytest.approx([-1.0, 0.0, 0.6, 1.0])


def test_null_bands_are_what_isotropic_gradients_read() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {m: torch.randn(20_000, r, generator=generator) for m, r in (("a", 40), ("b", 60))}
    bases = {"a": haar_basis(10, 40, generator), "b": haar_basis(10, 60, generator)}
    shares = alignment_rows(rows, bases)
    mean, sd = share_null(20, 100)
    assert alignment_null(bases) * 0.95 < mean < alignment_null(bases)
    assert float(shares.mean()) == pytest.approx(mean, rel=0.005)
    assert float(shares.std()) == pytest.approx(sd, rel=0.05)
    cosines = cosine_rows(rows, {"a": torch.randn(40, generator=generator), "b": torch.zeros(60)})
    mean, sd = signed_null(100)
    assert float(cosines.mean()) == pytest.approx(mean, abs=0.003)
    assert float(cosines.std()) == pytest.approx(sd, rel=0.03)


def test_without_axes_nothing_is_routed_by_the_share() -> None:
    arm = made(reading="share")
    arm.load_state({module: basis[:0] for module, basis in AXES.items()})
    gradients = step()
    parts = arm.gradient(gradients)
    assert parts[DEFAULT] is gradients.total
    assert lists(parts[QUARANTINE]) == {"a": [0.0, 0.0], "b": [0.0, 0.0]}


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValidationError, match="must be at least low"):
        rollout_routed.Options(low=2.0, high=1.0)
    with pytest.raises(ParamsError, match=r"axes.project"):
        made("update")
    with pytest.raises(ParamsError, match=r"grpo.rollout_gradients"):
        made().gradient(step({}))
