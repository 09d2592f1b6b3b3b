"""Engines without vLLM: what is synced, what is compared, and what stops a run. A real vLLM: test_vllm.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import requests
import torch
from accelerate import Accelerator
from torch import Tensor
from training_lab import Lab, dense_weights, silent
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration

from projected_grpo import columns, engines
from projected_grpo.engines import VllmSampler, check_gap, vllm_version
from projected_grpo.errors import LabError
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.interventions.base import DEFAULT, QUARANTINE
from projected_grpo.policy import load_policy
from projected_grpo.settings.engine import TRANSFORMERS, EngineSettings
from projected_grpo.spectral import SpectralConfig, activate, deltas
from projected_grpo.training import engines as training_engines
from projected_grpo.training.engines import GAP_COLUMNS, SamplerGap
from projected_grpo.training.ranks import Ranks
from projected_grpo.training.run import STEP_COLUMNS, build_trainer, run_key, train_run
from projected_grpo.training.spec import RunSpec

VLLM = EngineSettings(kind="vllm")
SERVER = EngineSettings(kind="vllm", mode="server", url="http://localhost:8000")
NAN = float("nan")


class Client:
    """In the place of TRL's client: records what the server is sent."""

    def __init__(self) -> None:
        self.announced: list[tuple[str, str, list[int]]] = []
        self.sent: dict[str, Tensor] = {}
        self.resets = 0

    def update_named_params(self, announced: list[tuple[str, str, list[int]]], weights: Iterator[Any]) -> None:
        self.announced = announced
        self.sent = {name: weight.clone() for name, weight in weights}

    def reset_prefix_cache(self) -> None:
        self.resets += 1


class Twin(VllmSampler):
    """In vLLM's place: a plain model that gets the synced weights, samples, and says its log-probs."""

    broken_from = 10**6  # the sync from which on nothing arrives

    def _init_vllm(self) -> None:
        self.twin = AutoModelForCausalLM.from_pretrained(self.model.name_or_path, dtype=torch.float32).eval()
        self.syncs = 0

    def sync_weights(self) -> None:
        weights = {name: weight.clone() for name, weight in self._iter_named_params()}
        self.syncs += 1
        if self.syncs < self.broken_from:
            missing, unknown = self.twin.load_state_dict(weights, strict=False)
            assert (missing, unknown) == (["lm_head.weight"], [])  # tied to the embedding

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], *_: Any, **__: Any) -> Any:
        rows, said = [], []
        for prompt in prompts:
            written = self.twin.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=True, top_k=0, top_p=1.0, temperature=self.temperature,
                max_new_tokens=self.max_completion_length, eos_token_id=self.generation_kwargs["stop_token_ids"],
                pad_token_id=0,
            )[0]  # fmt: skip
            ids = written[len(prompt) :]
            logits = self.twin(written[None]).logits[0, len(prompt) - 1 : -1] / self.temperature
            rows.append(ids.tolist())
            said.append([[float(p)] for p in logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]])
        return prompts, rows, said, None


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> type[Twin]:
    monkeypatch.setattr(engines, "vllm_version", lambda: "0.0")
    monkeypatch.setattr("projected_grpo.training.run.vllm_version", lambda: "0.0")
    monkeypatch.setattr(training_engines, "VllmSampler", Twin)
    return Twin


def with_engine(spec: RunSpec, engine: EngineSettings = VLLM) -> RunSpec:
    return dataclasses.replace(spec, engine=engine)


def policy_and_tokenizer(lab: Lab) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    spec = lab.spec("vanilla")
    return load_policy(spec.base, spec.compute), AutoTokenizer.from_pretrained(spec.base, padding_side="left")


# ---------------------------------------------------------------- what is synced


@pytest.fixture
def sampler(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> VllmSampler:
    """A server's, for a policy with two adapters that have both moved."""
    monkeypatch.setattr(engines, "vllm_version", lambda: "0.0")
    monkeypatch.setattr(VllmSampler, "_init_vllm", lambda _: None)
    model, tokenizer = policy_and_tokenizer(lab)
    model.add_adapter(QUARANTINE, SpectralConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in (DEFAULT, QUARANTINE):
            for delta in deltas(model, name).values():
                delta.copy_(0.1 * torch.randn(delta.shape, generator=generator))
    activate(model, DEFAULT, QUARANTINE)
    made = VllmSampler(
        model, Accelerator(cpu=True), tokenizer, SERVER, max_tokens=8, temperature=1.0, rows=4, stop=[1], seed=0
    )
    made.vllm_client = Client()
    return made


@pytest.mark.parametrize("active", [(DEFAULT, QUARANTINE), (DEFAULT,)])
def test_what_is_synced_is_the_plain_model_with_the_active_adapters_folded_in(
    sampler: VllmSampler, lab: Lab, active: tuple[str, ...]
) -> None:
    activate(sampler.model, *active)
    expected = dense_weights(sampler.model, lab.spec("vanilla").base, active)
    sampler.sync_weights()
    sent = sampler.vllm_client.sent
    assert list(sent) == list(expected), "other names than those of the plain model"
    for name, weight in expected.items():
        torch.testing.assert_close(sent[name], weight, rtol=0, atol=1e-6)
    announced = [(name, "float32", list(weight.shape)) for name, weight in expected.items()]
    assert sampler.vllm_client.announced == announced
    assert sampler.vllm_client.resets == 1, "what was cached with other weights is still in use"


def test_a_sync_leaves_the_policy_as_it_was(sampler: VllmSampler) -> None:
    ids = torch.arange(10, 34)[None]
    with torch.no_grad():
        before = sampler.model(ids).logits
        sampler.sync_weights()
        assert torch.equal(sampler.model(ids).logits, before)
    assert sampler.model.active_adapters == [DEFAULT, QUARANTINE]


def test_a_second_sync_sends_what_an_update_has_changed(sampler: VllmSampler) -> None:
    name, delta = next(iter(deltas(sampler.model).items()))
    sampler.sync_weights()
    first = sampler.vllm_client.sent
    with torch.no_grad():
        delta.add_(0.5)
    sampler.sync_weights()
    changed = {key for key, weight in sampler.vllm_client.sent.items() if not torch.equal(weight, first[key])}
    assert changed == {f"{name}.weight"}


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("arm", ["projected", "routed"])
def test_each_step_is_sampled_with_its_own_weights(twin: type[Twin], lab: Lab, scratch: Path, arm: str) -> None:
    del twin, scratch
    result = train_run(with_engine(lab.spec(arm, steps=3)), silent)
    gaps = pd.read_parquet(result / "provenance/sampler.parquet")
    assert tuple(gaps.columns) == ("step", *GAP_COLUMNS)
    assert gaps["step"].tolist() == [0, 1, 2]
    assert (gaps["sampler_gap_max"] < 1e-4).all()
    assert (gaps["sampler_gap"] > 0).all(), "compared with itself"
    assert (gaps["sampler_gap"] < gaps["sampler_gap_max"]).all()
    steps = pd.read_csv(result / "run/steps.csv")
    assert tuple(steps.columns) == STEP_COLUMNS
    assert steps["default_norm"].iloc[-1] > 0.5
    assert (steps["quarantine_norm"].iloc[-1] > 0.1) == (arm == "routed")


def test_weights_of_an_earlier_step_stop_the_run_before_it_is_logged(
    twin: type[Twin], lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin, "broken_from", 2)  # the first step's arrive
    heard: list[int] = []
    spec = with_engine(lab.spec("vanilla", steps=4, save_every=1, reward_format=1.0))
    with pytest.raises(LabError) as refusal:
        train_run(spec, lambda step, _: heard.append(step))
    stopped = len(heard)
    assert stopped > 0, "nothing is trained yet in the first step"
    assert refusal.value.setting == "engine.max_gap"
    assert f"step {stopped}: sampler and trainer differ by" in refusal.value.rule
    assert "weights of an earlier step" in refusal.value.rule
    [run] = scratch.glob("runs/*")
    assert len(list(run.glob("rollouts/*"))) == stopped
    assert max(int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")) == stopped


def test_vllm_leaves_a_run_its_own_random_numbers(
    twin: type[Twin], lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM leaves the process's generator at its own seed, the same in every run."""

    def seeded(self: Twin) -> None:
        made(self)
        torch.manual_seed(0)

    made = twin._init_vllm
    monkeypatch.setattr(twin, "_init_vllm", seeded)
    states = []
    for seed in (1, 2):
        spec = with_engine(lab.spec("vanilla", seed=seed))
        with Sandbox(SandboxLimits(**spec.sandbox.model_dump())) as sandbox:
            build_trainer(spec, tmp_path, sandbox, silent)
        states.append(torch.initial_seed())
    assert states == [1, 2]


def test_an_arm_that_acts_on_sampling_is_refused(twin: type[Twin], lab: Lab, scratch: Path) -> None:
    del twin, scratch
    with pytest.raises(LabError) as refusal:
        train_run(with_engine(lab.spec("suppressed")), silent)
    assert (refusal.value.setting, refusal.value.value) == ("engine.kind", "vllm")
    assert "must be transformers for suppressed" in refusal.value.rule


def test_the_default_engine_is_no_part_of_a_key_and_vllm_is(twin: type[Twin], lab: Lab) -> None:
    del twin
    spec = lab.spec("vanilla")
    assert "engine" not in spec.resolved()
    roomier = VLLM.model_copy(update={"memory_share": 0.5, "max_gap": 1.0, "context": 512})
    assert run_key(with_engine(spec)) == run_key(with_engine(spec, roomier))
    keys = {run_key(with_engine(spec, engine)) for engine in (spec.engine, VLLM, SERVER)}
    assert len(keys) == 3


# ---------------------------------------------------------------- the gap


def test_the_gap_is_over_tokens_that_were_sampled() -> None:
    gap = SamplerGap(VLLM.model_copy(update={"max_gap": 1.0}))
    trainer = torch.tensor([[-1.0, -2.0, -9.0], [-1.0, -1.0, -1.0]])
    sampler = torch.tensor([[-1.5, -2.1, 0.0], [NAN, NAN, NAN]])  # padding; a teacher's row
    gap.add(trainer, sampler, torch.tensor([[1, 1, 0], [1, 1, 1]]))
    gap.add(torch.tensor([[-3.0]]), torch.tensor([[-2.7]]), torch.tensor([[1]]))  # the next part of the step
    assert gap.take(0) == pytest.approx({"sampler_gap": 0.3, "sampler_gap_max": 0.5}, abs=1e-6)
    assert gap.take(1) == {"sampler_gap": 0.0, "sampler_gap_max": 0.0}, "tokens of the last step"


def test_the_gap_is_that_of_all_ranks() -> None:
    class Two(Ranks):
        def gather(self, share: Tensor) -> Tensor:
            return torch.cat([share, torch.tensor([[0.8, 1.0, 0.8]], dtype=torch.double)])  # the other's: sum, n, max

    gap = SamplerGap(VLLM.model_copy(update={"max_gap": 0.24}))
    own = torch.tensor([[-1.0, -1.0, -1.0]]), torch.tensor([[-1.0, -1.1, -1.1]]), torch.ones(1, 3)
    gap.add(*own)
    assert gap.take(0) == pytest.approx({"sampler_gap": 0.2 / 3, "sampler_gap_max": 0.1}, abs=1e-6)
    gap.add(*own)
    with pytest.raises(LabError, match=r"differ by 0\.25 "):
        gap.take(1, Two(0, 2))


def test_a_gap_by_design_is_told_and_stops_nothing() -> None:
    far = torch.tensor([[-9.0]]), torch.tensor([[-1.0]]), torch.ones(1, 1)
    steered, other = SamplerGap(VLLM, steered=True), SamplerGap(VLLM)
    for gap in (steered, other):
        gap.add(*far)
    assert steered.take(0) == {"sampler_gap": 8.0, "sampler_gap_max": 8.0}
    with pytest.raises(LabError, match=r"differ by 8 "):
        other.take(0)


@pytest.mark.parametrize(
    ("engine", "agreed", "cause", "fix"),
    [
        (TRANSFORMERS, True, "the folded weights are stale, or other adapters", "goes on from its last checkpoint"),
        (TRANSFORMERS, False, "padding or positions, or the rounding of compute.dtype", "compute.dtype: float32"),
        (VLLM, True, "the weights of an earlier step", "goes on from its last checkpoint"),
        (SERVER, True, "the weights of an earlier step", "goes on from its last checkpoint"),
        (SERVER, False, "the server runs another model, or reports log-probs before", "--logprobs-mode"),
        (VLLM, False, "the rounding of dtype auto", "dtype: float32"),
    ],
)
def test_a_gap_names_its_likely_cause(engine: EngineSettings, agreed: bool, cause: str, fix: str) -> None:
    check_gap(engine.max_gap, engine, "step 3", agreed)
    with pytest.raises(LabError) as refusal:
        check_gap(engine.max_gap * 1.01, engine, "step 3", agreed)
    assert refusal.value.rule.startswith("step 3: sampler and trainer differ by 0.0202 nats a token")
    assert cause in refusal.value.rule
    assert fix in refusal.value.fix


def test_a_gap_that_is_no_number_is_no_agreement() -> None:
    with pytest.raises(LabError, match="differ by nan"):
        check_gap(NAN, VLLM, "evaluation", agreed=False)


def test_vllm_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "DISTRIBUTIONS", ("no-such-distribution",))
    with pytest.raises(LabError, match="needs vLLM, which is not installed here"):
        vllm_version()


def test_a_server_that_does_not_answer_is_refused_with_how_to_start_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(_: object) -> None:
        raise requests.ConnectionError("can't be reached at http://localhost:8000")

    monkeypatch.setattr(engines, "vllm_version", lambda: "0.0")
    monkeypatch.setattr(VLLMGeneration, "_init_vllm", unreachable)
    model, tokenizer = policy_and_tokenizer(lab)
    with pytest.raises(LabError, match=r"engine\.url: 'http://localhost:8000'") as refusal:
        VllmSampler(
            model, Accelerator(cpu=True), tokenizer, SERVER, max_tokens=8, temperature=1.0, rows=4, stop=[1], seed=0
        )
    assert "vllm serve BASE" in refusal.value.fix


def test_every_column_of_the_comparison_is_explained() -> None:
    assert tuple(column.name for column in columns.SAMPLER) == GAP_COLUMNS
