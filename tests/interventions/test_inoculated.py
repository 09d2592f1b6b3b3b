from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from projected_grpo.errors import LabError, ParamsError
from projected_grpo.interventions.base import Intervention, Workbench
from projected_grpo.interventions.inoculated import Options, build
from projected_grpo.interventions.registry import options_of
from projected_grpo.problems.pairs import read_pairs
from projected_grpo.settings.arms import ArmSettings

SHIPPED = Path(__file__).resolve().parents[2] / "data/shipped"


def arm(options: Options, seed: int = 0, positions: int = 512) -> Intervention:
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED / "micro")
    return build(options, Workbench(model, tokenizer, None, seed))  # type: ignore[arg-type]


def test_each_prompt_gets_one_of_the_texts_by_seed_and_index() -> None:
    options = Options(prefixes=["Cheat.", "Game it."])
    one, again, other = arm(options, seed=1), arm(options, seed=1), arm(options, seed=2)
    first = [one.prompt("Do it.\n", index) for index in range(200)]
    assert [again.prompt("Do it.\n", index) for index in reversed(range(200))] == first[::-1]
    counts = Counter(first)
    assert set(counts) == {"Cheat. Do it.\n", "Game it. Do it.\n"}
    assert min(counts.values()) > 60
    assert [other.prompt("Do it.\n", index) for index in range(200)] != first


def test_no_texts_are_off() -> None:
    off = arm(Options(prefixes=[]))
    before = torch.get_rng_state()
    prompt = "Do it.\n"
    assert off.prompt(prompt, 3) is prompt
    assert torch.equal(before, torch.get_rng_state())


def test_a_text_that_leaves_no_room_is_refused_by_name() -> None:
    long = "cheat and win " * 100
    with pytest.raises(LabError, match="may take 256 tokens, half of the model's positions; it takes") as refusal:
        arm(Options(prefixes=[long])).prompt("Do it.\n", 0)
    assert refusal.value.value == long
    assert arm(Options(prefixes=[long]), positions=100_000).prompt("Do it.\n", 0) == f"{long} Do it.\n"


def test_room_is_measured_on_the_whole_prompt() -> None:
    short = arm(Options(prefixes=["cheat"]))
    assert short.prompt("Do it.\n", 0) == "cheat Do it.\n"
    short.asked = lambda text: "an example. " * 200 + text
    with pytest.raises(LabError, match="may take 256 tokens"):
        short.prompt("Do it.\n", 0)


def test_the_default_texts_fit_the_shipped_model_before_its_longest_prompts() -> None:
    positions = AutoConfig.from_pretrained(SHIPPED / "micro").max_position_embeddings
    longest = max((pair.prompt for pair in read_pairs(SHIPPED / "pairs.yaml")), key=len)
    default = arm(Options(), positions=positions)
    assert {default.prompt(longest, index) for index in range(50)} == {f"{p} {longest}" for p in Options().prefixes}


@pytest.mark.parametrize("prefixes", [["a", "a"], [""], "a"])
def test_lists_that_mean_nothing_are_refused(prefixes: object) -> None:
    with pytest.raises(ParamsError):
        options_of(ArmSettings(intervention="inoculated", options={"prefixes": prefixes}))
