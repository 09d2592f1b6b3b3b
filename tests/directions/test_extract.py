from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from peft import PeftModel
from tiny_policy import adapted, descend, hack_margin, log_probability, move, shipped_pairs, tiny_base
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projected_grpo.directions.algebra import Gate, cosine, erase_all, total_norm
from projected_grpo.directions.extract import (
    IGNORED,
    ExtractionOptions,
    completion_gradients,
    describe,
    encode,
    extract_modules,
    module_direction,
    pair_differences,
    random_modules,
    sign_accuracy,
)
from projected_grpo.directions.store import Direction, ModuleDirection
from projected_grpo.problems.pairs import Pair
from projected_grpo.spectral import deltas

DENOMINATOR = 64
RATE = 0.01  # of the one descent step in the sign tests: small enough for first order to hold
PAIRS = 8


def options(k_max: int = PAIRS, batch_size: int = 60) -> ExtractionOptions:
    return ExtractionOptions(k_max, DENOMINATOR, batch_size)


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return shipped_pairs(PAIRS)


# ---------------------------------------------------------------- gradients per completion


@pytest.mark.parametrize("at_zero", [True, False], ids=["at the start", "in mid-training"])
def test_gradients_per_completion_equal_one_backward_each(
    at_zero: bool, tokenizer: PreTrainedTokenizerBase, pairs: list[Pair]
) -> None:
    policy = adapted(tiny_base(tokenizer))
    if not at_zero:
        move(policy)
    texts = [(pair.prompt, answer) for pair in pairs[:3] for answer in (pair.hack, pair.clean)][:5]
    got = completion_gradients(policy, tokenizer, texts, options(batch_size=2))  # two full batches and a half
    parameters = deltas(policy)
    assert list(got) == list(parameters)
    for row, (prompt, completion) in enumerate(texts):
        loss = -log_probability(policy, tokenizer, prompt, completion) / DENOMINATOR
        expected = torch.autograd.grad(loss, list(parameters.values()))
        for name, gradient in zip(parameters, expected, strict=True):
            assert got[name].shape == (5, gradient.shape[0])
            assert float(gradient.abs().max()) > 1e-6  # so that the comparison says something
            assert torch.allclose(got[name][row], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_extraction_leaves_the_policy_as_it_was(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    parameters = deltas(policy)
    held = {name: delta.detach().clone() for name, delta in parameters.items()}
    first, *others = parameters.values()
    first.grad = torch.full_like(first, 7.0)  # a gradient that training has accumulated
    with torch.no_grad():  # refreshes happen outside of training's graph
        extract_modules(policy, tokenizer, pairs, options())
    assert all(torch.equal(parameters[name], delta) for name, delta in held.items())
    assert first.grad.eq(7.0).all()
    assert all(delta.grad is None for delta in others)
    hooks = [module._forward_hooks for module in policy.modules()]
    assert not any(hooks)


def test_labels_cover_the_completion_and_its_end_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [("a", "bb"), ("a much longer prompt\n", "c")]
    ids, mask, labels = encode(tokenizer, texts)
    for row, (prompt, completion) in enumerate(texts):
        head, tail = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
        text = [*head, *tail, tokenizer.eos_token_id]
        padding = ids.shape[1] - len(text)
        assert ids[row].tolist() == text + [tokenizer.pad_token_id] * padding
        assert mask[row].tolist() == [1] * len(text) + [0] * padding
        assert labels[row].tolist() == ([IGNORED] * len(head) + [*tail, tokenizer.eos_token_id] + [IGNORED] * padding)


def test_the_loss_denominator_is_fixed(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    """A long answer weighs more than a short one, as in training; there is no mean over tokens."""
    texts = [(pairs[0].prompt, pairs[0].hack)]
    one = completion_gradients(policy, tokenizer, texts, ExtractionOptions(1, 1))
    many = completion_gradients(policy, tokenizer, texts, ExtractionOptions(1, 100))
    for name, rows in one.items():
        assert torch.allclose(rows, 100 * many[name], rtol=1e-4, atol=1e-6)


def test_a_non_finite_loss_names_its_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    base = tiny_base(tokenizer, tied=False)
    (poison,) = tokenizer("9")["input_ids"]
    with torch.no_grad():
        base.model.embed_tokens.weight[poison] = torch.nan
    texts = [("p\n", "one"), ("p\n", "two"), ("p\n", "return 9\n"), ("p\n", "x"), ("p\n", "9")]
    with pytest.raises(FloatingPointError, match=r"completion 2 .*'return 9\\n'"):
        completion_gradients(adapted(base), tokenizer, texts, options(batch_size=2))


# ---------------------------------------------------------------- what +V means


def rise(policy: PeftModel, tokenizer, pairs: list[Pair], gradient: Mapping[str, Tensor]) -> float:
    """By how much one small descent step along `gradient` raises log p(hack) - log p(clean)."""
    before = hack_margin(policy, tokenizer, pairs)
    descend(policy, gradient, RATE)
    after = hack_margin(policy, tokenizer, pairs)
    descend(policy, gradient, -RATE)
    return after - before


def test_a_descent_step_along_the_mean_difference_makes_the_hack_likelier(
    policy: PeftModel, tokenizer, pairs: list[Pair]
) -> None:
    modules = extract_modules(policy, tokenizer, pairs, options())
    mean = {name: module.mean for name, module in modules.items()}
    first_order = RATE * DENOMINATOR * total_norm(mean) ** 2
    assert rise(policy, tokenizer, pairs, mean) == pytest.approx(first_order, rel=0.02)


def test_the_erased_gradient_of_a_hack_rewarding_loss_does_not_teach_the_hack(
    policy: PeftModel, tokenizer, pairs: list[Pair]
) -> None:
    """Loss: NLL of the hacks, the update that paid hacks cause. V spans the differences of these pairs."""
    modules = extract_modules(policy, tokenizer, pairs, options())
    bases = {name: module.axes for name, module in modules.items()}
    hacks = completion_gradients(policy, tokenizer, [(pair.prompt, pair.hack) for pair in pairs], options())
    gradient = {name: rows.mean(0) for name, rows in hacks.items()}

    def with_gate(gate: Gate) -> float:
        return rise(policy, tokenizer, pairs, erase_all(gradient, bases, gate))

    unerased = rise(policy, tokenizer, pairs, gradient)
    assert unerased > 1e-4  # negative control: without the projection this step teaches the hack
    assert with_gate("one_sided") < 0  # what points away from the hack stays
    assert abs(with_gate("both_sides")) < 0.01 * unerased
    assert with_gate("reverse") < -0.5 * unerased


def test_random_axes_do_not_stop_the_hack(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    modules = extract_modules(policy, tokenizer, pairs, options(k_max=4))
    mean = {name: module.mean for name, module in modules.items()}
    unerased = rise(policy, tokenizer, pairs, mean)

    def erased(axes: Mapping[str, ModuleDirection]) -> float:
        bases = {name: module.axes for name, module in axes.items()}
        return rise(policy, tokenizer, pairs, erase_all(mean, bases, "one_sided"))

    assert erased(modules) < 0.3 * unerased
    assert erased(random_modules(modules, seed=0)) > 0.7 * unerased


def test_differences_are_hack_minus_clean_of_the_same_pair(policy: PeftModel, tokenizer, pairs) -> None:
    differences = pair_differences(policy, tokenizer, pairs[:2], options())
    for row, pair in enumerate(pairs[:2]):
        texts = [(pair.prompt, pair.hack), (pair.prompt, pair.clean)]
        alone = completion_gradients(policy, tokenizer, texts, options())
        for name, (hack, clean) in alone.items():
            assert torch.allclose(differences[name][row], hack - clean, atol=1e-6)


# ---------------------------------------------------------------- axes


def test_axes_of_known_differences() -> None:
    differences = torch.tensor([[0.0, 3.0, 0.0], [0.0, 4.0, 0.0], [-1.0, 0.0, 0.0]])
    direction = module_direction(differences, k=2)
    assert torch.allclose(direction.axes, torch.tensor([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]), atol=1e-6)
    assert direction.singular_values.tolist() == pytest.approx([5.0, 1.0])
    assert direction.mean.tolist() == pytest.approx([-1 / 3, 7 / 3, 0.0])
    # A pair without a component along an axis does not agree with it.
    assert direction.votes.tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("sizes", "points", "votes"),
    [
        ([1.0, 1.0, -9.0], 1.0, 2 / 3),  # the majority, not the largest pair and not the mean
        ([-1.0, 9.0, -1.0], -1.0, 2 / 3),
        ([1.0, -3.0], -1.0, 1 / 2),  # a tie: the sum
        ([-1.0, 3.0], 1.0, 1 / 2),
        ([2.0, 0.0, 0.0], 1.0, 1 / 3),  # pairs without a component abstain
    ],
)
def test_the_majority_of_pairs_orients_an_axis(sizes: list[float], points: float, votes: float) -> None:
    """Along many lines, since the SVD's own sign comes out right for half of them."""
    lines = torch.nn.functional.normalize(torch.randn(20, 6, generator=torch.Generator().manual_seed(0)))
    for line in lines:
        direction = module_direction(torch.tensor(sizes)[:, None] * line, k=1)
        assert torch.allclose(direction.axes[0], points * line, atol=1e-5)
        assert direction.votes.tolist() == pytest.approx([votes])
        assert torch.allclose(direction.mean, sum(sizes) / len(sizes) * line, atol=1e-6)


def test_pairs_without_any_difference_still_give_finite_orthonormal_axes() -> None:
    direction = module_direction(torch.zeros(3, 5), k=2)
    assert torch.allclose(direction.axes @ direction.axes.T, torch.eye(2), atol=1e-6)
    assert direction.votes.tolist() == [0.0, 0.0]


def test_extracted_axes_are_orthonormal_and_ordered_by_strength(policy: PeftModel, tokenizer, pairs) -> None:
    modules = extract_modules(policy, tokenizer, pairs, options(k_max=5))
    differences = pair_differences(policy, tokenizer, pairs, options())
    assert list(modules) == list(deltas(policy))
    for name, module in modules.items():
        assert torch.allclose(module.axes @ module.axes.T, torch.eye(5), atol=1e-5)
        assert torch.allclose(module.mean, differences[name].mean(0), atol=1e-6)
        strengths = (differences[name] @ module.axes.T).norm(dim=0)
        assert torch.allclose(strengths, module.singular_values, rtol=1e-3, atol=1e-6)
        assert module.singular_values.diff().le(0).all()
        assert ((module.votes >= 0.5) & (module.votes <= 1)).all()


def test_fewer_pairs_than_axes_are_refused(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    with pytest.raises(ValueError, match=r"4 pairs span fewer than k_max=5 axes"):
        extract_modules(policy, tokenizer, pairs[:4], options(k_max=5))
    assert extract_modules(policy, tokenizer, pairs[:4], options(k_max=4))


# ---------------------------------------------------------------- figures and the random control


def module_of(mean: list[float]) -> ModuleDirection:
    return ModuleDirection(torch.eye(len(mean)), torch.tensor([3.0, 4.0]), torch.tensor(mean), torch.ones(2))


def test_sign_accuracy_counts_pairs_that_point_the_way_of_the_mean() -> None:
    modules = {"a": module_of([1.0, 0.0]), "b": module_of([0.0, 1.0])}
    differences = {
        "a": torch.tensor([[2.0, 9.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 5.0]]),
        "b": torch.tensor([[9.0, 0.0], [0.0, 0.5], [0.0, -0.5], [7.0, 0.0]]),
    }
    # Cosines: 2, -1 + .5, 1 - .5, 0 over positive norms. Nothing but a positive one counts.
    assert sign_accuracy(differences, modules) == 0.5
    assert sign_accuracy({}, modules) == -1.0
    assert sign_accuracy({name: rows[:0] for name, rows in differences.items()}, modules) == -1.0


def test_sign_accuracy_of_the_pairs_themselves_is_high(policy: PeftModel, tokenizer, pairs) -> None:
    modules = extract_modules(policy, tokenizer, pairs, options())
    differences = pair_differences(policy, tokenizer, pairs, options())
    assert sign_accuracy(differences, modules) >= 0.75
    assert sign_accuracy({name: -rows for name, rows in differences.items()}, modules) <= 0.25


def test_random_modules_match_shapes_and_nothing_else(policy: PeftModel, tokenizer, pairs) -> None:
    modules = extract_modules(policy, tokenizer, pairs, options())
    drawn, again, other = (random_modules(modules, seed) for seed in (0, 0, 1))
    assert list(drawn) == list(modules)
    for name, module in drawn.items():
        assert module.axes.shape == modules[name].axes.shape
        assert torch.allclose(module.axes @ module.axes.T, torch.eye(PAIRS), atol=1e-5)
        assert torch.equal(module.axes, again[name].axes)
        assert not torch.equal(module.axes, other[name].axes)
    same = cosine({n: m.axes.flatten() for n, m in drawn.items()}, {n: m.axes.flatten() for n, m in modules.items()})
    assert abs(same) < 0.1


def test_figures_for_people() -> None:
    direction = Direction("hack", "b", "p", 0.9, {"a": module_of([1.0, 0.0]), "b": module_of([0.0, 1.0])})
    assert describe(direction) == {
        "heldout_accuracy": 0.9,
        "first_axis_energy": pytest.approx(9 / 25),
        "mean_vote": pytest.approx(1.0),
    }
