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

from projected_grpo.directions.algebra import cosine, haar_basis
from projected_grpo.directions.store import Direction, ModuleDirection
from projected_grpo.problems.pairs import Pair
from projected_grpo.spectral import SpectralLayer, spectral_layers

IGNORED = -100


@dataclasses.dataclass(frozen=True)
class ExtractionOptions:
    """k_max: axes to keep. loss_denominator: the training loss's fixed one, tokens. batch_size: texts per pass."""

    k_max: int
    loss_denominator: int
    batch_size: int = 60


class PerSampleGradients:
    """Collects, during one backward pass, the gradient of every row of the batch in delta space.

    y = x (W + U diag(delta) Vh)^T gives d loss_i / d delta = sum over tokens of (Vh x) * (U^T dL/dy): two thin
    matmuls per module instead of one backward per row.
    """

    def __init__(self, layers: Mapping[str, SpectralLayer]) -> None:
        self.layers = layers
        self.rows: dict[str, Tensor] = {}  # module -> (batch, r)
        self._inputs: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> PerSampleGradients:
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_hook(self._watch(name, layer)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, layer: SpectralLayer):  # type: ignore[no-untyped-def]  # a torch forward hook
        def forward(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].detach()

            def backward(gradient: Tensor) -> None:
                projected = (x @ layer.Vh.T) * (gradient @ layer.U)
                self.rows[name] = projected.sum(dim=tuple(range(1, projected.dim() - 1)))

            output.register_hook(backward)

        return forward


def completion_gradients(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[str, str]],
    options: ExtractionOptions,
) -> dict[str, Tensor]:
    """Gradient of the NLL of each (prompt, completion), per module (len(texts), r). Parameters' grads are untouched.

    Raises:
        FloatingPointError: a completion has a non-finite loss; its index is named.
    """
    layers = spectral_layers(model)
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    for start in range(0, len(texts), options.batch_size):
        ids, mask, labels = encode(tokenizer, texts[start : start + options.batch_size])
        with torch.enable_grad(), PerSampleGradients(layers) as gradients:
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            token_loss = cross_entropy(logits.transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none")
            losses = token_loss.sum(1) / options.loss_denominator
            if not torch.isfinite(losses).all():
                bad = start + int((~torch.isfinite(losses)).nonzero()[0])
                raise FloatingPointError(f"completion {bad} has a non-finite loss: {texts[bad][1]!r}")
            # Only the adapter's parameters need a gradient, and it is thrown away: the hooks keep what we want.
            adapter = [parameter for parameter in model.parameters() if parameter.requires_grad]
            torch.autograd.grad(losses.sum(), adapter, allow_unused=True)
        for name in layers:
            parts[name].append(gradients.rows[name])
    return {name: torch.cat(rows) for name, rows in parts.items()}


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Right-padded (ids, mask, labels); labels cover the completion and its end token only."""
    rows = []
    for prompt, completion in texts:
        head, tail = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
        rows.append((head, [*tail, tokenizer.eos_token_id]))
    width = max(len(head) + len(tail) for head, tail in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, (head, tail) in enumerate(rows):
        text = torch.tensor(head + tail)
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
        labels[row, len(head) : len(text)] = text[len(head) :]
    return ids, mask, labels


def pair_differences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    options: ExtractionOptions,
) -> dict[str, Tensor]:
    """d = grad(hack) - grad(clean) per pair and module, (pairs, r)."""
    texts = [(pair.prompt, pair.hack) for pair in pairs] + [(pair.prompt, pair.clean) for pair in pairs]
    gradients = completion_gradients(model, tokenizer, texts, options)
    return {name: rows[: len(pairs)] - rows[len(pairs) :] for name, rows in gradients.items()}


def module_direction(differences: Tensor, k: int) -> ModuleDirection:
    """SVD of the stacked differences (pairs, r): the k strongest right singular vectors, oriented by majority vote.

    A vote that ties (or a pair without a component) is decided by the sum of the coordinates.
    """
    _, singular_values, axes = torch.linalg.svd(differences.double(), full_matrices=False)
    axes, singular_values = axes[:k], singular_values[:k]
    coordinates = differences.double() @ axes.T
    balance = coordinates.sign().sum(0)
    orientation = torch.where(balance == 0, coordinates.sum(0).sign(), balance.sign())
    orientation = torch.where(orientation == 0, torch.ones_like(orientation), orientation)
    votes = (coordinates * orientation > 0).double().mean(0)
    oriented = orientation[:, None] * axes
    mean = differences.double().mean(0)
    return ModuleDirection(oriented.float(), singular_values.float(), mean.float(), votes.float())


def extract_modules(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    options: ExtractionOptions,
) -> dict[str, ModuleDirection]:
    """Axes of every adapted module at the model's present weights.

    Raises:
        ValueError: fewer pairs than axes.
    """
    if len(pairs) < options.k_max:
        raise ValueError(f"{len(pairs)} pairs span fewer than k_max={options.k_max} axes: write more pairs")
    differences = pair_differences(model, tokenizer, pairs, options)
    return {name: module_direction(rows, options.k_max) for name, rows in differences.items()}


def sign_accuracy(differences: Mapping[str, Tensor], modules: Mapping[str, ModuleDirection]) -> float:
    """Share of pairs whose difference has a positive cosine with the mean difference; -1 if there are no pairs."""
    count = next(iter(differences.values())).shape[0] if differences else 0
    means = {name: module.mean for name, module in modules.items()}
    hits = sum(cosine({name: rows[i] for name, rows in differences.items()}, means) > 0 for i in range(count))
    return hits / count if count else -1.0


def random_modules(like: Mapping[str, ModuleDirection], seed: int) -> dict[str, ModuleDirection]:
    """Haar-random axes of the same shapes: the control that matches rank and nothing else."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name, module in like.items():
        k, r = module.axes.shape
        axes = haar_basis(k, r, generator)
        modules[name] = ModuleDirection(axes, torch.ones(k), axes.mean(0), torch.full((k,), 0.5))
    return modules


def describe(direction: Direction) -> dict[str, float]:
    """Figures for people: mean votes, energy in the first axis, held-out accuracy."""
    first = [float(m.singular_values[0] ** 2 / m.singular_values.square().sum()) for m in direction.modules.values()]
    votes = [float(module.votes.mean()) for module in direction.modules.values()]
    return {
        "heldout_accuracy": direction.heldout_accuracy,
        "first_axis_energy": sum(first) / len(first),
        "mean_vote": sum(votes) / len(votes),
    }
