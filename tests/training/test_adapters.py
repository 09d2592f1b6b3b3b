"""Arms that train more than the deployed adapter, or weigh each completion's own gradient, through the real trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from training_lab import Lab, LengthBonus, Watched, Watcher, rollouts, silent, train_with, use, watch
from transformers import AutoModelForCausalLM

from projected_grpo.errors import ParamsError
from projected_grpo.interventions.base import (
    DEFAULT,
    QUARANTINE,
    Intervention,
    Parts,
    Rollouts,
    StepGradients,
    Workbench,
)
from projected_grpo.spectral import Factors, SpectralLinear, deltas
from projected_grpo.storage import SCRATCH_VARIABLE, sha256_tree
from projected_grpo.training.run import deploy, train_run


class Split(LengthBonus):
    """Puts a share of every gradient into a quarantine, less of it with each step; both adapters start at 0.01."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(self, workbench: Workbench, kept: Sequence[str] = (DEFAULT,), cut: int | None = None) -> None:
        super().__init__()
        self.model = workbench.model
        self.kept = tuple(kept)
        self.cut = cut
        self.steps = torch.zeros(1)
        self.started = 0

    def start(self) -> None:
        self.started += 1
        with torch.no_grad():
            for adapter in self.adapters:
                for delta in deltas(self.model, adapter).values():
                    delta.fill_(0.01)

    def start_step(self, step: int) -> None:
        if step == self.cut:
            raise KeyboardInterrupt

    def gradient(self, gradients: StepGradients) -> Parts:
        super().gradient(gradients)
        self.steps += 1
        share = float(1 / (1 + self.steps))
        return {
            DEFAULT: {module: g * (1 - share) for module, g in gradients.total.items()},
            QUARANTINE: {module: g * share for module, g in gradients.total.items()},
        }

    def deploy(self) -> tuple[str, ...]:
        return self.kept

    def state(self) -> dict[str, Tensor]:
        return {"steps": self.steps.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.steps = state["steps"].clone()


# ---------------------------------------------------------------- checkpoints


def run(lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Path, Split]:
    """Train four steps with checkpoints every other; returns the result and the arm that it was trained with."""
    made: list[Split] = []

    def build(workbench: Workbench) -> Intervention:
        made.append(Split(workbench, **options))
        return made[-1]

    monkeypatch.setenv(SCRATCH_VARIABLE, str(scratch))
    use(build, monkeypatch)
    return train_run(lab.spec("vanilla", steps=4, save_every=2), silent), made[-1]


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Split]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(lab, tmp_path_factory.mktemp("whole"), monkeypatch)


def adapter(result: Path, name: str = DEFAULT) -> dict[str, Tensor]:
    folder = result / "run/adapter"
    return load_file((folder if name == DEFAULT else folder / name) / "adapter_model.safetensors")


def test_a_run_with_a_quarantine_continues_bit_for_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[Path, Split]
) -> None:
    """Cut one step after the checkpoint: both adapters, Adam's memory and the arm's own state come from there."""
    with pytest.raises(KeyboardInterrupt):
        run(lab, tmp_path, monkeypatch, cut=3)
    assert [path.name for path in tmp_path.glob("runs/*/checkpoint-*")] == ["checkpoint-2"]
    result, arm = run(lab, tmp_path, monkeypatch)
    assert len(arm.gradients) == 2  # steps 2 and 3: continued, not begun anew
    assert (whole[1].started, arm.started) == (1, 0)  # what continues has its weights
    assert sha256_tree(result / "run") == sha256_tree(whole[0] / "run")


def test_a_run_keeps_what_it_throws_away_beside_what_is_deployed(lab: Lab, whole: tuple[Path, Split]) -> None:
    result, arm = whole
    files = {path.relative_to(result / "run/adapter").as_posix() for path in (result / "run/adapter").rglob("*.*")}
    assert files == {
        "adapter_config.json", "adapter_model.safetensors",
        "quarantine/adapter_config.json", "quarantine/adapter_model.safetensors",
    }  # fmt: skip
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(lab.root / "data/base", dtype=torch.float32), result / "run/adapter"
    )
    assert list(model.peft_config) == [DEFAULT]
    loaded, trained = deltas(model), deltas(arm.model)
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[module], delta) for module, delta in trained.items())
    assert all(not torch.equal(delta, adapter(result, QUARANTINE)[name]) for name, delta in adapter(result).items())


def test_the_log_tells_the_size_of_both_adapters(whole: tuple[Path, Split]) -> None:
    result, _ = whole
    lines = [line.split(",") for line in (result / "run/steps.csv").read_text().splitlines()]
    last = dict(zip(lines[0], lines[-1], strict=True))
    for name in (DEFAULT, QUARANTINE):
        norm = torch.cat(list(adapter(result, name).values())).norm()
        assert float(last[f"{name}_norm"]) == pytest.approx(float(norm), rel=1e-5)


# ---------------------------------------------------------------- what is deployed


@pytest.mark.parametrize(
    ("kept", "deployed"),
    [((DEFAULT,), [1.0, 2.0]), ((DEFAULT, QUARANTINE), [4.0, 6.0]), ((QUARANTINE,), [3.0, 4.0])],
)
def test_what_is_deployed_is_the_sum_of_what_is_kept(kept: tuple[str, ...], deployed: list[float]) -> None:
    model = nn.ModuleDict()
    plain = nn.Linear(2, 2, bias=False)
    model["m"] = layer = SpectralLinear(plain, Factors.of(plain.weight))
    for name, values in ((DEFAULT, [1.0, 2.0]), (QUARANTINE, [3.0, 4.0])):
        layer.update_layer(name)
        with torch.no_grad():
            layer.spectral_delta[name].copy_(torch.tensor(values))
    deploy(model, Split(Workbench(model, None, None, seed=0), kept))  # type: ignore[arg-type]
    assert deltas(model)["m"].tolist() == deployed
    assert deltas(model, QUARANTINE)["m"].tolist() == [3.0, 4.0]


# ---------------------------------------------------------------- adapters in use


class WatchedPair(Watcher):
    """Trains two adapters, and notes which are in use when a step begins and when its gradient comes."""

    adapters = (DEFAULT, QUARANTINE)

    def __init__(self) -> None:
        super().__init__(torch.arange(10, 22).reshape(1, 12))
        self.active: list[list[str]] = []

    def start_step(self, step: int) -> None:
        super().start_step(step)
        self.note()

    def gradient(self, gradients: StepGradients) -> Parts:
        self.note()
        return {
            DEFAULT: gradients.total,
            QUARANTINE: {module: 2 * g for module, g in super().gradient(gradients)[QUARANTINE].items()},
        }

    def note(self) -> None:
        assert self.trainer is not None
        model = self.trainer.model
        assert all(delta.requires_grad for name in self.adapters for delta in deltas(model, name).values())
        self.active.append(list(model.active_adapters))


@pytest.fixture(scope="module")
def pair(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Under a KL penalty, where TRL switches to its reference and back to one adapter in the middle of a step."""
    spec = lab.spec("vanilla", steps=2, kl_beta=0.1, save_every=100)
    return watch(spec, WatchedPair(), tmp_path_factory.mktemp("pair"))


def test_all_adapters_of_an_arm_stay_in_use(pair: Watched) -> None:
    assert isinstance(pair.watcher, WatchedPair)
    assert pair.watcher.active == [[DEFAULT, QUARANTINE]] * 4
    trained = [deltas(pair.trainer.model, name) for name in (DEFAULT, QUARANTINE)]
    assert all(delta.any() for vectors in trained for delta in vectors.values())
    assert not any(delta.any() for delta in deltas(pair.trainer.model, "ref").values())
    assert pair.trainer.run_log.figures("steps")["kl"][1] > 1e-4


def test_the_policy_is_the_sum_of_the_adapters(pair: Watched) -> None:
    model, probe = pair.trainer.model, pair.watcher.probe
    with torch.no_grad():
        logits = model(probe).logits
        deploy(model, Split(Workbench(model, None, None, seed=0), (DEFAULT, QUARANTINE)))  # type: ignore[arg-type]
        for delta in deltas(model, QUARANTINE).values():
            delta.zero_()
        assert torch.allclose(model(probe).logits, logits, rtol=0, atol=1e-4)
        for delta in deltas(model).values():
            delta.zero_()
        assert not torch.allclose(model(probe).logits, logits, rtol=0, atol=1e-2)


# ---------------------------------------------------------------- rollouts one by one


class Unit(LengthBonus):
    """Keeps the rollouts' own gradients."""

    def __init__(self, unit: bool) -> None:
        super().__init__()
        self.unit_rollouts = unit
        self.steps: list[StepGradients] = []

    def gradient(self, gradients: StepGradients) -> Parts:
        self.steps.append(gradients)
        return super().gradient(gradients)


def test_unit_rollouts_at_their_advantages_are_the_plain_gradient(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sum_i A_i u_i of a batch whose loss had every advantage at 1, against the plain run on the same batch."""
    spec = lab.spec("vanilla", steps=1, save_every=100)
    plain, unit = Unit(False), Unit(True)
    trainers = [train_with(spec, arm, tmp_path / str(arm.unit_rollouts), monkeypatch) for arm in (plain, unit)]
    one, other = ([row["token_ids"] for row in rollouts(tmp_path / str(kind))] for kind in (False, True))
    assert one == other
    [expected], [got] = plain.steps, unit.steps
    assert torch.equal(got.advantages, expected.advantages)
    assert got.advantages.any()
    for module, gradient in expected.total.items():
        scale = float(gradient.abs().max())
        assert torch.allclose(got.total[module], gradient, rtol=1e-4, atol=1e-5 * scale)
        assert torch.allclose(got.rollouts[module], expected.rollouts[module], rtol=1e-4, atol=1e-5 * scale)
        weighed = got.advantages[:, None] * got.unit[module]
        assert torch.equal(weighed, got.rollouts[module])
    first, second = (trainer.run_log.figures("steps") for trainer in trainers)
    names = ["loss", "grad_norm_before", "grad_norm_after", "alignment", "alignment_signed", "alignment_student"]
    assert second.loc[0, names].tolist() == pytest.approx(first.loc[0, names].tolist(), rel=1e-3)


def test_a_family_that_needs_unit_rollouts_is_refused_where_they_cannot_be_had(lab: Lab, scratch: Path) -> None:
    block = {"intervention": "gradient_advantage", "direction": "hack"}
    with pytest.raises(ParamsError) as refusal:
        train_run(lab.spec("own", block=block, rollout_gradients=False, kl_beta=0.1, steps=1), silent)
    faults = {fault.setting: fault.value for fault in refusal.value.faults}
    assert faults == {"grpo.rollout_gradients": False, "grpo.kl_beta": 0.1}
    assert not list(scratch.rglob("*.parquet"))


class Halved(Unit):
    """Weighs each rollout with half its advantage."""

    def gradient(self, gradients: StepGradients) -> Parts:
        self.given = (gradients.advantages / 2).tolist()
        return super().gradient(gradients)

    def weights(self) -> Sequence[float] | None:
        return self.given


def test_the_log_holds_the_advantages_that_the_update_was_made_with(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their loss: of the same batch, half the plain one's."""
    spec = lab.spec("vanilla", steps=1, save_every=100)
    arms = {"plain": Unit(False), "halved": Halved(True)}
    logs = {name: train_with(spec, arm, tmp_path / name, monkeypatch).run_log for name, arm in arms.items()}
    plain, halved = ([row["advantage"] for row in rollouts(tmp_path / name)] for name in arms)
    assert any(plain)
    assert halved == pytest.approx([advantage / 2 for advantage in plain])
    losses = {name: log.figures("steps").loc[0, "loss"] for name, log in logs.items()}
    assert losses["plain"] != 0.0
    assert losses["halved"] == pytest.approx(losses["plain"] / 2, rel=1e-4)


class Judge(LengthBonus):
    """Judges completions by their place in the batch."""

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        self.judged = [step_and_row(rollouts.step, row) for row in range(len(rollouts))]
        return super().reward(rollouts, rewards)

    def scores(self) -> Sequence[float] | None:
        return self.judged


def step_and_row(step: int, row: int) -> float:
    return step + row / 16


def test_what_an_arm_judged_by_stands_in_the_log(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("vanilla", steps=2, save_every=100)
    train_with(spec, Judge(), tmp_path, monkeypatch)
    size = spec.grpo.prompts * spec.grpo.samples
    assert [row["score"] for row in rollouts(tmp_path)] == [step_and_row(*divmod(i, size)) for i in range(2 * size)]


def test_an_arm_that_judges_none_leaves_the_column_empty(whole: tuple[Path, Split]) -> None:
    assert pq.read_table(whole[0] / "run/rollouts.parquet", columns=["score"])["score"].null_count == 4 * 8
