"""How much memory training takes on one device, by part, from the shapes in config.json: arithmetic, nothing is loaded.

Resident parts live through a whole step. Beside them sampling's parts live, or those of the update, or those of an
extraction of V from pairs, so that the peak is the resident ones and the largest of the three. Weights, factors,
optimizer and cache are exact; activations are the tensors that autograd keeps in a transformer with gated MLPs and
fused attention, logits those of TRL's chunks. What an allocator loses between tensors is not counted, nor what one
matrix's fold or gradient needs besides its operands: leave a tenth free.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from projected_grpo.directions.options import TEXTS_PER_PASS
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.grpo import GrpoSettings

WIDTH = {"float32": 4, "bfloat16": 2}  # bytes of a number
FLOAT32 = 4
TILE = (4096, 32768)  # tokens and entries of the vocabulary of which TRL holds logits at a time
TILE_COPIES = 3  # the logits, and what becomes of them
SAMPLED_COPIES = 4  # logits of one token per rollout: as made, in float32, scaled, as probabilities
# Numbers kept per token of a block for its backward pass, in units of the hidden size, beside those of attention and
# MLP that are counted by their own sizes: the inputs of two norms (and those in float32), of attention and of the MLP.
KEPT_HIDDEN = 8
KEPT_MLP = 4  # gate, up, the activated gate, their product


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder's sizes, as its config.json names them."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # output and input embeddings are one matrix

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Of a config.json.

        Raises:
            KeyError: it names no such size: another kind of model.
        """
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            mlp=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @classmethod
    def read(cls, folder: Path) -> Shape:
        """Of the base in a folder. Raises as `of`, or OSError."""
        return cls.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(d_out, d_in) of the adapted matrices of one block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(queries, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, queries)]
        return [*attention, (self.mlp, self.hidden), (self.mlp, self.hidden), (self.hidden, self.mlp)]

    @property
    def adapted(self) -> int:
        """Numbers in all adapted matrices."""
        return self.layers * sum(rows * columns for rows, columns in self.matrices)

    @property
    def embedded(self) -> int:
        """Numbers in the embeddings."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def numbers(self) -> int:
        """In all weights; norms are a thousandth of it, and left out."""
        return self.adapted + self.embedded

    @property
    def ranks(self) -> int:
        """Entries of all deltas together."""
        return self.layers * sum(min(pair) for pair in self.matrices)

    @property
    def factors(self) -> int:
        """Numbers in all U and Vh."""
        return self.layers * sum(min(pair) * sum(pair) for pair in self.matrices)

    @property
    def visiting(self) -> int:
        """Numbers in W, U and Vh of the matrix in which they are most: what is folded, or differentiated, at a time."""
        return max(rows * columns + min(rows, columns) * (rows + columns) for rows, columns in self.matrices)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes by part."""

    resident: Mapping[str, int]
    sampling: Mapping[str, int]
    update: Mapping[str, int]
    extraction: Mapping[str, int]
    evaluation: Mapping[str, int]
    host: int = 0  # of the host's memory, where U, Vh and W live there
    pinned: int = 0  # the same for a CUDA device

    @property
    def peak(self) -> int:
        """Of the device, at the worst moment of the pipeline."""
        return sum(self.resident.values()) + max(sum(parts.values()) for parts in self.moments.values())

    @property
    def moments(self) -> dict[str, Mapping[str, int]]:
        """What comes on top of the resident parts, by the moment; never two of them together."""
        names = ("sampling", "update", "extraction", "evaluation")
        return {name: getattr(self, name) for name in names}


def estimate(
    shape: Shape,
    grpo: GrpoSettings,
    compute: ComputeSettings,
    prompt_tokens: int,
    pair_tokens: tuple[int, int] = (0, 0),
    axes: int = 0,
    processes: int = 1,
    evaluated: tuple[int, int] = (0, 0),
    sampler: int | None = None,
    shards: int = 1,
) -> Estimate:
    """Of one process that trains, or evaluates.

    prompt_tokens: of the longest prompt. pair_tokens: of the longest pair's prompt and of its answer. axes: k of the
    arm's V, beside the one that every arm is measured with. evaluated: completions that gate or evaluation sample
    together, and the tokens of each at most. sampler: bytes that a vLLM beside training holds, which samples in place
    of the model; None where the model does it. shards: processes over which the frozen weights are dealt.
    """
    width = WIDTH[compute.dtype]
    share = grpo.prompts * grpo.samples // processes
    rows, together = compute.micro_batch or share, compute.generate_batch or share
    length = prompt_tokens + grpo.max_new_tokens
    texts, kept = compute.micro_batch or TEXTS_PER_PASS, compute.model_copy(update={"checkpointing": False})
    rollouts = grpo.prompts * grpo.samples * shape.ranks * FLOAT32 if grpo.rollout_gradients else 0
    beside = {} if sampler is None else {"vLLM": sampler}  # it keeps its share while others work
    whole = gathered(shape, width) if shards > 1 else {}
    weights = math.ceil(shape.numbers * width / shards)
    # Extraction and evaluation are stages of one process each, which holds all that it loads.
    alone = {"weights that others hold in training": shape.numbers * width - weights} if shards > 1 else {}
    visiting = {} if compute.factors == "device" else {"a visiting W, U, Vh": shape.visiting * width}
    return Estimate(
        resident={
            "weights": weights,
            **adapter(shape, compute),
            "deltas and optimizer": shape.ranks * FLOAT32 * 4,  # delta, gradient, two moments
            "directions": shape.ranks * FLOAT32 * (grpo.measure_k + axes + 1),
        },
        sampling={**(beside or decoding(shape, together, length, width)), **whole},
        evaluation={**decoding(shape, evaluated[0], prompt_tokens + evaluated[1], width), **alone},
        update={
            "activations": activations(shape, rows * length, compute),
            "logits of training": logits_of_training(shape, rows * grpo.max_new_tokens),
            "gradients by rollout": rollouts,
            **visiting,
            **whole,
            **beside,
        },
        extraction={
            "activations of pairs": activations(shape, texts * sum(pair_tokens), kept),
            # As the model makes them, in float32, their log-probabilities and the gradient of these.
            "logits of pairs": texts * pair_tokens[1] * shape.vocabulary * (width + 3 * FLOAT32),
            **visiting,
            **alone,
            **beside,  # where V is refreshed
        },
        host=on_host(shape, compute, shards),
        pinned=on_host(shape, compute, shards, pinned=True),
    )


def adapter(shape: Shape, compute: ComputeSettings) -> dict[str, int]:
    """The frozen part of the adapter on the device: all of it, or S alone, where W' takes the place of W."""
    width, values = WIDTH[compute.dtype], shape.ranks * FLOAT32
    if compute.factors != "device":
        return {"factors": values}
    return {"folded weights": shape.adapted * width, "factors": shape.factors * width + values}


def on_host(shape: Shape, compute: ComputeSettings, shards: int = 1, pinned: bool = False) -> int:
    """Bytes of the host's memory that each process takes for U, Vh and its rows of W; mapped files belong to none.

    pinned: for a CUDA device, where torch rounds each tensor up to a power of two.
    """
    if compute.factors != "cpu":
        return 0
    sizes = [
        numbers * WIDTH[compute.dtype]
        for rows, columns in shape.matrices
        for numbers in (
            rows * min(rows, columns),
            min(rows, columns) * columns,
            math.ceil(rows / shards) * columns,
        )
    ]
    return shape.layers * sum(1 << (size - 1).bit_length() if pinned else size for size in sizes)


def gathered(shape: Shape, width: int) -> dict[str, int]:
    """Weights that are whole for a while where they are dealt over processes. FSDP2 gathers into one buffer and copies
    out of it: the embeddings twice, and the first block; later the embeddings, a block, its buffer and the next one."""
    block = shape.adapted // shape.layers
    return {"gathered weights": max(2 * shape.embedded + block, shape.embedded + 3 * block) * width}


def decoding(shape: Shape, together: int, length: int, width: int) -> dict[str, int]:
    """Of so many texts that are sampled together, each up to `length` tokens; width: bytes of a number of the cache."""
    return {
        "cache of keys and values": together * length * cache_per_token(shape) * width,
        "logits of sampling": together * shape.vocabulary * FLOAT32 * SAMPLED_COPIES,
    }


def cache_per_token(shape: Shape) -> int:
    """Numbers that the cache keeps of one token."""
    return 2 * shape.layers * shape.kv_heads * shape.head_dim


def logits_of_training(shape: Shape, tokens: int) -> int:
    """Bytes of the largest tile of logits."""
    return min(tokens, TILE[0]) * min(shape.vocabulary, TILE[1]) * FLOAT32 * TILE_COPIES


def activations(shape: Shape, tokens: int, compute: ComputeSettings) -> int:
    """Bytes that the backward pass of so many tokens needs; with checkpointing of one block, and the input of each."""
    width = WIDTH[compute.dtype]
    attention = (
        (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim * 2
    )  # q, k, v, output; before and after rotation
    block = tokens * (KEPT_HIDDEN * shape.hidden + attention + KEPT_MLP * shape.mlp) * width
    ends = tokens * shape.hidden * (width + FLOAT32)  # the last hidden states and their gradient
    if compute.checkpointing:
        return shape.layers * tokens * shape.hidden * width + block + ends
    return shape.layers * block + ends
