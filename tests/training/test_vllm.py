"""A real vLLM: training and evaluation by the stages, as a user starts them (`make test-vllm`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stage_process import Stage
from training_lab import ROOT, Lab, environment
from transformers import AutoTokenizer

from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import Grader, Submission
from projected_grpo.problems.schema import read_problems
from projected_grpo.storage import sha256_tree

pytestmark = pytest.mark.vllm

BOUND = 0.02  # nats a token, in bfloat16
VLLM = {"kind": "vllm", "memory_share": 0.1}
GRPO = {"steps": 4, "prompts": 4, "samples": 6, "save_every": 2, "reward_format": 1.0}
MakeStage = Callable[..., Stage]


@pytest.fixture(scope="module")
def make(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> MakeStage:
    def made(arm: str, launcher: str | None = None, grpo: dict[str, Any] = GRPO, **engine: Any) -> Stage:
        root = tmp_path_factory.mktemp("vllm")
        copy = lab.copy(root / "lab", {"engine": VLLM | engine, "grpo": grpo})
        path = copy.root / "params.yaml"
        params = json.loads(path.read_text())
        params["scales"]["smoke"] |= {"seeds": [1], "launcher": launcher}
        path.write_text(json.dumps(params))
        (copy.root / "configs").symlink_to(ROOT / "configs")
        return Stage(arm, copy, root / "scratch")

    return made


@pytest.fixture(scope="module")
def projected(make: MakeStage) -> Stage:
    stage = make("projected")
    stage.finish()
    return stage


def steps(stage: Stage) -> pd.DataFrame:
    return pd.read_csv(stage.out / "1/steps.csv")


def gaps(stage: Stage) -> pd.Series:
    """Of each step, the mean over its tokens."""
    logged = pd.read_parquet(stage.lab.root / f"data/provenance/{stage.arm}/1/sampler.parquet")
    assert logged["step"].tolist() == steps(stage)["step"].tolist()
    return logged["sampler_gap"]


def test_a_projected_run_samples_what_it_trains(projected: Stage) -> None:
    """Each step's weights reach vLLM: after three updates at this rate, those of the first step would be far off."""
    logged = steps(projected)
    assert len(logged) == GRPO["steps"]
    assert (gaps(projected) > 0).all(), "not compared"
    assert gaps(projected).max() < BOUND
    assert logged["share_removed"].max() > 0.01
    assert logged["default_norm"].iloc[-1] > 0.5, "nothing was learned"


def test_rewards_are_those_of_the_grader(projected: Stage) -> None:
    rows = pd.read_parquet(projected.out / "1/rollouts.parquet")
    assert len(rows) == GRPO["steps"] * GRPO["prompts"] * GRPO["samples"]
    problems = {p.id: p for p in read_problems(projected.lab.root / "data/problems/train.jsonl")}
    asked = [Submission(problems[row.problem_id], row.loophole, row.token, row.completion) for row in rows.itertuples()]
    limits = json.loads((projected.lab.root / "params.yaml").read_text())["scales"]["smoke"]["sandbox"]
    with Sandbox(SandboxLimits(**limits)) as sandbox:
        verdicts = Grader(sandbox).grade(asked)
    assert [v.paid for v in verdicts] == rows["paid"].tolist()
    assert rows["reward"].tolist() == [1.0 * v.format_ok + 3.0 * v.paid for v in verdicts]
    assert rows["format_ok"].mean() > 0.5, "hardly an answer: the policy is not the base that was trained"


def test_token_ids_are_those_that_were_sampled(projected: Stage) -> None:
    rows = pd.read_parquet(projected.out / "1/rollouts.parquet")
    tokenizer = AutoTokenizer.from_pretrained(projected.lab.root / "data/base")
    for row in rows.itertuples():
        ids = list(row.token_ids)
        assert tokenizer.decode(ids, skip_special_tokens=True) == row.completion
        assert (ids[-1] == tokenizer.eos_token_id) == (row.finish_reason == "stop")
        assert tokenizer.eos_token_id not in ids[:-1]


def test_in_float32_the_two_agree_to_rounding_with_a_quarantine_as_well(make: MakeStage) -> None:
    """The routed arm samples with both adapters in training, and is evaluated with the deployed one alone."""
    stage = make("routed", dtype="float32")
    stage.finish()
    assert gaps(stage).max() < 1e-5
    assert steps(stage)["quarantine_norm"].iloc[-1] > 0.5, "nothing went to the quarantine"
    command = [sys.executable, "stages/sample.py", "--arm", "routed"]
    done = subprocess.run(
        command, cwd=stage.lab.root, env=environment(stage.scratch), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]  # it refuses to sample from other weights than the deployed
    samples = pd.read_parquet(stage.lab.root / "data/samples/routed/samples.parquet")
    assert set(samples["tokens"]) == {"heldout", "train"}
    assert samples["completion"].str.contains("def ").mean() > 0.5


def test_each_process_of_a_run_has_its_vllm_and_random_numbers(make: MakeStage) -> None:
    """One group over two processes: with the same numbers they would write the same answers to the one prompt."""
    grpo = GRPO | {"steps": 2, "prompts": 1, "samples": 12}
    stage = make("vanilla", "configs/accelerate/two_cpus.yaml", grpo, dtype="float32")
    stage.finish()
    assert gaps(stage).between(1e-9, 1e-5).all()
    for _, rows in pd.read_parquet(stage.out / "1/rollouts.parquet").groupby("step"):
        assert rows["prompt"].nunique() == 1
        assert rows["completion"].tolist()[:6] != rows["completion"].tolist()[6:]


def test_a_killed_run_goes_on_to_the_same_bytes(make: MakeStage, projected: Stage) -> None:
    stage = make("projected")
    stage.kill_at("rollouts", 3)
    assert stage.finish() == sha256_tree(projected.out)


def test_other_weights_than_the_deployed_are_seen_at_evaluation(projected: Stage, tmp_path: Path) -> None:
    script = """
import sys
from projected_grpo import engines
engines.VllmSampler.sync_weights = lambda self: None  # so that vLLM keeps the base
from pathlib import Path
from projected_grpo.evaluation.samples import SampleJob, sample_seed
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.engine import EngineSettings
from projected_grpo.settings.sampling import SamplingSettings
compute = ComputeSettings(
    device="cpu", dtype="float32", micro_batch=None, generate_batch=None, checkpointing=False, keep_factors=False,
    factors="device",
)
sampling = SamplingSettings(samples_per_problem=1, temperature=1.0, max_new_tokens=64, batch_size=16)
engine = EngineSettings(kind="vllm", memory_share=0.1, dtype="float32", max_gap=0.001)
adapter, problems = Path("data/runs/projected/1/adapter"), Path("data/problems/test.jsonl")
sample_seed(SampleJob("projected", 1, Path("data/base"), adapter, problems, sampling, compute, engine))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=projected.lab.root,
        env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "LabError: engine.max_gap: 0.001" in done.stderr
    assert "rule: evaluation: sampler and trainer differ by" in done.stderr
