"""Concepts in activation space: read over the completion alone, told from their controls, model left as it was."""

from __future__ import annotations

import functools

import pytest
import torch
from tiny_policy import SHIPPED
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from projected_grpo.directions.concept import (
    Concept,
    blocks,
    concept,
    concept_layers,
    hidden_means,
    pair_states,
    relabelled,
)
from projected_grpo.problems.pairs import Pair, read_pairs, select


@pytest.fixture(scope="module")
def micro() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(SHIPPED / "micro")


@functools.cache
def pairs(split: str) -> list[Pair]:
    return select(read_pairs(SHIPPED / "pairs.yaml"), "hack", split)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "layers"), [(4, (2,)), (36, (21, 22, 23, 24, 25, 26)), (2, (0,))])
def test_the_blocks_lie_at_60_to_75_percent_of_the_depth(count: int, layers: tuple[int, ...]) -> None:
    assert concept_layers(count) == layers


def tiny_mixture() -> Qwen3MoeForCausalLM:
    """Two blocks of seven experts."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "moe_intermediate_size": 4, "head_dim": 4, "vocab_size": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, num_experts=7, num_experts_per_tok=2))


def test_the_blocks_are_those_of_the_model_and_not_the_experts_within(micro: PreTrainedModel) -> None:
    assert blocks(micro) is micro.model.layers
    mixture = tiny_mixture()
    assert blocks(mixture) is mixture.model.layers
    for block in mixture.model.layers:  # as models hold them whose experts are not stacked into one tensor
        block.mlp.experts = nn.ModuleList(nn.Identity() for _ in range(7))
    assert blocks(mixture) is mixture.model.layers
    for block in mixture.model.layers:
        block.mlp.experts = nn.ModuleList(nn.Identity() for _ in range(2))  # as many as there are blocks
    assert blocks(mixture) is mixture.model.layers


def test_a_model_without_one_list_of_blocks_is_refused() -> None:
    mixture = tiny_mixture()
    mixture.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match=r"Qwen3MoeForCausalLM has 0 outermost lists .* \(3\) modules"):
        blocks(mixture)
    mixture.config.num_hidden_layers = 2
    mixture.decoder = nn.ModuleList(nn.Identity() for _ in range(2))
    with pytest.raises(ValueError, match="has 2 outermost lists"):
        blocks(mixture)


def test_a_score_is_the_mean_projection_over_the_spread() -> None:
    read = Concept((0, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), spread=2.0)
    assert read.score(torch.tensor([[[3.0, 9.0], [9.0, 5.0]]])).tolist() == [2.0]  # (3 + 5) / 2 blocks / 2


def test_the_mean_is_over_the_completion_and_padding_does_not_show(
    micro: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = [[5, 6, 7], [8, 9, 10, 11, 12]]
    prompts = ["Given n, ", "Given a list nums, keep the even numbers. "]
    micro.train()
    before = torch.get_rng_state()
    got = hidden_means(micro, tokenizer, prompts, ids, (2,))
    assert micro.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(block._forward_hooks for block in blocks(micro))
    micro.eval()
    for row, (prompt, tail) in enumerate(zip(prompts, ids, strict=True)):
        text = torch.tensor([[*tokenizer(prompt)["input_ids"], *tail]])
        with torch.no_grad():
            states = micro(input_ids=text, output_hidden_states=True).hidden_states[3]  # 0 is the embedding
        torch.testing.assert_close(got[row, 0], states[0, -len(tail) :].mean(0), rtol=1e-4, atol=1e-4)


def test_texts_read_in_portions_have_the_same_states(
    micro: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pair_states(micro, tokenizer, pairs("heldout"), (1, 2))
    widths: list[int] = []
    forward = micro.forward
    monkeypatch.setattr(micro, "forward", lambda **given: widths.append(len(given["input_ids"])) or forward(**given))
    for got, wanted in zip(pair_states(micro, tokenizer, pairs("heldout"), (1, 2), at_once=3), whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert max(widths) == 3


def test_it_separates_held_out_answers(micro: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    read = concept(micro, tokenizer, pairs("extract"), "hack", seed=1)
    hack, clean = pair_states(micro, tokenizer, pairs("heldout"), read.layers)
    ahead = float((read.score(hack) > read.score(clean)).float().mean())
    print("held-out accuracy", ahead)
    assert ahead > 0.8


@pytest.mark.parametrize("kind", ["flipped", "permuted"])
@pytest.mark.parametrize("seed", range(5))
def test_controls_deal_labels_so_that_nothing_of_the_hack_is_left(kind: str, seed: int) -> None:
    # Pair i is (i, -i): its strength is i, its hack is positive. Blocks of like strength: (1, 2), (3, 4), ...
    hack, clean = torch.arange(1.0, 9).view(8, 1, 1), -torch.arange(1.0, 9).view(8, 1, 1)
    first, second = (side.flatten().tolist() for side in relabelled(hack, clean, kind, seed))
    assert sorted(first + second) == sorted(torch.cat([hack, clean]).flatten().tolist())
    for side in (first, second):
        for low in (1, 3, 5, 7):
            in_block = [value for value in side if abs(value) in (low, low + 1)]
            assert sorted(value > 0 for value in in_block) == [False, True]  # one hack and one clean answer
    if kind == "flipped":
        assert sorted(-value for value in first) == sorted(second)  # the answers of a pair stay apart
    # A free deal of these labels leaves up to 4.5 of the difference of means, which is 9.
    assert abs(sum(first) - sum(second)) / 8 <= 1.0


def test_other_kinds_leave_the_sides_and_seeds_differ() -> None:
    hack, clean = torch.randn(8, 2, 3), torch.randn(8, 2, 3)
    assert relabelled(hack, clean, "placebo", 0)[0] is hack
    deals = {tuple(relabelled(hack, clean, "permuted", seed)[0].flatten().tolist()) for seed in range(8)}
    assert len(deals) > 4
    odd = relabelled(hack[:5], clean[:5], "flipped", 0)
    assert [len(side) for side in odd] == [4, 4]


def test_random_needs_no_pairs_and_leaves_the_generator_alone(
    micro: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    before = torch.get_rng_state()
    read = concept(micro, tokenizer, [], "random", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(read.vectors.norm(dim=1), torch.ones(1))
    assert not torch.equal(read.vectors, concept(micro, tokenizer, [], "random", seed=2).vectors)


def test_what_is_no_concept_is_refused(micro: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match="'clean' is no concept"):
        concept(micro, tokenizer, pairs("extract"), "clean", seed=1)
    with pytest.raises(ValueError, match="1 pairs to learn"):
        concept(micro, tokenizer, pairs("extract")[:1], "hack", seed=1)
