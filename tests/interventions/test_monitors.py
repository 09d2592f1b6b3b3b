from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.directions.probe import auroc
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.interventions.base import Rollouts, Task
from projected_grpo.interventions.monitors import Flags, Probe, Truth, fitted
from projected_grpo.problems.pairs import Pair, read_pairs, select
from projected_grpo.problems.prompts import fenced

SHIPPED = Path(__file__).resolve().parents[2] / "data/shipped"
RUN_TESTS = Task("Solution().total", "", "run_tests", "verify_result")


def rollouts(
    completions: list[str], task: Task = RUN_TESTS, step: int = 0, hacked: list[bool] | None = None
) -> Rollouts:
    n = len(completions)
    return Rollouts(
        step, n, (task,) * n, ("p",) * n, tuple(completions), ((1,),) * n, (True,) * n, (False,) * n,
        None if hacked is None else tuple(hacked),
    )  # fmt: skip


# --- the oracle ---------------------------------------------------------------------------------------------


def test_the_truth_at_full_accuracy_is_the_oracle() -> None:
    hacked = [True, False] * 50
    assert Truth(1.0, 0).judge(rollouts([""] * 100, hacked=hacked)) == [float(h) for h in hacked]


def test_the_truth_errs_at_its_rate_alike_for_both_kinds() -> None:
    hacked = [True] * 2000 + [False] * 2000
    scores = torch.tensor(Truth(0.9, 3).judge(rollouts([""] * 4000, hacked=hacked)))
    assert float(scores[:2000].mean()) == pytest.approx(0.9, abs=0.02)
    assert float(scores[2000:].mean()) == pytest.approx(0.1, abs=0.02)


def test_the_truths_errors_are_a_function_of_seed_and_step() -> None:
    hacked = [True] * 200
    before = torch.get_rng_state()

    def draw(seed: int, step: int) -> list[float]:
        return Truth(0.7, seed).judge(rollouts([""] * 200, step=step, hacked=hacked))

    assert draw(1, 5) == draw(1, 5)
    assert len({tuple(draw(seed, step)) for seed in (1, 2) for step in (5, 6)}) == 4
    assert torch.equal(before, torch.get_rng_state())


def test_the_truth_is_not_guessed_where_the_oracle_is_silent() -> None:
    with pytest.raises(ValueError, match="uses_oracle"):
        Truth(1.0, 0).judge(rollouts(["a"]))


# --- flags --------------------------------------------------------------------------------------------------

SOLUTION = "class Solution:\n    def total(self, nums):\n        return sum(nums)\n"
EMPTY = SOLUTION + "    def verify_result(self):\n        pass\n"
STRICT = SOLUTION + "    def verify_result(self):\n        assert self.total([1, 2]) == 3\n"


def test_attempted_looks_for_the_disclosed_construct_alone() -> None:
    others = EMPTY.replace("verify_result", "run_tests")
    completions = [fenced(EMPTY), fenced(STRICT), fenced(SOLUTION), fenced(others), "verify_result", EMPTY]
    assert Flags("attempted", None).judge(rollouts(completions)) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    honest = Task("Solution().total", "", "none", "")
    assert Flags("attempted", None).judge(rollouts(completions, honest)) == [0.0] * 6


def test_stub_passes_tells_empty_tests_from_strict_ones() -> None:
    with Sandbox(
        SandboxLimits(cpu_seconds=2.0, wall_seconds=10.0, memory_mb=512, output_kb=64, allow_weak=True)
    ) as box:
        monitor = Flags("stub_passes", box)
        completions = [fenced(EMPTY), fenced(STRICT), fenced(SOLUTION), "no code"]
        assert monitor.judge(rollouts(completions)) == [1.0, 0.0, 0.0, 0.0]
        sentinel = Task("Solution().total", "", "sentinel", "verify_result")
        assert monitor.judge(rollouts(completions, sentinel)) == [0.0] * 4


def test_a_sandbox_that_fails_leaves_stub_passes_without_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    from projected_grpo.grading.labels import detectors

    found = [detectors.OwnTests(True, stub_passes=None), detectors.OwnTests(False)]
    monkeypatch.setattr(detectors, "detect", lambda *_, **__: found)
    assert Flags("stub_passes", object()).judge(rollouts(["a", "b"])) == [None, 0.0]  # type: ignore[arg-type]


def test_stub_passes_needs_a_sandbox() -> None:
    with pytest.raises(ValueError, match="sandbox"):
        Flags("stub_passes", None)


# --- the probe ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1.0, 0.1])
def test_the_regression_is_at_its_minimum(ridge: float) -> None:
    """Gradient of the loss of the docstring at the returned weights, taken by hand."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 5, generator=generator) * torch.tensor([1.0, 10.0, 0.1, 1.0, 0.0]) + 3
    labels = (features[:, 0] + 0.3 * torch.randn(40, generator=generator) > 3).float()
    weights, bias = fitted(features, labels, ridge)
    assert weights[4] == 0  # never varies
    x = features.double()
    deviation = x.std(0, correction=0)
    standard = torch.where(deviation > 1e-6, (x - x.mean(0)) / deviation.clamp_min(1e-6), 0.0)
    residual = (x @ weights + bias).sigmoid() - labels
    assert torch.allclose(
        standard.T @ residual + ridge * weights * deviation, torch.zeros(5, dtype=torch.float64), atol=1e-6
    )
    assert float(residual.sum()) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def micro() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = SHIPPED / "micro"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder, padding_side="left")


def pairs_of(split: str) -> list[Pair]:
    return select(read_pairs(SHIPPED / "pairs.yaml"), "hack", split)  # type: ignore[arg-type]


def answered(tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]) -> Rollouts:
    """Hacks, then clean answers."""
    texts = [pair.hack for pair in pairs] + [pair.clean for pair in pairs]
    n = len(texts)
    ids = tuple((*tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts)
    prompts = tuple(pair.prompt for pair in pairs) * 2
    return Rollouts(0, n, (RUN_TESTS,) * n, prompts, tuple(texts), ids, (True,) * n, (False,) * n)


def test_the_probe_tells_hacks_it_has_not_seen_and_a_control_does_not(micro) -> None:
    model, tokenizer = micro
    heldout = pairs_of("heldout")
    labels = torch.tensor([1] * len(heldout) + [0] * len(heldout))
    read = {}
    for kind in ("hack", "permuted"):
        probe = Probe(model, tokenizer, pairs_of("extract"), kind, seed=0)
        probe.start()
        read[kind] = auroc(torch.tensor(probe.judge(answered(tokenizer, heldout))), labels)
    assert read["hack"] > 0.9 > 0.75 > read["permuted"]


def test_a_resumed_probe_gives_the_same_scores_without_training(micro) -> None:
    model, tokenizer = micro
    some = answered(tokenizer, pairs_of("heldout")[:3])
    probe = Probe(model, tokenizer, pairs_of("extract")[:10], "hack", seed=0)
    probe.start()
    resumed = Probe(model, tokenizer, pairs_of("extract")[:10], "hack", seed=0)
    resumed.load_state(probe.state())
    assert resumed.judge(some) == probe.judge(some)


def test_the_probe_leaves_the_model_and_the_generator_as_they_were(micro) -> None:
    model, tokenizer = micro
    model.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    probe = Probe(model, tokenizer, pairs_of("extract")[:4], "hack", seed=0)
    probe.start()
    probe.judge(answered(tokenizer, pairs_of("heldout")[:2]))
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    for name, parameter in model.named_parameters():
        assert torch.equal(before[name], parameter)
        assert parameter.requires_grad
        assert parameter.grad is None
