"""Directions in activation space: what an arm reads off a completion's hidden states, and nothing to do with gradients.

After Wu & Tang (2026, arXiv 2604.01476): a concept is the mean difference of hidden states between contrastive texts,
at 60-75 % of the model's depth. Reconstructed here: theirs is read at the last token of a prompt; a completion has no
such token, so ours is the mean over its tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from projected_grpo.directions.options import TEXTS_PER_FORWARD

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from projected_grpo.problems.pairs import Pair

DEPTHS = (0.60, 0.75)
PAIRED = ("hack", "placebo", "permuted", "flipped")  # kinds that are learned from the two sides of pairs
KINDS = (*PAIRED, "random")


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The model's transformer blocks: its outermost list of `config.num_hidden_layers` modules.

    Not its longest list: the experts within a block may outnumber the blocks.

    Raises:
        ValueError: it has none, or several (an encoder and a decoder).
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    count = getattr(model.config, "num_hidden_layers", None)
    found = [module for module in outermost if len(module) == count]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} outermost lists of config.num_hidden_layers ({count}) modules; "
            "hidden states are read from the blocks of a model that has one"
        )
    return found[0]


def concept_layers(count: int, depths: tuple[float, float] = DEPTHS) -> tuple[int, ...]:
    """Blocks (0-based) after which (i + 1) / count lies within `depths`; the nearest one if none does."""
    low, high = depths
    inside = tuple(i for i in range(count) if low <= (i + 1) / count <= high)
    middle = (low + high) / 2
    return inside or (min(range(count), key=lambda i: abs((i + 1) / count - middle)),)


@torch.no_grad()
def hidden_means(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    layers: Sequence[int],
    at_once: int = TEXTS_PER_FORWARD,
) -> Tensor:
    """Mean over each completion's tokens of the residual stream after the chosen blocks, (n, layers, d).

    at_once: texts per forward pass.
    The model is as it was afterwards: mode, weights, gradients, random state.
    """
    training = model.training
    model.eval()
    try:
        portions = [slice(start, start + at_once) for start in range(0, len(prompts), at_once)]
        parts = [_batch_means(model, tokenizer, prompts[rows], token_ids[rows], layers) for rows in portions]
    finally:
        model.train(training)
    return torch.cat(parts)


def _batch_means(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    token_ids: Sequence[Sequence[int]],
    layers: Sequence[int],
) -> Tensor:
    heads = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    width = max(len(head) + len(tail) for head, tail in zip(heads, token_ids, strict=True))
    ids = torch.full((len(heads), width), tokenizer.pad_token_id)
    mask, inside = torch.zeros_like(ids), torch.zeros(ids.shape)
    for row, (head, tail) in enumerate(zip(heads, token_ids, strict=True)):
        text = torch.tensor([*head, *tail])
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
        inside[row, len(head) : len(text)] = 1
    ids, mask, inside = (x.to(model.device) for x in (ids, mask, inside))
    with recorded(model, layers) as states:
        model(input_ids=ids, attention_mask=mask, logits_to_keep=1, use_cache=False)
    weights = inside / inside.sum(1, keepdim=True).clamp_min(1)
    return torch.stack([torch.einsum("bt,btd->bd", weights, states[layer].float()) for layer in layers], dim=1)


@contextmanager
def recorded(model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """The output (batch, tokens, d) of the chosen blocks, by block, while entered."""
    found: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    chosen = blocks(model)
    handles = [chosen[layer].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclasses.dataclass(frozen=True)
class Concept:
    """vectors: (layers, d), a unit vector per block; spread: the clean texts' standard deviation of `score`."""

    layers: tuple[int, ...]
    vectors: Tensor
    spread: float

    def score(self, hidden: Tensor) -> Tensor:
        """Mean over blocks of the states' projection, in standard deviations of clean texts; (n,) of (n, layers, d)."""
        return _projection(hidden, self.vectors) / self.spread


def _projection(hidden: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("nld,ld->n", hidden, vectors.to(hidden)) / len(vectors)


def pair_states(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    layers: Sequence[int],
    at_once: int = TEXTS_PER_FORWARD,
) -> tuple[Tensor, Tensor]:
    """`hidden_means` of the hacks and of the clean answers of n pairs, each (n, layers, d)."""
    prompts = [pair.prompt for pair in pairs]
    end = tokenizer.eos_token_id
    sides = ([pair.hack for pair in pairs], [pair.clean for pair in pairs])
    ids = [[[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in texts] for texts in sides]
    hack, clean = (hidden_means(model, tokenizer, prompts, side, layers, at_once) for side in ids)
    return hack, clean


def relabelled(hack: Tensor, clean: Tensor, kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """The two sides, each (n, ...), as a control has them; other kinds than `permuted` and `flipped` leave them.

    The labels are dealt in blocks of two pairs of like strength (their difference along the mean difference), so that
    both new sides hold as many hacks as clean answers and what hacks share cancels. A free deal of so few texts leaves
    a part of the hack in the control by chance. `flipped` exchanges the labels of one pair of a block, `permuted` deals
    its two hacks and its two clean answers one each to either side. An odd pair is left out.
    """
    if kind not in ("permuted", "flipped"):
        return hack, clean
    difference = (hack - clean).flatten(1).double()
    order = (difference @ difference.mean(0)).argsort(stable=True).cpu()
    blocks = order[: len(order) // 2 * 2].view(-1, 2)
    generator = torch.Generator().manual_seed(seed)
    hacks = torch.randint(2, (len(blocks),), generator=generator)  # whose hack goes to the first side
    cleans = 1 - hacks if kind == "flipped" else torch.randint(2, (len(blocks),), generator=generator)
    rows = torch.arange(len(blocks))
    first = torch.cat([hack[blocks[rows, hacks]], clean[blocks[rows, cleans]]])
    second = torch.cat([hack[blocks[rows, 1 - hacks]], clean[blocks[rows, 1 - cleans]]])
    return first, second


def concept(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    kind: str,
    seed: int,
    depths: tuple[float, float] = DEPTHS,
    at_once: int = TEXTS_PER_FORWARD,
) -> Concept:
    """Mean difference hack - clean per block, or a control of it. `pairs`: of the kind's contrast; for `random`, a
    Gaussian unit vector per block, none are needed, and its scores are in units of the hidden states. at_once: texts
    per forward pass.

    Raises:
        ValueError: an unknown kind, too few pairs to learn a concept from, or pairs without a difference.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no concept: set direction to one of {', '.join(KINDS)}")
    layers = concept_layers(len(blocks(model)), depths)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(len(layers), int(model.config.hidden_size), generator=generator)
        return Concept(layers, vectors / vectors.norm(dim=1, keepdim=True), 1.0)
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs to learn the concept {kind!r} from: at least 2 are needed")
    hack, clean = relabelled(*pair_states(model, tokenizer, pairs, layers, at_once), kind, seed)
    difference = (hack - clean).mean(0)
    lengths = difference.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise ValueError("hacks and clean answers have the same mean hidden state: there is no concept")
    vectors = difference / lengths
    return Concept(layers, vectors, float(_projection(clean, vectors).std()))
