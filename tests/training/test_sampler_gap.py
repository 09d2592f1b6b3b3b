"""With transformers as the sampler: what is drawn is compared with what is trained, and nothing else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from gloo_ranks import in_ranks, join
from training_lab import Lab, LengthBonus, rollouts, silent, train_with
from trl import GRPOTrainer

from projected_grpo.errors import LabError
from projected_grpo.interventions.base import DEFAULT
from projected_grpo.settings.engine import TRANSFORMERS, EngineSettings
from projected_grpo.spectral import activate, deltas
from projected_grpo.storage import SCRATCH_VARIABLE, sha256_tree
from projected_grpo.training.engines import GAP_COLUMNS, EngineTrainer, SampledLogProbs, SamplerGap, recorded
from projected_grpo.training.pool import TeacherRollout
from projected_grpo.training.run import run_key, train_run
from projected_grpo.training.spec import RunSpec
from projected_grpo.training.trainer import HookedTrainer

ROUNDING = 1e-5  # nats a token, float32
PATIENT = {"steps": 4, "save_every": 1, "reward_format": 1.0}  # every step moves the weights

Sample = Callable[..., Any]


def gaps(result: Path) -> pd.DataFrame:
    return pd.read_parquet(result / "provenance/sampler.parquet")


def assert_agrees(logged: pd.DataFrame, steps: int) -> None:
    assert tuple(logged.columns) == ("step", *GAP_COLUMNS)
    assert logged["step"].tolist() == list(range(steps))
    assert (logged["sampler_gap"] > 0).all(), "compared with itself, or not at all"
    assert (logged["sampler_gap"] < ROUNDING).all()
    assert (logged["sampler_gap"] < logged["sampler_gap_max"]).all()
    assert (logged["sampler_gap_max"] < 1e-3).all()


@pytest.mark.parametrize(
    ("arm", "grpo", "compute"),
    [
        ("vanilla", {}, {}),
        ("vanilla", {"temperature": 0.7}, {"generate_batch": 3, "micro_batch": 2}),
        ("routed", {}, {}),
    ],
)
def test_a_run_samples_what_it_trains(
    lab: Lab, scratch: Path, arm: str, grpo: dict[str, Any], compute: dict[str, Any]
) -> None:
    """At another temperature, sampled in portions and trained in smaller ones, with a second adapter."""
    assert scratch
    spec = lab.spec(arm, steps=3, **grpo)
    spec = dataclasses.replace(spec, compute=spec.compute.model_copy(update=compute))
    result = train_run(spec, silent)
    assert_agrees(gaps(result), 3)
    steps = pd.read_csv(result / "run/steps.csv")
    assert not {*steps.columns} & {*GAP_COLUMNS}
    assert (steps["quarantine_norm"].iloc[-1] > 0.1) == (arm == "routed")


@pytest.mark.slow
def test_each_of_two_processes_is_compared(lab: Lab, scratch: Path) -> None:
    in_ranks(one_rank, lab.spec("vanilla", steps=2, prompts=2), str(scratch))
    [result] = scratch.glob("runs/*/result")
    assert_agrees(gaps(result), 2)


def one_rank(index: int, count: int, port: int, spec: RunSpec, scratch: str) -> None:
    join(index, count, port, PROJECTED_GRPO_SCRATCH=scratch)
    compared: list[int] = []
    add = SamplerGap.add

    def counted(gap: SamplerGap, trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor) -> None:
        compared.append(int(mask.sum()))
        add(gap, trainer, sampler, mask)

    SamplerGap.add = counted  # type: ignore[method-assign]
    train_run(spec, silent)
    assert len(compared) == spec.grpo.steps
    assert min(compared) > 0
    torch.distributed.destroy_process_group()


# ---------------------------------------------------------------- a teacher


@dataclasses.dataclass(frozen=True)
class Unlikely:
    """A teacher that writes, in the first step, what the policy would hardly write."""

    places: tuple[int, ...]

    def problems(self, wanted: Any, group_size: int) -> list[Any]:
        del group_size
        return list(wanted)

    def draw(self, problem_ids: list[str], group_size: int, step: int) -> dict[int, TeacherRollout]:
        del group_size
        if step:
            return {}
        verdict = dict.fromkeys(("format_ok", "paid", "correct", "hacked", "attempted"), True)
        given = {"loophole": "", "prompt": "", "completion": "?", "prompt_ids": (), "token_ids": (7, 700, 70, 7)}
        return {place: TeacherRollout(problem_id=problem_ids[place], **given, **verdict) for place in self.places}


def test_what_a_teacher_wrote_is_not_compared(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no log-probs of a sampler, and must not shift those of the rows beside it."""
    compared: list[torch.Tensor] = []
    add = SamplerGap.add

    def noted(gap: SamplerGap, trainer: torch.Tensor, sampler: torch.Tensor, mask: torch.Tensor) -> None:
        compared.append(sampler[mask.bool()].isnan())
        add(gap, trainer, sampler, mask)

    monkeypatch.setattr(SamplerGap, "add", noted)
    spec = lab.spec("vanilla", steps=2, save_every=100)
    trainer = train_with(spec, LengthBonus(), tmp_path, monkeypatch, Unlikely((0, 2, 5)))
    assert_agrees(trainer.run_log.figures("sampler"), 2)
    rows = [row for row in rollouts(tmp_path) if row["step"] == 0]
    assert [row["source"] for row in rows].count("teacher") == 3
    written, sampled = (sum(len(r["token_ids"]) for r in rows if r["source"] == who) for who in ("teacher", "student"))
    assert (int(compared[0].sum()), int((~compared[0]).sum())) == (written, sampled)
    assert not compared[1].any()


# ---------------------------------------------------------------- a sampler that is another policy


def sampling_with(monkeypatch: pytest.MonkeyPatch, around: Callable[[HookedTrainer, Callable[[], Any]], Any]) -> None:
    """`around(trainer, sample)` in place of TRL's sampling."""
    sample: Sample = GRPOTrainer._generate_single_turn
    monkeypatch.setattr(
        GRPOTrainer,
        "_generate_single_turn",
        lambda trainer, *args, **kwargs: around(trainer, lambda: sample(trainer, *args, **kwargs)),
    )


def stopped(spec: RunSpec) -> tuple[LabError, int]:
    """The refusal, and after how many steps."""
    heard: list[int] = []
    with pytest.raises(LabError) as refusal:
        train_run(spec, lambda step, _: heard.append(step))
    assert refusal.value.setting == "engine.max_gap"
    return refusal.value, len(heard)


def test_weights_of_the_step_before_stop_the_run(lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folded weight that was not made anew: the first difference is that of one update."""
    previous: dict[str, torch.Tensor] = {}

    def stale(trainer: HookedTrainer, sample: Callable[[], Any]) -> Any:
        own = deltas(trainer.model)
        now = {name: delta.detach().clone() for name, delta in own.items()}
        with torch.no_grad():
            for name, delta in own.items():
                delta.copy_(previous.get(name, now[name]))
            said = sample()
            for name, delta in own.items():
                delta.copy_(now[name])
        previous.update(now)
        return said

    sampling_with(monkeypatch, stale)
    spec = dataclasses.replace(lab.spec("vanilla", **PATIENT), engine=EngineSettings(kind="transformers", max_gap=1e-3))
    refusal, steps = stopped(spec)
    assert steps == 1, "nothing is trained yet in the first step"
    assert refusal.rule.startswith("step 1: sampler and trainer differ by 0.0")
    assert "the folded weights are stale" in refusal.rule
    [run] = scratch.glob("runs/*")
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"], "a step that was refused is saved"
    assert len(list(run.glob("sampler/*"))) == 1


def test_another_adapter_while_sampling_stops_the_run(lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The routed arm samples with its quarantine; here with what it deploys."""
    assert scratch

    def deployed(trainer: HookedTrainer, sample: Callable[[], Any]) -> Any:
        activate(trainer.model, DEFAULT)
        said = sample()
        activate(trainer.model, *trainer.intervention.adapters)
        return said

    sampling_with(monkeypatch, deployed)
    spec = dataclasses.replace(lab.spec("routed", **PATIENT), engine=EngineSettings(kind="transformers", max_gap=1e-3))
    refusal, steps = stopped(spec)
    assert steps >= 1, "the quarantine is still empty in the first step"
    assert "other adapters were active while sampling" in refusal.rule


def test_the_default_threshold_stops_a_run_that_never_agreed(
    lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scratch

    def moved(trainer: HookedTrainer, sample: Callable[[], Any]) -> Any:
        own = list(deltas(trainer.model).values())
        with torch.no_grad():
            for delta in own:
                delta.add_(0.5)
            said = sample()
            for delta in own:
                delta.sub_(0.5)
        return said

    sampling_with(monkeypatch, moved)
    refusal, steps = stopped(lab.spec("vanilla", **PATIENT))
    assert (steps, refusal.value) == (0, 0.02)
    assert "they never agreed" in refusal.rule


def test_an_arm_that_acts_on_sampling_differs_by_design(lab: Lab, scratch: Path) -> None:
    assert scratch
    logged = gaps(train_run(lab.spec("suppressed", steps=2), silent))
    assert logged["step"].tolist() == [0, 1]
    assert (logged["sampler_gap"] > TRANSFORMERS.max_gap).all(), "the arm does not act, or is not compared"


# ---------------------------------------------------------------- what stays as it was


@pytest.mark.parametrize("arm", ["projected", "suppressed"])
def test_a_run_is_the_same_without_the_comparison_bit_for_bit(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    results = {}
    for name in ("compared", "not"):
        monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / name))
        if name == "not":
            sample: Sample = GRPOTrainer._generate_single_turn
            monkeypatch.setattr(EngineTrainer, "_generate_single_turn", sample)
        results[name] = train_run(lab.spec(arm, steps=3), silent)
    assert sha256_tree(results["compared"] / "run") == sha256_tree(results["not"] / "run")
    assert (gaps(results["compared"])["sampler_gap"] > 0).all()
    assert (gaps(results["not"])["sampler_gap"] == 0).all(), "it was compared after all"


def test_a_run_that_was_cut_has_a_row_of_every_step(lab: Lab, scratch: Path) -> None:
    """Cut after step 2, with a checkpoint of step 2: that step is trained and compared again."""
    assert scratch
    spec = lab.spec("vanilla", steps=4, save_every=2)

    def cut(step: int, _: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(spec, cut)
    heard: list[int] = []
    result = train_run(spec, lambda step, _: heard.append(step))
    assert heard == [2, 3]
    assert_agrees(gaps(result), 4)


def test_where_a_run_stops_is_no_part_of_its_key(lab: Lab) -> None:
    spec = lab.spec("vanilla")
    patient = dataclasses.replace(spec, engine=EngineSettings(kind="transformers", max_gap=0.5))
    assert patient.resolved() == spec.resolved()
    assert run_key(patient) == run_key(spec)


def test_the_gap_is_heard_of(lab: Lab, scratch: Path) -> None:
    assert scratch
    heard: list[dict[str, float]] = []
    result = train_run(lab.spec("vanilla", steps=1), lambda _, figures: heard.append(figures))
    [logged] = gaps(result)[list(GAP_COLUMNS)].to_dict("records")
    assert {name: heard[0][name] for name in GAP_COLUMNS} == logged


# ---------------------------------------------------------------- how log-probs are noted


class Scripted:
    """Generates given tokens from given scores (positions, rows, vocabulary), as `generate` calls its processors."""

    def __init__(self, scores: torch.Tensor, tokens: torch.Tensor) -> None:
        self.scores = scores
        self.tokens = tokens

    def generate(self, prompt: torch.Tensor, logits_processor: Any) -> torch.Tensor:
        written = prompt
        for scores, tokens in zip(self.scores, self.tokens.T, strict=True):
            assert logits_processor(written, scores) is scores, "the scores are changed"
            written = torch.cat([written, tokens[:, None]], dim=1)
        return written


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_log_prob_of_each_drawn_token_is_noted(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(3, 2, 11, generator=generator)
    kept = scores.clone()
    tokens = torch.tensor([[4, 9, 2], [10, 1, 0]])  # the second row ends at its second token
    model = Scripted(scores, tokens)
    with recorded(model, temperature) as log_probs:
        model.generate(torch.full((2, 5), 3))
    known = (kept / temperature).log_softmax(-1)
    own = [[4, 9, 2], [10, 1]]
    found = log_probs.rows(own)
    assert found is not None
    for row, ids in enumerate(own):
        expected = [float(known[position, row, token]) for position, token in enumerate(ids)]
        assert found[row] == pytest.approx(expected, abs=1e-5)
    assert torch.equal(scores, kept)


def test_where_nothing_is_generated_nothing_is_known() -> None:
    assert SampledLogProbs(1.0).rows([[1, 2]]) is None


def test_a_model_generates_as_before_whatever_happens_while_it_is_recorded() -> None:
    model = Scripted(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(TypeError), recorded(model, 1.0):
        model.generate(None)  # type: ignore[arg-type]
    assert "generate" not in vars(model)
