from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from peft import PeftModel
from tiny_policy import adapted, descend, hack_margin, log_probability, move, shipped_pairs, tiny_base
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from projected_grpo.directions.algebra import Gate, basis_overlap, cosine, erase_all, total_norm
from projected_grpo.directions.extract import (
    IGNORED,
    PairGradients,
    _tokens,
    axis_accuracy,
    check_count,
    completion_gradients,
    describe,
    direction_rows,
    extract_modules,
    module_direction,
    module_directions,
    pad_right,
    pair_gradients,
    random_modules,
    sign_accuracy,
)
from projected_grpo.directions.options import ExtractionOptions, Rows
from projected_grpo.directions.store import Direction, ModuleDirection
from projected_grpo.problems.pairs import Pair
from projected_grpo.spectral import deltas

DENOMINATOR = 64
RATE = 0.01  # of the one descent step in the sign tests: small enough for first order to hold
PAIRS = 8


def pair_differences(policy: PeftModel, tokenizer, pairs: list[Pair], settings: ExtractionOptions) -> dict[str, Tensor]:
    return direction_rows(pair_gradients(policy, tokenizer, pairs, settings), settings)


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
    assert _tokens(tokenizer, "a", "bb") == (
        tokenizer("a").input_ids,
        [*tokenizer("bb").input_ids, tokenizer.eos_token_id],
    )
    ids, mask, labels = pad_right([([5], [6, 7]), ([8, 9, 10], [11])], pad=0)
    assert ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert labels.tolist() == [[IGNORED, 6, 7, IGNORED], [IGNORED, IGNORED, IGNORED, 11]]


def test_the_loss_denominator_is_fixed(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    """A long answer weighs more than a short one, as in training; there is no mean over tokens."""
    texts = [(pairs[0].prompt, pairs[0].hack)]
    one = completion_gradients(policy, tokenizer, texts, ExtractionOptions(1, 1))
    many = completion_gradients(policy, tokenizer, texts, ExtractionOptions(1, 100))
    for name, rows in one.items():
        assert torch.allclose(rows, 100 * many[name], rtol=1e-4, atol=1e-6)


def poisoned(tokenizer: PreTrainedTokenizerBase) -> PeftModel:
    """A policy for which every text with a 9 has no finite loss."""
    base = tiny_base(tokenizer, tied=False)
    (poison,) = tokenizer("9")["input_ids"]
    with torch.no_grad():
        base.model.embed_tokens.weight[poison] = torch.nan
    return adapted(base)


def test_a_non_finite_loss_names_its_completion(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [("p\n", "one"), ("p\n", "two"), ("p\n", "return 9\n"), ("p\n", "x"), ("p\n", "9")]
    with pytest.raises(FloatingPointError, match=r"completion 2 has a non-finite loss: 'return 9\\n'"):
        completion_gradients(poisoned(tokenizer), tokenizer, texts, options(batch_size=5))


@pytest.mark.parametrize("side", ["hack", "clean"])
def test_a_non_finite_loss_names_its_pair_and_side(side: str, tokenizer, pairs: list[Pair]) -> None:
    short = [dataclasses.replace(pair, prompt="p\n", hack="a", clean="b") for pair in pairs[:4]]
    short[2] = dataclasses.replace(short[2], **{side: "9 lives"})
    with pytest.raises(FloatingPointError, match=rf"pair '{short[2].id}', {side} answer has a non-finite loss"):
        extract_modules(poisoned(tokenizer), tokenizer, short, options(k_max=2, batch_size=2))


def test_a_text_beyond_the_context_is_refused_before_any_work(tokenizer, pairs: list[Pair]) -> None:
    policy = adapted(tiny_base(tokenizer))
    texts = [pair.prompt + answer for pair in pairs for answer in (pair.hack, pair.clean)]
    policy.config.max_position_embeddings = max(len(tokenizer(text)["input_ids"]) for text in texts) + 1  # the end
    assert extract_modules(policy, tokenizer, pairs, options())
    policy.config.max_position_embeddings -= 1
    with pytest.raises(ValueError, match=r"answer takes (\d+) tokens, the model's context holds \d+"):
        extract_modules(policy, tokenizer, pairs, options())
    policy.config.max_position_embeddings = 50
    with pytest.raises(
        ValueError, match=r"pair 'hack-\d\d', hack answer takes \d+ tokens, the model's context holds 50"
    ):
        extract_modules(policy, tokenizer, pairs, options())


def test_neither_order_nor_batches_change_a_row(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    """Texts are sorted by length on the way; every row comes back in its place."""
    texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.hack, pair.clean)]
    together = completion_gradients(policy, tokenizer, texts, options(batch_size=16))
    for size, order in ((3, list(range(16))), (5, list(range(15, -1, -1)))):
        got = completion_gradients(policy, tokenizer, [texts[i] for i in order], options(batch_size=size))
        for name, rows in together.items():
            assert torch.allclose(got[name], rows[order], rtol=1e-4, atol=1e-6), name
            assert (rows[0] - rows[1]).abs().max() > 1e-4


def test_the_mean_over_tokens_weighs_answers_alike(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    texts = [(pair.prompt, pair.clean) for pair in pairs[:3]]
    lengths = torch.tensor([len(tokenizer(answer)["input_ids"]) + 1 for _, answer in texts])
    assert lengths.unique().numel() > 1
    fixed = completion_gradients(policy, tokenizer, texts, options())
    mean = completion_gradients(policy, tokenizer, texts, ExtractionOptions(PAIRS, DENOMINATOR, loss="token_mean"))
    for name, rows in fixed.items():
        assert torch.allclose(mean[name] * lengths[:, None], rows * DENOMINATOR, rtol=1e-4, atol=1e-5)


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


def test_a_step_along_plus_v_raises_the_hack_and_erasing_v_stops_exactly_that(
    policy: PeftModel, tokenizer, pairs: list[Pair]
) -> None:
    """V: the first axis of every matrix, oriented by the extraction. Beside it a step that V has no part in."""
    differences = pair_differences(policy, tokenizer, pairs, options())
    modules = extract_modules(policy, tokenizer, pairs, options())
    bases = {name: module.axes[:1] for name, module in modules.items()}
    along = {name: 0.1 * basis[0] for name, basis in bases.items()}
    predicted = RATE * DENOMINATOR * sum(float(differences[m].mean(0) @ along[m]) for m in along)
    raised = rise(policy, tokenizer, pairs, along)
    assert raised == pytest.approx(predicted, rel=0.02)
    assert raised > 1e-3  # the sign: a descent step along +V, delta -= rate V, makes the hacks likelier

    noise = torch.Generator().manual_seed(0)
    other = {m: torch.randn(v.shape, generator=noise) / 100 for m, v in along.items()}
    beside = erase_all(other, bases, "both_sides")
    erased = erase_all({m: along[m] + beside[m] for m in along}, bases, "one_sided")
    assert rise(policy, tokenizer, pairs, erased) == pytest.approx(rise(policy, tokenizer, pairs, beside), abs=1e-5)
    # Away from the hack is not stopped.
    away = {m: -v for m, v in along.items()}
    assert rise(policy, tokenizer, pairs, erase_all(away, bases, "one_sided")) < -0.9 * raised


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


# ---------------------------------------------------------------- controls: other labels, other rows


@pytest.fixture
def gradients() -> PairGradients:
    """Two modules, ten pairs: row i of the hacks holds i + 1, of the clean answers -(i + 1)."""
    counts = torch.arange(1.0, 11.0)[:, None]
    return PairGradients(
        {"a": counts.repeat(1, 3), "b": 10 * counts.repeat(1, 2)},
        {"a": -counts.repeat(1, 3), "b": -10 * counts.repeat(1, 2)},
    )


def rows_of(gradients: PairGradients, rows: Rows, seed: int = 0) -> dict[str, Tensor]:
    return direction_rows(gradients, ExtractionOptions(2, 1, rows=rows, label_seed=seed))


def test_differences_and_clean_rows(gradients: PairGradients) -> None:
    assert rows_of(gradients, "difference")["a"][:, 0].tolist() == [2.0 * (i + 1) for i in range(10)]
    assert torch.equal(rows_of(gradients, "clean")["b"], gradients.clean["b"])


def test_flipped_labels_turn_a_random_half_of_the_pairs(gradients: PairGradients) -> None:
    true, flipped = rows_of(gradients, "difference"), rows_of(gradients, "flipped")
    signs = flipped["a"] / true["a"]
    assert sorted(signs[:, 0].tolist()) == [-1.0] * 5 + [1.0] * 5
    assert torch.equal(flipped["b"], true["b"] * signs[:, :1])  # the same pairs in every module
    assert torch.equal(rows_of(gradients, "flipped")["a"], flipped["a"])
    assert not torch.equal(rows_of(gradients, "flipped", seed=1)["a"], flipped["a"])


def test_flipped_labels_keep_the_span(policy: PeftModel, tokenizer, pairs: list[Pair]) -> None:
    pairs_of = pair_gradients(policy, tokenizer, pairs, options())
    true, flipped = (module_directions(pairs_of, ExtractionOptions(4, 1, rows=rows)) for rows in LABELS)
    bases, turned = ({m: module.axes for m, module in modules.items()} for modules in (true, flipped))
    assert basis_overlap(bases, turned) == pytest.approx(1.0, abs=1e-3)
    assert cosine({m: x.mean for m, x in true.items()}, {m: x.mean for m, x in flipped.items()}) < 0.9


LABELS: tuple[Rows, ...] = ("difference", "flipped")


def test_permuted_labels_deal_all_completions_anew(gradients: PairGradients) -> None:
    permuted = rows_of(gradients, "permuted")
    pool = [*range(1, 11), *range(-10, 0)]
    assert torch.equal(permuted["b"], 10 * permuted["a"][:, :2])  # the same deal in every module
    # Every completion is used once: sums of "hacks" and "cleans" are those of a deal of the pool.
    assert not torch.equal(permuted["a"], rows_of(gradients, "difference")["a"])
    assert torch.equal(rows_of(gradients, "permuted")["a"], permuted["a"])
    assert not torch.equal(rows_of(gradients, "permuted", seed=1)["a"], permuted["a"])
    generator = torch.Generator().manual_seed(0)
    dealt = [pool[:10][i] if i < 10 else -pool[i - 10] for i in torch.randperm(20, generator=generator).tolist()]
    assert permuted["a"][:, 0].tolist() == [float(dealt[i] - dealt[i + 10]) for i in range(10)]
    assert sorted(map(abs, dealt)) == sorted([*range(1, 11), *range(1, 11)])


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


def test_coordinates_are_those_of_each_pair_along_the_oriented_axes() -> None:
    differences = torch.tensor([[0.0, 3.0, 0.0], [0.0, 4.0, 0.0], [-1.0, 0.0, 0.0]])
    direction = module_direction(differences, k=2)
    assert torch.allclose(direction.coordinates, torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 1.0]]), atol=1e-6)
    assert torch.allclose(differences @ direction.axes.T, direction.coordinates, atol=1e-6)


def test_axes_weaker_than_tau_are_not_kept() -> None:
    differences = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    assert [len(module_direction(differences, 3, tau).axes) for tau in (0.0, 0.2, 0.3, 0.5, 0.6)] == [3, 3, 2, 2, 1]
    cut = module_direction(differences, 3, 0.3)
    assert cut.singular_values.tolist() == pytest.approx([4.0, 2.0])
    assert cut.votes.shape == (2,)
    assert cut.coordinates.shape == (3, 2)


def test_centred_axes_are_those_of_what_varies_between_pairs() -> None:
    """All pairs share (5, 0); they differ along the second coordinate."""
    differences = torch.tensor([[5.0, 1.0], [5.0, 1.5], [5.0, -1.0]])
    plain, centred = (module_direction(differences, 1, centred=centred) for centred in (False, True))
    assert plain.axes[0, 0] > 0.99
    assert torch.allclose(centred.axes, torch.tensor([[0.0, 1.0]]), atol=1e-6)
    assert torch.equal(centred.mean, plain.mean)
    assert centred.coordinates.flatten().tolist() == pytest.approx([1.0, 1.5, -1.0])
    assert centred.votes.tolist() == pytest.approx([2 / 3])
    with pytest.raises(ValueError, match=r"8 pairs \(centred\) span fewer than k_max=8"):
        check_count(8, ExtractionOptions(8, 1, centred=True))
    check_count(8, ExtractionOptions(8, 1))


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
    strengths, nobody = torch.tensor([3.0, 4.0]), torch.zeros(0, 2)
    return ModuleDirection(torch.eye(len(mean)), strengths, torch.tensor(mean), torch.ones(2), nobody)


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


def test_axis_accuracy_counts_pairs_on_the_side_of_the_first_axis() -> None:
    modules = {"a": module_of([1.0, 0.0]), "b": module_of([0.0, 1.0])}  # first axis (1, 0) in both
    differences = {
        "a": torch.tensor([[2.0, -9.0], [-1.0, 0.0], [1.0, 0.0], [0.0, 5.0]]),
        "b": torch.tensor([[9.0, 0.0], [1.0, 0.5], [1.0, -0.5], [7.0, 0.0]]),
    }
    assert axis_accuracy(differences, modules) == pytest.approx((2 / 4 + 4 / 4) / 2)
    assert axis_accuracy({}, modules) == -1.0


def test_random_modules_match_shapes_and_nothing_else(policy: PeftModel, tokenizer, pairs) -> None:
    modules = extract_modules(policy, tokenizer, pairs, options())
    drawn, again, other = (random_modules(modules, seed) for seed in (0, 0, 1))
    assert list(drawn) == list(modules)
    for name, module in drawn.items():
        assert module.axes.shape == modules[name].axes.shape
        assert torch.equal(module.singular_values, modules[name].singular_values)  # for the noise floor
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
        "axes": 4.0,
    }
