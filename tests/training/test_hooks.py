"""Between backward and the optimizer and right after it, on tensors small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from training_lab import FixedSource

from projected_grpo.directions.algebra import Frames, alignment
from projected_grpo.interventions import erase, measure
from projected_grpo.interventions.base import Intervention
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.spectral import Factors, GradientCollector, SpectralLinear, deltas
from projected_grpo.training.clock import PhaseClock
from projected_grpo.training.gauge import Gauge
from projected_grpo.training.hooks import UpdateHooks, in_sampling_order

AXIS = {"m": torch.tensor([[1.0, 0.0]])}
# V g' = 0 for g' = (1, 1, -4), and V sign(g') = 1: projected, and yet Adam's step points hack-ward.
SKEW = {"m": torch.tensor([[2.0, 2.0, 1.0]]) / 3}
PROJECTED = torch.tensor([1.0, 1.0, -4.0])
GRADIENT = PROJECTED + SKEW["m"][0]


def erasing(bases: dict[str, Tensor], project: str = "gradient") -> Intervention:
    settings = DirectionSettings(k=1, gate="one_sided", refresh_every=0, project=project)  # type: ignore[arg-type]
    return erase.build(settings, FixedSource(bases))


def model_of(**gradients: list[float]) -> nn.ModuleDict:
    """Adapted modules whose delta.grad is what is given."""
    model = nn.ModuleDict()
    for module, gradient in gradients.items():
        plain = nn.Linear(len(gradient), len(gradient), bias=False)
        model[module] = layer = SpectralLinear(plain, Factors.of(plain.weight))
        layer.update_layer("default")
        layer.set_adapter("default")
        layer.spectral_delta["default"].grad = torch.tensor(gradient)
    return model


def delta(model: nn.ModuleDict, module: str = "m") -> nn.Parameter:
    return deltas(model)[module]


def step(
    model: nn.ModuleDict,
    intervention: Intervention,
    optimizer: type[torch.optim.Optimizer],
    max_norm: float = 0.0,
    gauge: Gauge | None = None,
    **settings: float,
) -> dict[str, float]:
    """One optimizer step between the two hooks; returns the figures."""
    sizes = {module: vector.numel() for module, vector in deltas(model).items()}
    one = Frames({module: torch.eye(1, size) for module, size in sizes.items()})
    gauge = gauge or Gauge(one, {module: torch.ones(size) for module, size in sizes.items()})
    hooks = UpdateHooks(model, GradientCollector(model), intervention, gauge, max_norm, PhaseClock())
    stepping = optimizer(deltas(model).values(), **settings)
    hooks.on_pre_optimizer_step(optimizer=stepping)
    stepping.step()
    hooks.on_optimizer_step()
    return hooks.figures


# ---------------------------------------------------------------- figures of one step


def test_figures_of_a_projected_step() -> None:
    model = model_of(m=[3.0, 4.0], n=[-1.0, 0.0])
    bases = {"m": AXIS["m"], "n": AXIS["m"]}
    gauge = Gauge(Frames({name: torch.eye(1, 2) for name in bases}), {name: torch.tensor([0.0, 1.0]) for name in bases})
    figures = step(model, erasing(bases), torch.optim.SGD, gauge=gauge, lr=0.1)
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
            "basis_overlap": 1,
            "axes": 2,
            "bare_modules": 0,
            "overshoot": 1,
        },
        abs=1e-6,
    )


def test_the_norm_after_is_the_norm_of_what_is_applied() -> None:
    model = model_of(m=[3.0, 4.0])
    figures = step(model, erasing(AXIS), torch.optim.SGD, max_norm=2.0, lr=1.0)
    assert figures["grad_norm_after"] == pytest.approx(2.0)
    assert figures["share_removed"] == pytest.approx(0.6)  # the intervention's doing, not the clip's
    assert delta(model).tolist() == pytest.approx([0.0, -2.0])


def test_measure_leaves_the_hack_ward_part_in() -> None:
    """The negative control: with the projection off, gradient and step point hack-ward as they came."""
    model = model_of(m=GRADIENT.tolist())
    figures = step(model, measure.build(None, None), torch.optim.SGD, lr=1.0)
    raw = alignment({"m": GRADIENT}, SKEW)
    assert raw == pytest.approx(1 / math.sqrt(19))
    assert alignment({"m": -delta(model).detach()}, SKEW) == pytest.approx(raw)
    assert (figures["share_removed"], figures["modules_touched"], figures["leak"]) == (0, 0, 0)
    assert figures["grad_norm_after"] == figures["grad_norm_before"] == pytest.approx(math.sqrt(19))


def test_sgd_keeps_a_projected_gradient_in_its_plane() -> None:
    model = model_of(m=GRADIENT.tolist())
    figures = step(model, erasing(SKEW), torch.optim.SGD, lr=0.1)
    assert figures["leak"] == pytest.approx(0, abs=1e-6)
    assert delta(model).tolist() == pytest.approx((-0.1 * PROJECTED).tolist(), abs=1e-6)


def test_adam_leaks_out_of_the_plane_and_it_is_seen() -> None:
    """Adam's first step is the sign of the gradient: V sign(g') = 1 of norm sqrt(3)."""
    model = model_of(m=GRADIENT.tolist())
    figures = step(model, erasing(SKEW), torch.optim.AdamW, lr=0.1, weight_decay=0.0)
    assert figures["leak"] == pytest.approx(1 / math.sqrt(3), abs=1e-5)
    assert figures["share_removed"] == pytest.approx(1 / math.sqrt(19), abs=1e-6)


@pytest.mark.parametrize("project", ["update", "both"])
def test_projecting_the_update_takes_the_leak_out(project: str) -> None:
    model = model_of(m=GRADIENT.tolist())
    figures = step(model, erasing(SKEW, project), torch.optim.AdamW, lr=0.1, weight_decay=0.0)
    sign = torch.tensor([1.0, 1.0, -1.0])  # of the raw gradient and of the projected one alike
    applied = -0.1 * (sign - SKEW["m"][0])
    assert delta(model).tolist() == pytest.approx(applied.tolist(), abs=1e-5)
    assert figures["leak"] == pytest.approx(0, abs=1e-5)
    removed = 0.0 if project == "update" else 1 / math.sqrt(19)
    assert figures["share_removed"] == pytest.approx(removed, abs=1e-6)


def test_an_update_is_measured_from_where_the_step_began() -> None:
    """The second step's leak is about that step, not about the way since the start."""
    model = model_of(m=GRADIENT.tolist())
    with torch.no_grad():
        delta(model).add_(torch.tensor([-50.0, -50.0, -50.0]))  # far hack-ward already
    figures = step(model, erasing(SKEW), torch.optim.SGD, lr=0.1)
    assert figures["leak"] == pytest.approx(0, abs=1e-5)


# ---------------------------------------------------------------- clipping, Adam's memory, rows


def test_clips_what_the_projection_left() -> None:
    model = model_of(m=[3.0, 4.0])
    figures = step(model, erasing(AXIS), torch.optim.SGD, max_norm=2.0, lr=1.0)
    assert delta(model).grad.tolist() == pytest.approx([0.0, 2.0])  # clipped first it would be (0, 1.6)
    assert figures["grad_norm_before"] == pytest.approx(5.0)


def test_a_module_without_gradient_is_refused_by_name() -> None:
    model = model_of(first=[1.0], second=[1.0])
    delta(model, "second").grad = None
    with pytest.raises(RuntimeError, match=r"no gradient in 1 adapted modules, first second"):
        step(model, measure.build(None, None), torch.optim.SGD, lr=1.0)


class Forgetful(Intervention):
    """Clears the first coordinate of what Adam remembers."""

    def purge(self, moments: dict[str, Tensor]) -> dict[str, Tensor]:
        return {module: moment * torch.tensor([0.0, 1.0]) for module, moment in moments.items()}


def test_adams_running_mean_is_purged_before_the_step_and_not_before_there_is_one() -> None:
    model = model_of(m=[1.0, 1.0])
    gauge = Gauge(Frames({"m": torch.eye(1, 2)}), {"m": torch.ones(2)})
    hooks = UpdateHooks(model, GradientCollector(model), Forgetful(), gauge, 0.0, PhaseClock())
    optimizer = torch.optim.Adam([delta(model)], lr=0.0, betas=(0.9, 0.99))
    for _ in range(2):
        delta(model).grad = torch.ones(2)
        hooks.on_pre_optimizer_step(optimizer=optimizer)
        optimizer.step()
        hooks.on_optimizer_step()
    # 0.9 x 0 + 0.1 where purged; 0.9 x 0.1 + 0.1 where not
    assert optimizer.state[delta(model)]["exp_avg"].tolist() == pytest.approx([0.1, 0.19])


def test_rows_go_back_to_where_they_were_sampled() -> None:
    rows = {"m": torch.tensor([[2.0], [0.0], [1.0]])}
    assert in_sampling_order(rows, torch.tensor([2, 0, 1]))["m"].tolist() == [[0.0], [1.0], [2.0]]
