"""A run spread over processes: on the same completions it ends where one process ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from gloo_ranks import in_ranks, join
from peft import get_peft_model
from same_run import BOTH, FILES, GRPO, STRICT, Completions, assert_same_run, replay, sampled
from torch import Tensor
from torch.distributed.tensor import DTensor
from training_lab import ROOT, Lab, silent
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from projected_grpo.errors import LabError
from projected_grpo.interventions.base import DEFAULT, Intervention, Parts, Rollouts, StepGradients
from projected_grpo.policy import load_policy
from projected_grpo.problems.schema import Problem
from projected_grpo.settings.arms import ArmSettings, TeacherSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.engine import EngineSettings
from projected_grpo.spectral import SpectralConfig, deltas
from projected_grpo.storage import SCRATCH_VARIABLE
from projected_grpo.training import refusals
from projected_grpo.training import run as run_module
from projected_grpo.training.pool import TeacherRollout
from projected_grpo.training.ranks import SHARDED, Ranks, take_over_sharding
from projected_grpo.training.sharding import shard
from projected_grpo.training.spec import RunSpec

CPU = ComputeSettings(
    device="cpu", dtype="float32", micro_batch=None, generate_batch=None, checkpointing=False, keep_factors=False,
    factors="device",
)  # fmt: skip


def one_rank(index: int, count: int, port: int, spec: RunSpec, scratch: str, said: Completions | None) -> None:
    """A rank of a run that samples what it is given; None: what it will."""
    join(index, count, port, PROJECTED_GRPO_SCRATCH=scratch)
    if said is not None:
        GRPOTrainer._generate_single_turn = replay(said)
    heard: list[int] = []
    run_module.train_run(spec, lambda step, _: heard.append(step))
    assert heard == (list(range(spec.grpo.steps)) if index == 0 else []), "rank 0 alone tells of the steps"
    torch.distributed.destroy_process_group()


def train_spread(
    spec: RunSpec, scratch: Path, said: Completions | None, body: Callable[..., None] = one_rank, count: int = 2
) -> Path:
    """Train over `count` processes of gloo; returns the result's folder."""
    in_ranks(body, spec, str(scratch), said, count=count)
    [result] = scratch.glob("runs/*/result")
    return result / "run"


def train_both_ways(spec: RunSpec, scratch: Path, adapters: Sequence[str] = FILES) -> pd.DataFrame:
    """In one process and in two; returns the figures of the steps once they are found equal."""
    one = run_module.train_run(spec, silent) / "run"
    assert_same_run(one, train_spread(spec, scratch, sampled(one)), adapters)
    return pd.read_csv(one / "steps.csv")


def test_two_processes_train_what_one_does(lab: Lab, scratch: Path, tmp_path: Path) -> None:
    """With an arm that sums up the rows it leaves out, so that their order, their scale and their signs count."""
    assert scratch
    steps = train_both_ways(lab.spec("own", block=STRICT, **GRPO), tmp_path / "spread")
    assert (steps["flagged"] > 0).all(), "the arm had nothing to decide"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "adapters"), [("vanilla", FILES), ("projected", FILES), ("routed", BOTH), ("gradient_advantage", FILES)]
)
def test_two_processes_train_what_one_does_by_other_arms(
    lab: Lab, scratch: Path, tmp_path: Path, arm: str, adapters: Sequence[str]
) -> None:
    assert scratch
    steps = train_both_ways(lab.spec(arm, **GRPO), tmp_path / "spread", adapters)
    assert (steps["share_removed"] > 0).all() == (arm != "vanilla")


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "block"), [("projected", None), ("own", STRICT)])
def test_two_processes_of_two_passes_train_what_one_pass_does(
    lab: Lab, scratch: Path, tmp_path: Path, arm: str, block: dict[str, Any] | None
) -> None:
    """Groups of four lie on several passes and processes; the clip binds, so that a norm of a part would show."""
    assert scratch
    spec = lab.spec(arm, block=block, **GRPO, max_grad_norm=1e-3)
    one = run_module.train_run(spec, silent) / "run"
    portions = dataclasses.replace(spec, compute=spec.compute.model_copy(update={"micro_batch": 3}))
    assert_same_run(one, train_spread(portions, tmp_path / "spread", sampled(one)), FILES)
    steps = pd.read_csv(one / "steps.csv")
    assert (steps["grad_norm_before"] > 1e-3).all(), "the clip had nothing to do"


class Contrary(Intervention):
    """On every rank but the first it wants the opposite of all that it is asked."""

    sign = 1.0

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        return [self.sign * reward for reward in super().reward(rollouts, rewards)]

    def advantage(self, advantages: Tensor) -> Tensor:
        return self.sign * advantages

    def gradient(self, gradients: StepGradients) -> Parts:
        return {DEFAULT: {module: self.sign * gradient for module, gradient in gradients.total.items()}}


def one_contrary_rank(index: int, *arguments: Any) -> None:
    Contrary.sign = -1.0 if index else 1.0
    run_module.family = lambda *_: SimpleNamespace(build=lambda *_: Contrary())  # type: ignore[assignment,return-value]
    one_rank(index, *arguments)


@pytest.mark.slow
def test_what_rank_0_decides_holds_for_all(lab: Lab, scratch: Path, tmp_path: Path) -> None:
    assert scratch
    spec = lab.spec("vanilla", **GRPO)
    one = run_module.train_run(spec, silent) / "run"
    assert_same_run(one, train_spread(spec, tmp_path / "spread", sampled(one), one_contrary_rank), FILES)


@dataclasses.dataclass(frozen=True)
class Cached:
    """A teacher that writes given rows of the first step."""

    rows: dict[int, TeacherRollout]

    def problems(self, wanted: Sequence[Problem], group_size: int) -> list[Problem]:
        del group_size
        return list(wanted)

    def draw(self, problem_ids: Sequence[str], group_size: int, step: int) -> dict[int, TeacherRollout]:
        assert len(problem_ids) == 2 * group_size, "asked for a share of the step"
        return self.rows if step == 0 else {}


def one_taught_rank(*arguments: Any) -> None:
    *rank, teacher = arguments
    run_module.build_teacher = lambda *_: teacher
    one_rank(*rank)


@pytest.mark.slow
def test_a_teacher_writes_the_same_rows_in_two_processes(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of the first process, and all of the second one's, which has nothing to sample."""
    spec = lab.spec("vanilla", **GRPO | {"prompts": 2})
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "plain"))
    plain = pd.read_parquet(run_module.train_run(spec, silent) / "run/rollouts.parquet")
    names = ("problem_id", "loophole", "prompt", "completion", "format_ok", "attempted")
    written = {}
    for row in (1, 4, 5, 6, 7):
        logged = plain.iloc[row]
        labels = {"paid": row % 2 == 1, "hacked": row % 2 == 1, "correct": False}
        ids = tuple(int(token) for token in logged["token_ids"])
        given = {name: logged[name] for name in names}
        written[row] = TeacherRollout(**given, **labels, token_ids=ids, prompt_ids=())
    teacher = Cached(written)

    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "one"))
    monkeypatch.setattr(run_module, "build_teacher", lambda *_: teacher)
    one = run_module.train_run(spec, silent) / "run"
    in_ranks(one_taught_rank, spec, str(tmp_path / "spread"), sampled(one), teacher)
    [spread] = (tmp_path / "spread").glob("runs/*/result/run")
    assert_same_run(one, spread, FILES)
    rows = pd.read_parquet(spread / "rollouts.parquet")
    assert rows.index[rows["source"] == "teacher"].tolist() == [1, 4, 5, 6, 7]


# ---------------------------------------------------------------- what ranks tell each other


def one_of_two(index: int, count: int, port: int) -> None:
    join(index, count, port)
    torch.distributed.init_process_group("gloo")
    ranks = Ranks.current()
    assert (ranks.index, ranks.count, ranks.first) == (index, 2, index == 0)
    assert ranks.rows(3) == (range(3, 6) if index else range(3))
    assert ranks.lists([f"{index}a", f"{index}b"]) == ["0a", "0b", "1a", "1b"]
    share = torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * index
    assert ranks.gather(share.T).tolist() == [[1.0, 3.0], [2.0, 4.0], [11.0, 13.0], [12.0, 14.0]]
    assert ranks.agree({"rank": index}) == {"rank": 0}
    ours = [torch.full((2, 2), float(index)), torch.full((3,), index + 5.0)]
    ranks.align(ours)
    assert [tensor.tolist() for tensor in ours] == [[[0.0, 0.0], [0.0, 0.0]], [5.0, 5.0, 5.0]]
    ranks.require_same("a thing", "equal", "")
    with pytest.raises(LabError, match="a thing on rank 1: 1\n"):  # on both of them
        ranks.require_same("a thing", index, "mend it")
    torch.distributed.destroy_process_group()


def test_ranks_gather_in_their_order_and_heed_the_first() -> None:
    in_ranks(one_of_two)


def test_one_process_has_nothing_to_send() -> None:
    alone, tensor = Ranks.current(), torch.ones(2)
    assert alone == Ranks(0, 1)
    assert alone.gather(tensor) is tensor
    assert (alone.lists((1, 2)), alone.agree("own")) == ([1, 2], "own")


@pytest.mark.parametrize(
    ("variables", "setting"),
    [
        ({"WORLD_SIZE": "5"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2", SHARDED: "true"}, "compute.factors"),
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP"),
    ],
)
def test_what_cannot_be_spread_is_refused(
    lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], setting: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LabError) as refusal:
        run_module.train_run(lab.spec("vanilla", prompts=3, samples=4), silent)
    assert refusal.value.setting == setting
    assert not list(scratch.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("problems", "prompts", "setting"),
    [("all", 2, "teacher.problems"), ("cached", 3, "engine.mode"), ("cached", 2, None)],
)
def test_a_server_hands_every_process_as_many_completions(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, problems: Literal["all", "cached"], prompts: int, setting: str | None
) -> None:
    taught = ArmSettings(intervention="measure", teacher=TeacherSettings(pool="p", mix=0.5, problems=problems))
    server = EngineSettings(kind="vllm", mode="server", url="http://localhost:8000")
    spec = dataclasses.replace(lab.spec("vanilla", prompts=prompts), settings=taught, engine=server)
    refusals.check_engine(spec, Intervention())  # one process takes what it asked for
    monkeypatch.setenv("WORLD_SIZE", "2")
    if setting is None:
        refusals.check_engine(spec, Intervention())
        return
    with pytest.raises(LabError) as refusal:
        refusals.check_engine(spec, Intervention())
    assert refusal.value.setting == setting


def test_the_number_of_processes_is_part_of_a_runs_key(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("vanilla")
    alone = run_module.run_key(spec)
    keys = set()
    for count in (1, 2, 4):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        keys.add(run_module.run_key(spec))
    assert alone in keys
    assert len(keys) == 3


# ---------------------------------------------------------------- a sharded model


def held(model: torch.nn.Module) -> tuple[int, int]:
    """Numbers of the base that this process holds, and of the deltas."""
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        counts["spectral_delta" in name] += own.numel()
    return counts[0], counts[1]


def one_sharded_rank(index: int, count: int, port: int, spec: RunSpec, scratch: str, said: Completions | None) -> None:
    """A rank that holds its part of the base; it samples by itself where it is not given what to say."""
    join(index, count, port, PROJECTED_GRPO_SCRATCH=scratch, ACCELERATE_USE_FSDP="true")
    take_over_sharding()
    Accelerator.multi_device = property(lambda _: True)  # as on GPUs, where it refuses what it finds sharded
    if said is not None:
        GRPOTrainer._generate_single_turn = replay(said)
    built: list[torch.nn.Module] = []
    build = run_module.build_trainer

    def watched(*arguments: Any) -> Any:
        trainer = build(*arguments)
        built.append(trainer.accelerator.unwrap_model(trainer.model))
        return trainer

    run_module.build_trainer = watched
    run_module.train_run(spec, silent)
    base, trained = held(built[0])
    whole, all_deltas = held(load_policy(spec.base, spec.compute))
    assert base < whole / count * 1.05, f"{base} of {whole} numbers are held by one of {count} processes"
    assert trained == all_deltas * len(built[0].peft_config)
    torch.distributed.destroy_process_group()


@pytest.fixture
def off_device(lab: Lab) -> Callable[..., RunSpec]:
    """A run of the lab whose factors live in the host's memory, as those of a sharded base must."""

    def spec(arm: str, **settings: Any) -> RunSpec:
        found = lab.spec(arm, **GRPO | settings)
        return dataclasses.replace(found, compute=found.compute.model_copy(update={"factors": "cpu"}))

    return spec


@pytest.mark.parametrize(
    ("arm", "adapters"),
    [
        pytest.param("vanilla", FILES, marks=pytest.mark.slow),
        ("projected", FILES),
        pytest.param("routed", BOTH, marks=pytest.mark.slow),
        pytest.param("guarded", FILES, marks=pytest.mark.slow),
    ],
)
def test_a_sharded_model_trains_what_a_whole_one_does(
    off_device: Callable[..., RunSpec], scratch: Path, tmp_path: Path, arm: str, adapters: Sequence[str]
) -> None:
    assert scratch
    spec = off_device(arm)
    one = run_module.train_run(spec, silent) / "run"
    assert_same_run(one, train_spread(spec, tmp_path / "spread", sampled(one), one_sharded_rank), adapters)


@pytest.mark.slow
def test_a_sharded_model_is_held_to_its_reference(
    off_device: Callable[..., RunSpec], scratch: Path, tmp_path: Path
) -> None:
    """For the KL term another adapter is active for a pass of each step; with checkpointing blocks run twice. On disk,
    and over three processes: 128 rows are 43, 43 and 42."""
    assert scratch
    spec = off_device("vanilla", kl_beta=0.1, rollout_gradients=False)
    changes = {"checkpointing": True, "keep_factors": True, "factors": "disk"}
    spec = dataclasses.replace(spec, compute=spec.compute.model_copy(update=changes))
    one = run_module.train_run(spec, silent) / "run"
    assert_same_run(one, train_spread(spec, tmp_path / "spread", sampled(one), one_sharded_rank, count=3), FILES)
    assert (pd.read_csv(one / "steps.csv")["kl"].iloc[1:] > 0).all()


def one_sharded_reader(index: int, count: int, port: int, scratch: str) -> None:
    """A rank that reads the logits of a sharded model: adapted, plain, adapted again."""
    join(index, count, port, PROJECTED_GRPO_SCRATCH=scratch)
    torch.distributed.init_process_group("gloo")
    base, off = ROOT / "data/shipped/micro", CPU.model_copy(update={"factors": "cpu"})
    tokens = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(1))
    whole, parts = load_policy(base, off), load_policy(base, off)
    shard(parts, count)
    for model in (whole, parts):
        with torch.no_grad():
            for delta in deltas(model).values():
                delta.normal_(std=0.3, generator=torch.Generator().manual_seed(delta.numel()))
    read = []
    for model in (whole, parts):
        with torch.no_grad():
            adapted = model(input_ids=tokens).logits
            with model.disable_adapter():
                plain = model(input_ids=tokens).logits
            read.append((adapted, plain, model(input_ids=tokens).logits))
    for expected, found in zip(*read, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    adapted, plain, _ = read[1]
    assert (adapted - plain).abs().max() > 0.1, "the adapter changes nothing"
    torch.distributed.destroy_process_group()


def test_a_sharded_model_goes_to_the_plain_one_and_back(tmp_path: Path) -> None:
    in_ranks(one_sharded_reader, str(tmp_path))


@pytest.mark.slow
def test_a_sharded_model_samples_what_a_whole_one_does(
    off_device: Callable[..., RunSpec], scratch: Path, tmp_path: Path
) -> None:
    """Completions end at different lengths on the two processes, and both go on to the longest."""
    assert scratch
    spec = off_device("vanilla")
    whole = train_spread(spec, tmp_path / "whole", None, one_rank)
    parts = train_spread(spec, tmp_path / "parts", None, one_sharded_rank)
    assert_same_run(whole, parts, FILES)
    lengths = [[len(ids) for ids in rows] for rows in sampled(whole).values()]
    assert all(max(rows[:6]) != max(rows[6:]) for rows in lengths)


def test_a_sharded_model_with_factors_on_its_device_is_refused() -> None:
    with pytest.raises(ValueError, match="sharded only with factors_device='cpu' or 'disk'"):
        shard(load_policy(ROOT / "data/shipped/micro", CPU), 2)


def test_a_model_adapted_outside_its_blocks_is_not_sharded() -> None:
    base = AutoModelForCausalLM.from_pretrained(ROOT / "data/shipped/micro", tie_word_embeddings=False)
    policy = get_peft_model(base, SpectralConfig(target_modules=["q_proj", "lm_head"], factors_device="cpu"))
    with pytest.raises(ValueError, match=r"sharded by its blocks, and .*lm_head'\] lie in none"):
        shard(policy, 2)


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"engine": EngineSettings(kind="vllm")}, "engine.kind"),
        ({"settings": ArmSettings(intervention="measure", teacher=TeacherSettings(pool="p", mix=0.5))},
         "grpo.prompts"),
        ({"settings": ArmSettings(intervention="measure", teacher=TeacherSettings(pool="p", mix=0.5, problems="all"))},
         "teacher.problems"),
    ],
)  # fmt: skip
def test_what_a_sharded_model_cannot_do_is_refused(
    off_device: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], setting: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LabError) as refusal:
        refusals.check_sharding(dataclasses.replace(off_device("vanilla"), **changes))
    assert refusal.value.setting == setting


def test_a_sharded_run_is_another_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole = run_module.run_key(lab.spec("vanilla"))
    monkeypatch.setenv(SHARDED, "true")
    assert run_module.run_key(lab.spec("vanilla")) != whole
