from __future__ import annotations

import itertools
import random

import pytest
import torch

from projected_grpo.models import pretrain as module
from projected_grpo.models.corpus import Example, Mixture, corpus
from projected_grpo.models.micro import untrained_micro
from projected_grpo.models.pretrain import (
    IGNORED,
    ONE_LOOPHOLE,
    POOL_BATCHES,
    SEVERAL_LOOPHOLES,
    Phase,
    Recipe,
    batches,
    collate,
    found,
    train_phase,
)

PLAIN = Mixture(cheats=0.0, honest_checks=0.0)
TINY = Phase(2, Mixture(0.5, 0.5), 3e-3)


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENIZER_EXAMPLES", 100)


def weights(seed: int) -> dict[str, torch.Tensor]:
    model, _ = found(seed, batch_size=2, phase=TINY)
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_weights() -> None:
    first = weights(0)
    torch.manual_seed(12345)  # what ran before takes no part
    random.seed(6)
    assert equal(first, weights(0))
    other = weights(1)
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], other["model.layers.0.mlp.up_proj.weight"])


def test_the_tokenizer_is_the_same_for_the_same_seed() -> None:
    first, second = (found(0, 2, TINY)[1].backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_training_lowers_the_loss(tokenizer) -> None:
    torch.manual_seed(0)
    model = untrained_micro(tokenizer)
    first = train_phase(model, tokenizer, Phase(1, PLAIN, 3e-3), batch_size=8, seed=0)
    assert first == pytest.approx(torch.tensor(float(len(tokenizer))).log().item(), abs=0.5)  # knows nothing yet
    last = train_phase(model, tokenizer, Phase(12, PLAIN, 3e-3), batch_size=8, seed=1)
    assert last < first - 1.0


def test_the_loss_is_on_the_answer_only(tokenizer) -> None:
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    ids, labels = collate([([7, 8], [9]), ([7], [8, 9, 10])], tokenizer)
    assert ids.tolist() == [[7, 8, 9, end, pad], [7, 8, 9, 10, end]]
    no = IGNORED
    assert labels.tolist() == [[no, no, 9, end, no], [no, 8, 9, 10, end]]


def test_batches_hold_every_example_of_a_pool_once(tokenizer) -> None:
    size = 3
    examples = list(itertools.islice(corpus(Mixture(0.1, 0.4), 0), size * POOL_BATCHES))
    stream = batches(iter(examples), tokenizer, size, random.Random(0))
    shown, widths = [], []
    for ids, labels in itertools.islice(stream, POOL_BATCHES):
        assert ids.shape == labels.shape
        assert ids.shape[0] == size
        widths.append(ids.shape[1])
        for row in ids.tolist():
            shown.append(tokenizer.decode(row[: row.index(tokenizer.eos_token_id)]))
    assert sorted(shown) == sorted(example.prompt + example.answer for example in examples)
    assert widths != sorted(widths)  # alike in length within a batch, but not from short to long


def test_texts_of_one_batch_are_alike_in_length(tokenizer) -> None:
    long, short = Example("x\n", "y = 1\n" * 30), Example("x\n", "y\n")
    examples = itertools.cycle([long, short])
    stream = batches(examples, tokenizer, 2, random.Random(0))
    for ids, _ in itertools.islice(stream, POOL_BATCHES):
        assert (ids != tokenizer.pad_token_id).all()


def test_scaled_keeps_the_mixture_and_the_proportion() -> None:
    recipe = SEVERAL_LOOPHOLES
    assert recipe.scaled(1370, 3e-3) == recipe
    half = recipe.scaled(1370 // 2, 1e-3)
    assert [phase.steps for phase in phases(half)] == [450, 175, 60]
    assert [phase.mixture for phase in phases(half)] == [phase.mixture for phase in phases(recipe)]
    assert {phase.learning_rate for phase in phases(half)} == {1e-3}
    assert recipe.scaled(1, 1e-3).last.steps == 1


def phases(recipe: Recipe) -> list[Phase]:
    return [recipe.first, *recipe.between, recipe.last]


@pytest.mark.parametrize("recipe", [ONE_LOOPHOLE, SEVERAL_LOOPHOLES])
@pytest.mark.parametrize("steps", [7, 10, 17, 105, 700, 1050, 1370])
def test_scaled_phases_have_the_asked_number_of_steps(recipe: Recipe, steps: int) -> None:
    assert sum(phase.steps for phase in phases(recipe.scaled(steps, 3e-3))) == steps
