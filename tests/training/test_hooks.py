"""Between backward and the optimizer and right after it, on tensors small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from training_lab import FixedSource

from projected_grpo.directions.algebra import Frames, alignment
from projected_grpo.interventions import erase, measure
from projected_grpo.interventions.base import (
    DEFAULT,
    QUARANTINE,
    Intervention,
    Parts,
    StepGradients,
    Vectors,
    Workbench,
)
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
    bench = Workbench(None, None, None, seed=0, direction=settings, source=FixedSource(bases))  # type: ignore[arg-type]
    return erase.build(erase.Options(), bench)


def idle() -> Intervention:
    return measure.build(measure.Options(), Workbench(None, None, None, seed=0))  # type: ignore[arg-type]


def model_of(*adapters: str, **gradients: list[float]) -> nn.ModuleDict:
    """Adapted modules whose deltas' grad is what is given, in every adapter."""
    adapters = adapters or (DEFAULT,)
    model = nn.ModuleDict()
    for module, gradient in gradients.items():
        plain = nn.Linear(len(gradient), len(gradient), bias=False)
        model[module] = layer = SpectralLinear(plain, Factors.of(plain.weight))
        for adapter in adapters:
            layer.update_layer(adapter)
        layer.set_adapter(list(adapters))
        for adapter in adapters:
            layer.spectral_delta[adapter].grad = torch.tensor(gradient)
    return model


def delta(model: nn.ModuleDict, module: str = "m", adapter: str = DEFAULT) -> nn.Parameter:
    return deltas(model, adapter)[module]


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
    parameters = [delta for adapter in intervention.adapters for delta in deltas(model, adapter).values()]
    stepping = optimizer(parameters, **settings)
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
            "flagged": 0,
            "default_norm": 0.1 * math.sqrt(17),
            "quarantine_norm": 0,
            "alignment_student": 0,  # no rollout's own gradient is known here
            "alignment_teacher": 0,
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
    figures = step(model, idle(), torch.optim.SGD, lr=1.0)
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
        step(model, idle(), torch.optim.SGD, lr=1.0)


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


# ---------------------------------------------------------------- two adapters


class Routing(Intervention):
    """Sends the first coordinate to the quarantine, and lets no update of it be larger than 1."""

    adapters = (DEFAULT, QUARANTINE)
    first = torch.tensor([1.0, 0.0])

    def gradient(self, gradients: StepGradients) -> Parts:
        return {
            DEFAULT: {module: g * (1 - self.first) for module, g in gradients.total.items()},
            QUARANTINE: {module: g * self.first for module, g in gradients.total.items()},
        }

    def update(self, adapter: str, update: Vectors) -> Vectors:
        if adapter == DEFAULT:
            return update
        return {module: vector.clamp(-1.0, 1.0) for module, vector in update.items()}


def test_each_adapter_gets_its_own_gradient_and_update() -> None:
    model = model_of(DEFAULT, QUARANTINE, m=[3.0, 4.0])
    figures = step(model, Routing(), torch.optim.SGD, lr=1.0)
    assert delta(model).tolist() == [0.0, -4.0]
    assert delta(model, adapter=QUARANTINE).tolist() == [-1.0, 0.0]
    assert figures["share_removed"] == pytest.approx(3 / 5)  # from what is deployed
    assert (figures["grad_norm_before"], figures["grad_norm_after"]) == pytest.approx((5.0, 5.0))
    assert (figures["default_norm"], figures["quarantine_norm"]) == pytest.approx((4.0, 1.0))


def test_both_adapters_are_clipped_together() -> None:
    model = model_of(DEFAULT, QUARANTINE, m=[3.0, 4.0])
    figures = step(model, Routing(), torch.optim.SGD, max_norm=1.0, lr=1.0)
    assert delta(model).tolist() == pytest.approx([0.0, -0.8])
    assert delta(model, adapter=QUARANTINE).tolist() == pytest.approx([-0.6, 0.0])
    assert figures["grad_norm_after"] == pytest.approx(1.0)


def test_the_leak_is_that_of_the_deployed_adapter() -> None:
    """The quarantine goes hack-ward, as it should; the deployed one does not."""

    class Known(Routing):
        def bases(self) -> dict[str, Tensor]:
            return AXIS

    assert step(model_of(DEFAULT, QUARANTINE, m=[3.0, 4.0]), Known(), torch.optim.SGD, lr=1.0)["leak"] == 0.0


def test_an_arm_that_does_not_route_gives_every_adapter_the_gradient() -> None:
    class Pair(Intervention):
        adapters = (DEFAULT, QUARANTINE)

    model = model_of(DEFAULT, QUARANTINE, m=[3.0, 4.0])
    step(model, Pair(), torch.optim.SGD, lr=1.0)
    assert delta(model).tolist() == delta(model, adapter=QUARANTINE).tolist() == [-3.0, -4.0]


# ---------------------------------------------------------------- rollouts one by one


class Kept(Intervention):
    """Keeps what `gradient` is shown."""

    def __init__(self, unit: bool = False) -> None:
        self.unit_rollouts = unit
        self.seen: list[StepGradients] = []

    def gradient(self, gradients: StepGradients) -> Parts:
        self.seen.append(gradients)
        return super().gradient(gradients)


ROWS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])  # of the rollouts 0, 1, 2
ADVANTAGES = torch.tensor([2.0, -1.0, 0.5])
TEACHER = torch.tensor([False, True, False])
SHUFFLED = torch.tensor([2, 0, 1])


def step_by_rollout(
    intervention: Intervention, rows: Tensor, teacher: Tensor = TEACHER
) -> tuple[nn.ModuleDict, UpdateHooks]:
    """One step of plain descent whose batch came in the order SHUFFLED; `rows`: what backward finds, by rollout."""
    model = model_of(m=rows.sum(0).tolist())
    collector = GradientCollector(model, rollouts=True)
    collector.collected["m"].rows[0] = rows[SHUFFLED]
    gauge = Gauge(Frames({"m": torch.eye(1, 2)}), {"m": torch.tensor([1.0, 0.0])})
    hooks = UpdateHooks(model, collector, intervention, gauge, 0.0, PhaseClock())
    hooks.begin(ADVANTAGES, teacher)
    hooks.forward(SHUFFLED)
    optimizer = torch.optim.SGD([delta(model)], lr=1.0)
    hooks.on_pre_optimizer_step(optimizer=optimizer)
    optimizer.step()
    hooks.on_optimizer_step()
    return model, hooks


def test_an_arm_sees_rollouts_in_the_order_they_were_sampled() -> None:
    arm = Kept()
    _, hooks = step_by_rollout(arm, ROWS)
    [seen] = arm.seen
    assert seen.rollouts["m"].tolist() == hooks.rollouts["m"].tolist() == ROWS.tolist()
    assert seen.unit == {}
    assert seen.advantages.tolist() == ADVANTAGES.tolist()


def test_rows_of_several_forward_passes_are_put_together() -> None:
    """A step in micro-batches announces each of them."""
    model = model_of(m=[0.0, 0.0])
    collector = GradientCollector(model, rollouts=True)
    collector.collected["m"].rows.update({0: ROWS[[2]], 1: ROWS[[0, 1]]})
    arm = Kept()
    hooks = UpdateHooks(model, collector, arm, Gauge(Frames(AXIS), {"m": torch.ones(2)}), 0.0, PhaseClock())
    hooks.begin(ADVANTAGES, TEACHER)
    hooks.forward(torch.tensor([2]))
    hooks.forward(torch.tensor([0, 1]))
    hooks.on_pre_optimizer_step(optimizer=None)
    assert arm.seen[0].rollouts["m"].tolist() == ROWS.tolist()


def test_unit_rollouts_are_weighed_with_their_advantages() -> None:
    """The loss had every advantage at 1: what backward left is sum_i u_i, what is applied is sum_i A_i u_i."""
    arm = Kept(unit=True)
    model, hooks = step_by_rollout(arm, ROWS)
    [seen] = arm.seen
    weighed = [[2.0, 0.0], [0.0, -2.0], [1.5, 1.5]]
    assert seen.unit["m"].tolist() == ROWS.tolist()
    assert seen.rollouts["m"].tolist() == hooks.rollouts["m"].tolist() == weighed
    assert seen.total["m"].tolist() == [3.5, -0.5]
    assert delta(model).tolist() == [-3.5, 0.5]
    assert hooks.figures["grad_norm_before"] == pytest.approx(math.hypot(3.5, 0.5))


def test_the_gradient_is_read_by_source() -> None:
    """The student's part is (4, 3), the teacher's (0, 2); the mean pair difference is (1, 0)."""
    _, hooks = step_by_rollout(Kept(), ROWS)
    assert hooks.figures["alignment_student"] == pytest.approx(4 / 5)
    assert hooks.figures["alignment_teacher"] == pytest.approx(0.0)
    assert hooks.figures["alignment_signed"] == pytest.approx(4 / math.sqrt(41))
    _, hooks = step_by_rollout(Kept(), ROWS, ~TEACHER)
    assert (hooks.figures["alignment_student"], hooks.figures["alignment_teacher"]) == pytest.approx((0.0, 4 / 5))


def test_without_a_teacher_the_students_part_is_all() -> None:
    _, hooks = step_by_rollout(Kept(), ROWS, torch.zeros(3, dtype=torch.bool))
    assert hooks.figures["alignment_student"] == pytest.approx(hooks.figures["alignment_signed"])
    assert hooks.figures["alignment_teacher"] == 0.0
