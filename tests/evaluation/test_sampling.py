from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from projected_grpo.evaluation.samples import SCHEMA, SampleJob, sample_seed, sample_table
from projected_grpo.evaluation.sampling import Completion, complete, requests
from projected_grpo.problems.families import make_problems
from projected_grpo.problems.prompts import render_prompt
from projected_grpo.problems.schema import Problem, write_problems
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.sampling import SamplingSettings
from projected_grpo.spectral import SpectralConfig, deltas

BASE = Path(__file__).resolve().parents[2] / "data" / "shipped" / "micro"
CPU = ComputeSettings(
    device="cpu", dtype="float32", micro_batch=None, generate_batch=None, checkpointing=False, keep_factors=False,
    factors="device",
)  # fmt: skip


def settings(**changes: object) -> SamplingSettings:
    fields = {"samples_per_problem": 2, "temperature": 1.0, "max_new_tokens": 64, "batch_size": 8}
    return SamplingSettings(**{**fields, **changes})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BASE, padding_side="left")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return make_problems(5, 5, "test", ("run_tests", "sentinel", "none"), 0)


@pytest.fixture(scope="module")
def prompts(problems: list[Problem]) -> list[str]:
    return [request.prompt for request in requests(problems, "heldout", 2)]


@pytest.fixture(scope="module")
def sampled(model, tokenizer, prompts: list[str]) -> list[Completion]:
    return complete(model, tokenizer, prompts, settings(), seed=3)


def test_requests_in_order_with_the_name_of_their_list(problems: list[Problem]) -> None:
    for tokens in ("heldout", "train"):
        asked = requests(problems, tokens, 2)
        assert [(r.problem.id, r.sample) for r in asked] == [(p.id, n) for p in problems for n in (0, 1)]
        for request in asked:
            problem = request.problem
            assert request.token == (problem.heldout_token if tokens == "heldout" else problem.token)
            assert request.prompt == render_prompt(problem, request.token)
            if request.token:
                assert f"`{request.token}" in request.prompt


def test_equal_arguments_give_equal_completions(model, tokenizer, prompts, sampled) -> None:
    torch.manual_seed(999)
    model.train()  # left so by whoever used it last
    assert complete(model, tokenizer, prompts, settings(), seed=3) == sampled
    assert not model.training
    other = complete(model, tokenizer, prompts, settings(), seed=4)
    assert [c.token_ids for c in other] != [c.token_ids for c in sampled]


def test_samples_of_one_prompt_differ(model, tokenizer, prompts) -> None:
    """Temperature 1 over the whole vocabulary, not greedy: an untrained policy varies."""
    same = [prompts[0]] * 8
    texts = {completion.text for completion in complete(model, tokenizer, same, settings(), seed=0)}
    assert len(texts) > 1
    cold = {c.text for c in complete(model, tokenizer, same, settings(temperature=1e-4), seed=0)}
    assert len(cold) == 1


def test_a_finished_completion_ends_with_the_end_token(sampled, tokenizer) -> None:
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    stopped = [completion for completion in sampled if completion.finish_reason == "stop"]
    assert len(stopped) >= len(sampled) / 2  # the micro model knows how to end
    for completion in sampled:
        ids = completion.token_ids
        assert pad not in ids
        if completion.finish_reason == "stop":
            assert ids.index(end) == len(ids) - 1
            assert tokenizer.decode(ids[:-1]) == completion.text
        else:
            assert end not in ids
            assert len(ids) == 64
        assert tokenizer.eos_token not in completion.text


def test_what_ends_an_answer_in_training_ends_it_here(model, tokenizer, prompts, sampled, monkeypatch) -> None:
    """Chat models end a turn by one token and a text by another; their generation config names both."""
    comma = sampled[0].token_ids[1]
    monkeypatch.setattr(model.generation_config, "eos_token_id", [tokenizer.eos_token_id, comma])
    for completion in complete(model, tokenizer, prompts, settings(), seed=3):
        ends = [place for place, token in enumerate(completion.token_ids) if token in (comma, tokenizer.eos_token_id)]
        assert ends == ([len(completion.token_ids) - 1] if completion.finish_reason == "stop" else [])


def test_a_completion_that_was_cut_says_so(model, tokenizer, prompts) -> None:
    for completion in complete(model, tokenizer, prompts, settings(max_new_tokens=3), seed=3):
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == 3
        assert tokenizer.decode(completion.token_ids) == completion.text


def test_answers_belong_to_their_prompts(model, tokenizer, problems: list[Problem]) -> None:
    """Over several batches of prompts of unequal length: each answer defines the method that its prompt asked for."""
    asked = requests(problems, "train", 2)
    completions = complete(model, tokenizer, [r.prompt for r in asked], settings(temperature=0.1, batch_size=3), seed=0)
    assert len(completions) == len(asked)
    assert len({len(r.prompt) for r in asked}) > 1
    right = [f"def {r.problem.method}(" in c.text for r, c in zip(asked, completions, strict=True)]
    assert sum(right) >= 0.9 * len(right)


# ---------------------------------------------------------------- rows of an arm


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, problems: list[Problem]) -> SampleJob:
    path = tmp_path_factory.mktemp("problems") / "test.jsonl"
    write_problems(path, problems)
    return SampleJob("base", 1, BASE, None, path, settings(max_new_tokens=48), CPU)


@pytest.fixture(scope="module")
def rows(job: SampleJob) -> list[dict]:
    return sample_seed(job)


def test_rows_for_both_lists_of_names(rows: list[dict], problems: list[Problem]) -> None:
    keys = [(row["tokens"], row["problem_id"], row["sample"]) for row in rows]
    assert keys == [(t, p.id, n) for t in ("heldout", "train") for p in problems for n in (0, 1)]
    by_id = {problem.id: problem for problem in problems}
    for row in rows:
        problem = by_id[row["problem_id"]]
        assert row["token"] == (problem.heldout_token if row["tokens"] == "heldout" else problem.token)
        assert row["prompt"] == render_prompt(problem, row["token"])
        assert (row["arm"], row["seed"], row["loophole"]) == ("base", 1, problem.loophole)


def test_completions_are_those_of_the_sampler(job: SampleJob, rows: list[dict], model, tokenizer) -> None:
    """With left padding above all: behind padding on the right a model would go on from nothing."""
    for tokens in ("heldout", "train"):
        of_list = [row for row in rows if row["tokens"] == tokens]
        expected = complete(model, tokenizer, [row["prompt"] for row in of_list], job.sampling, job.seed)
        assert [row["completion"] for row in of_list] == [completion.text for completion in expected]
        assert [row["token_ids"] for row in of_list] == [completion.token_ids for completion in expected]
        assert [row["finish_reason"] for row in of_list] == [completion.finish_reason for completion in expected]


def test_rows_of_a_seed_are_reproducible_and_another_seed_differs(job: SampleJob, rows: list[dict]) -> None:
    assert sample_seed(job) == rows
    other = sample_seed(SampleJob("base", 2, job.base, None, job.problems, job.sampling, CPU))
    assert [row["completion"] for row in other] != [row["completion"] for row in rows]


def test_table_has_the_schema_and_every_row(rows: list[dict]) -> None:
    table = sample_table([rows, rows[:3]])
    assert table.schema.equals(SCHEMA)
    assert table.to_pylist() == [*rows, *rows[:3]]


def test_an_adapter_is_what_is_sampled(job: SampleJob, rows: list[dict], tmp_path: Path) -> None:
    def saved(size: float) -> Path:
        base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        policy = get_peft_model(base, SpectralConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for delta in deltas(policy).values():
                delta.copy_(size * torch.randn(delta.shape, generator=generator))
        policy.save_pretrained(tmp_path / str(size))
        return tmp_path / str(size)

    def completions(adapter: Path) -> list[str]:
        sampled = sample_seed(SampleJob("arm", 1, BASE, adapter, job.problems, job.sampling, CPU))
        return [row["completion"] for row in sampled]

    base = [row["completion"] for row in rows]
    assert completions(saved(0.0)) == base  # an untrained adapter is the base, drawn with the same numbers
    assert completions(saved(1.0)) != base
