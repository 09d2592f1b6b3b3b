"""Between backward and the optimizer and right after it, on tensors small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from training_lab import FixedSource

from projected_grpo.directions.algebra import alignment
from projected_grpo.interventions import erase, measure
from projected_grpo.interventions.base import Intervention
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.training.clock import PhaseClock
from projected_grpo.training.gauge import Gauge
from projected_grpo.training.hooks import UpdateHooks, finalize_gradients

AXIS = {"m": torch.tensor([[1.0, 0.0]])}
# V g' = 0 for g' = (1, 1, -4), and V sign(g') = 1: projected, and yet Adam's step points hack-ward.
SKEW = {"m": torch.tensor([[2.0, 2.0, 1.0]]) / 3}
PROJECTED = torch.tensor([1.0, 1.0, -4.0])
GRADIENT = PROJECTED + SKEW["m"][0]


def erasing(bases: dict[str, Tensor], project: str = "gradient") -> Intervention:
    settings = DirectionSettings(k=1, gate="one_sided", refresh_every=0, project=project)  # type: ignore[arg-type]
    return erase.build(settings, FixedSource(bases))


def parameters(**gradients: list[float]) -> dict[str, nn.Parameter]:
    made = {}
    for module, gradient in gradients.items():
        made[module] = nn.Parameter(torch.zeros(len(gradient)))
        made[module].grad = torch.tensor(gradient)
    return made


def step(
    trained: dict[str, nn.Parameter],
    intervention: Intervention,
    optimizer: torch.optim.Optimizer,
    max_norm: float = 0.0,
    gauge: Gauge | None = None,
) -> dict[str, float]:
    """One optimizer step between the two hooks; returns the figures."""
    size = next(iter(trained.values())).numel()
    one = {module: torch.eye(1, size) for module in trained}
    gauge = gauge or Gauge(one, {module: torch.ones(size) for module in trained})
    hooks = UpdateHooks(trained, intervention, gauge, max_norm, PhaseClock())
    hooks.on_pre_optimizer_step()
    optimizer.step()
    hooks.on_optimizer_step()
    return hooks.figures


# ---------------------------------------------------------------- finalize_gradients


def test_clips_what_the_projection_left() -> None:
    trained = parameters(m=[3.0, 4.0])
    before, after = finalize_gradients(trained, erasing(AXIS), max_norm=2.0)
    assert trained["m"].grad.tolist() == pytest.approx([0.0, 2.0])  # clipped first it would be (0, 1.6)
    assert before["m"].tolist() == [3.0, 4.0]
    assert after["m"].tolist() == [0.0, 4.0]  # what the intervention made of it: clipping is no erasing


def test_clips_by_the_norm_over_all_modules() -> None:
    trained = parameters(a=[3.0], b=[4.0])
    finalize_gradients(trained, measure.build(None, None), max_norm=1.0)
    assert [p.grad.item() for p in trained.values()] == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("max_norm", [0.0, 5.0, 100.0])
def test_never_clips_at_zero_nor_below_the_bound(max_norm: float) -> None:
    trained = parameters(m=[3.0, 4.0])
    finalize_gradients(trained, measure.build(None, None), max_norm)
    assert trained["m"].grad.tolist() == [3.0, 4.0]


def test_a_module_without_gradient_is_refused_by_name() -> None:
    trained = parameters(first=[1.0], second=[1.0])
    trained["second"].grad = None
    with pytest.raises(RuntimeError, match=r"no gradient in 1 adapted modules, first second"):
        finalize_gradients(trained, measure.build(None, None), max_norm=0.0)


# ---------------------------------------------------------------- figures of one step


def test_figures_of_a_projected_step() -> None:
    trained = parameters(m=[3.0, 4.0], n=[-1.0, 0.0])
    bases = {"m": AXIS["m"], "n": AXIS["m"]}
    gauge = Gauge({name: torch.eye(1, 2) for name in trained}, {name: torch.tensor([0.0, 1.0]) for name in trained})
    figures = step(trained, erasing(bases), torch.optim.SGD(trained.values(), lr=0.1), gauge=gauge)
    norm = math.sqrt(26)
    assert figures == pytest.approx(
        {
            "alignment_signed": 4 / (norm * math.sqrt(2)),  # of the gradient before projection
            "alignment": 3 / norm,
            "alignment_null": math.sqrt(2 / 8),
            "grad_norm_before": norm,
            "grad_norm_after": math.sqrt(17),
            "share_removed": 3 / norm,
            "modules_touched": 1,  # n points away from the hack and stays
            "leak": 0,
        },
        abs=1e-6,
    )


def test_the_norm_after_is_the_norm_of_what_is_applied() -> None:
    trained = parameters(m=[3.0, 4.0])
    figures = step(trained, erasing(AXIS), torch.optim.SGD(trained.values(), lr=1.0), max_norm=2.0)
    assert figures["grad_norm_after"] == pytest.approx(2.0)
    assert figures["share_removed"] == pytest.approx(0.6)  # the intervention's doing, not the clip's
    assert trained["m"].tolist() == pytest.approx([0.0, -2.0])


def test_measure_leaves_the_hack_ward_part_in() -> None:
    """The negative control: with the projection off, gradient and step point hack-ward as they came."""
    trained = parameters(m=GRADIENT.tolist())
    figures = step(trained, measure.build(None, None), torch.optim.SGD(trained.values(), lr=1.0))
    raw = alignment({"m": GRADIENT}, SKEW)
    assert raw == pytest.approx(1 / math.sqrt(19))
    assert alignment({"m": -trained["m"].detach()}, SKEW) == pytest.approx(raw)
    assert (figures["share_removed"], figures["modules_touched"], figures["leak"]) == (0, 0, 0)
    assert figures["grad_norm_after"] == figures["grad_norm_before"] == pytest.approx(math.sqrt(19))


def test_sgd_keeps_a_projected_gradient_in_its_plane() -> None:
    trained = parameters(m=GRADIENT.tolist())
    figures = step(trained, erasing(SKEW), torch.optim.SGD(trained.values(), lr=0.1))
    assert figures["leak"] == pytest.approx(0, abs=1e-6)
    assert trained["m"].tolist() == pytest.approx((-0.1 * PROJECTED).tolist(), abs=1e-6)


def test_adam_leaks_out_of_the_plane_and_it_is_seen() -> None:
    """Adam's first step is the sign of the gradient: V sign(g') = 1 of norm sqrt(3)."""
    trained = parameters(m=GRADIENT.tolist())
    figures = step(trained, erasing(SKEW), torch.optim.AdamW(trained.values(), lr=0.1, weight_decay=0.0))
    assert figures["leak"] == pytest.approx(1 / math.sqrt(3), abs=1e-5)
    assert figures["share_removed"] == pytest.approx(1 / math.sqrt(19), abs=1e-6)


@pytest.mark.parametrize("project", ["update", "both"])
def test_projecting_the_update_takes_the_leak_out(project: str) -> None:
    trained = parameters(m=GRADIENT.tolist())
    optimizer = torch.optim.AdamW(trained.values(), lr=0.1, weight_decay=0.0)
    figures = step(trained, erasing(SKEW, project), optimizer)
    sign = torch.tensor([1.0, 1.0, -1.0])  # of the raw gradient and of the projected one alike
    applied = -0.1 * (sign - SKEW["m"][0])
    assert trained["m"].tolist() == pytest.approx(applied.tolist(), abs=1e-5)
    assert figures["leak"] == pytest.approx(0, abs=1e-5)
    removed = 0.0 if project == "update" else 1 / math.sqrt(19)
    assert figures["share_removed"] == pytest.approx(removed, abs=1e-6)


def test_an_update_is_measured_from_where_the_step_began() -> None:
    """The second step's leak is about that step, not about the way since the start."""
    trained = parameters(m=GRADIENT.tolist())
    with torch.no_grad():
        trained["m"].add_(torch.tensor([-50.0, -50.0, -50.0]))  # far hack-ward already
    figures = step(trained, erasing(SKEW), torch.optim.SGD(trained.values(), lr=0.1))
    assert figures["leak"] == pytest.approx(0, abs=1e-5)
