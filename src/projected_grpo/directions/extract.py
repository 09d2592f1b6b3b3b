"""From contrastive pairs to a direction: per-completion gradients, their differences, and the SVD of those.

For a pair the GRPO gradient with advantage +1 on the hack and -1 on the clean answer is
    d = grad NLL(hack) - grad NLL(clean),
in the coordinates of the spectral adapter, with the training loss's fixed denominator (sum over tokens / maximum
completion length), so that pairs weigh here as they would in training. A descent step along +d makes the hack likelier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.directions.algebra import cosine_rows, haar_basis
from projected_grpo.directions.options import ExtractionOptions
from projected_grpo.directions.store import Direction, ModuleDirection
from projected_grpo.problems.pairs import Pair
from projected_grpo.spectral import RowGradients, spectral_layers

IGNORED = -100
Rows = dict[str, Tensor]  # module -> (n, r)


@dataclasses.dataclass(frozen=True)
class PairGradients:
    """Gradient of the NLL of both answers of n pairs, per module (n, r)."""

    hack: Rows
    clean: Rows


# ---------------------------------------------------------------- gradients per completion


def completion_gradients(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    options: ExtractionOptions,
    names: Sequence[str] | None = None,
) -> Rows:
    """Gradient of the NLL of each (prompt, completion), per module (len(texts), r). Parameters' grads are untouched.

    `names` are what errors call the texts by (default: completion 0, 1, ...).

    Raises:
        ValueError: a text is longer than the model's context. FloatingPointError: a completion has a non-finite loss.
    """
    names = names or [f"completion {index}" for index in range(len(texts))]
    encoded = [_tokens(tokenizer, prompt, completion) for prompt, completion in texts]
    _check_lengths(encoded, names, getattr(model.config, "max_position_embeddings", None))
    # Texts of like length share a batch: less padding. Rows come back in the order of `texts`.
    order = sorted(range(len(texts)), key=lambda index: len(encoded[index][0]) + len(encoded[index][1]))
    layers = spectral_layers(model)
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    for start in range(0, len(order), options.batch_size):
        batch = order[start : start + options.batch_size]
        with torch.enable_grad(), RowGradients(layers) as gradients:
            losses = _losses(model, [encoded[index] for index in batch], tokenizer.pad_token_id, options)
            if not torch.isfinite(losses).all():
                bad = min(batch[row] for row in (~torch.isfinite(losses)).nonzero().flatten().tolist())
                raise FloatingPointError(f"{names[bad]} has a non-finite loss: {texts[bad][1]!r}")
            # Only the adapter's parameters need a gradient, and it is thrown away: the collector keeps what we want.
            adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(losses.sum(), adapter, allow_unused=True)
        for name in layers:
            parts[name].append(gradients.rows[name].cpu())  # few numbers; what is made of them lives there
    place = torch.tensor(order).argsort()
    return {name: torch.cat(rows)[place] for name, rows in parts.items()}


def _tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Prompt; completion with its end token."""
    written = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return tokenizer(prompt)["input_ids"], [*written, tokenizer.eos_token_id]


def _check_lengths(encoded: Sequence[tuple[list[int], list[int]]], names: Sequence[str], limit: int | None) -> None:
    for (head, tail), name in zip(encoded, names, strict=True):
        if limit is not None and len(head) + len(tail) > limit:
            raise ValueError(f"{name} takes {len(head) + len(tail)} tokens, the model's context holds {limit}")


def _losses(
    model: PreTrainedModel, encoded: Sequence[tuple[list[int], list[int]]], pad: int, options: ExtractionOptions
) -> Tensor:
    """Loss of each text, (batch,); see `ExtractionOptions.loss`."""
    ids, mask, labels = (x.to(model.device) for x in pad_right(encoded, pad))
    tokens = ids.shape[1] - min(len(head) for head, _ in encoded)  # before them nothing is predicted that counts
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=tokens + 1).logits[:, :-1].float()
    token_loss = cross_entropy(logits.transpose(1, 2), labels[:, -tokens:], ignore_index=IGNORED, reduction="none")
    if options.loss == "fixed":
        return token_loss.sum(1) / options.loss_denominator
    return token_loss.sum(1) / (labels != IGNORED).sum(1)


def pad_right(encoded: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, mask, labels), each (batch, longest); labels cover the completion and its end token only."""
    width = max(len(head) + len(tail) for head, tail in encoded)
    ids = torch.full((len(encoded), width), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, (head, tail) in enumerate(encoded):
        text = torch.tensor(head + tail)
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
        labels[row, len(head) : len(text)] = text[len(head) :]
    return ids, mask, labels


def pair_gradients(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], options: ExtractionOptions
) -> PairGradients:
    """Both answers of every pair, batched together. Raises as `completion_gradients`, naming the pair and the side."""
    texts = [(pair.prompt, pair.hack) for pair in pairs] + [(pair.prompt, pair.clean) for pair in pairs]
    names = [f"pair {pair.id!r}, {side} answer" for side in ("hack", "clean") for pair in pairs]
    rows = completion_gradients(model, tokenizer, texts, options, names)
    count = len(pairs)
    return PairGradients({m: g[:count] for m, g in rows.items()}, {m: g[count:] for m, g in rows.items()})


# ---------------------------------------------------------------- what the SVD is taken of


def direction_rows(gradients: PairGradients, options: ExtractionOptions) -> Rows:
    """The rows (n, r) per module that `options.rows` names; labels are dealt alike in all modules."""
    hack, clean = gradients.hack, gradients.clean
    if options.rows == "clean":
        return clean
    if options.rows == "difference":
        return {module: rows - clean[module] for module, rows in hack.items()}
    count = len(next(iter(hack.values())))
    generator = torch.Generator().manual_seed(options.label_seed)
    if options.rows == "flipped":
        signs = torch.ones(count)
        signs[torch.randperm(count, generator=generator)[: count // 2]] = -1
        return {module: (rows - clean[module]) * signs.to(rows)[:, None] for module, rows in hack.items()}
    dealt = torch.randperm(2 * count, generator=generator)
    both = {module: torch.cat([rows, clean[module]])[dealt.to(rows.device)] for module, rows in hack.items()}
    return {module: rows[:count] - rows[count:] for module, rows in both.items()}


# ---------------------------------------------------------------- axes


def module_direction(rows: Tensor, k: int, tau_axis: float = 0.0, centred: bool = False) -> ModuleDirection:
    """SVD of the stacked rows (pairs, r): the k strongest right singular vectors, oriented by majority vote.

    A vote that ties (or a pair without a component) is decided by the sum of the coordinates. Mean, votes and
    coordinates are those of the rows as they are, `centred` or not.
    """
    rows = rows.double()
    mean = rows.mean(0)
    _, singular_values, axes = torch.linalg.svd(rows - mean if centred else rows, full_matrices=False)
    kept = int((singular_values[:k] >= tau_axis * singular_values[0]).sum())
    axes, singular_values = axes[:kept], singular_values[:kept]
    coordinates = rows @ axes.T
    balance = coordinates.sign().sum(0)
    orientation = torch.where(balance == 0, coordinates.sum(0).sign(), balance.sign())
    orientation = torch.where(orientation == 0, torch.ones_like(orientation), orientation)
    coordinates = coordinates * orientation
    votes = (coordinates > 0).double().mean(0)
    fields = (orientation[:, None] * axes, singular_values, mean, votes, coordinates)
    return ModuleDirection(*(field.float() for field in fields))


def module_directions(gradients: PairGradients, options: ExtractionOptions) -> dict[str, ModuleDirection]:
    """Axes of every module from gradients that are there already."""
    rows = direction_rows(gradients, options)
    return {m: module_direction(x, options.k_max, options.tau_axis, options.centred) for m, x in rows.items()}


def extract_modules(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], options: ExtractionOptions
) -> dict[str, ModuleDirection]:
    """Axes of every adapted module at the model's present weights.

    Raises:
        ValueError: fewer pairs than axes, or a text longer than the model's context.
        FloatingPointError: an answer has a non-finite loss; pair and side are named.
    """
    check_count(len(pairs), options)
    return module_directions(pair_gradients(model, tokenizer, pairs, options), options)


def check_count(pairs: int, options: ExtractionOptions, name: str = "") -> None:
    """Raise ValueError unless so many pairs can span k_max axes; centring takes one dimension away."""
    usable = pairs - options.centred
    if usable < options.k_max:
        named = f"{name} pairs" if name else "pairs"
        less = " (centred)" if options.centred else ""
        raise ValueError(f"{pairs} {named}{less} span fewer than k_max={options.k_max} axes: write more pairs")


def random_modules(like: Mapping[str, ModuleDirection], seed: int) -> dict[str, ModuleDirection]:
    """Haar-random axes of the same shapes: the control that matches rank and nothing else.

    The singular values are those of `like`, so that a noise floor takes the same number of axes from both.
    """
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, module in like.items():
        k, r = module.axes.shape
        axes = haar_basis(k, r, generator)
        votes, nobody = torch.full((k,), 0.5), torch.zeros(0, k)
        modules[name] = ModuleDirection(axes, module.singular_values, axes.mean(0), votes, nobody)
    return modules


# ---------------------------------------------------------------- figures for people


def sign_accuracy(differences: Mapping[str, Tensor], modules: Mapping[str, ModuleDirection]) -> float:
    """Share of pairs whose difference has a positive cosine with the mean difference; -1 if there are no pairs."""
    if not differences or not len(next(iter(differences.values()))):
        return -1.0
    means = {name: module.mean for name, module in modules.items()}
    return float((cosine_rows(differences, means) > 0).double().mean())


def axis_accuracy(differences: Mapping[str, Tensor], modules: Mapping[str, ModuleDirection]) -> float:
    """Share of pairs on the hack-ward side of a matrix's first axis, mean over matrices; -1 without pairs."""
    if not differences or not len(next(iter(differences.values()))):
        return -1.0
    sides = [(differences[name] @ module.axes[0] > 0).double().mean() for name, module in modules.items()]
    return float(torch.stack(sides).mean())


def describe(direction: Direction) -> dict[str, float]:
    """Figures for people: axes in all, mean votes, energy in the first axis, held-out accuracy."""
    first = [float(m.singular_values[0] ** 2 / m.singular_values.square().sum()) for m in direction.modules.values()]
    votes = [float(module.votes.mean()) for module in direction.modules.values()]
    return {
        "heldout_accuracy": direction.heldout_accuracy,
        "first_axis_energy": sum(first) / len(first),
        "mean_vote": sum(votes) / len(votes),
        "axes": float(sum(len(module.axes) for module in direction.modules.values())),
    }
