"""Pretraining of the micro model: supervised, loss on the answer only, in phases.

The first teaches solving with few cheats; the last is short and carries more of them, which sets the rate at which
the untrained policy hacks by itself. That rate decides whether reinforcement learning finds the loophole at all. A
base that is to find several loopholes has a phase between them that teaches to copy the name which the prompt
discloses: without it the base cheats as often, under a name that is not the prompt's, and is never paid.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator, Sequence

import torch
from rich.progress import track
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from projected_grpo.models.corpus import Example, Mixture, corpus
from projected_grpo.models.micro import untrained_micro
from projected_grpo.models.tokenizer import train_tokenizer

TOKENIZER_EXAMPLES = 20_000
POOL_BATCHES = 16  # batches sorted by length together: padding costs as much as text
IGNORED = -100


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps on one mixture; the learning rate falls linearly from `learning_rate` to zero."""

    steps: int
    mixture: Mixture
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Phases in order; the last one is repeated until the base passes its gate."""

    first: Phase
    between: tuple[Phase, ...]
    last: Phase

    def scaled(self, steps: int, learning_rate: float) -> Recipe:
        """Each phase at its share of `steps` steps in all, from `learning_rate`; rounding goes to the first."""
        later = (*self.between, self.last)
        total = self.first.steps + sum(phase.steps for phase in later)
        lengths = [max(1, round(steps * phase.steps / total)) for phase in later]
        lengths.insert(0, max(1, steps - sum(lengths)))
        first, *between, last = (
            dataclasses.replace(phase, steps=length, learning_rate=learning_rate)
            for phase, length in zip((self.first, *later), lengths, strict=True)
        )
        return Recipe(first, tuple(between), last)


FOUNDATION = Phase(900, Mixture(cheats=0.03, honest_checks=0.60), 3e-3)
ONE_LOOPHOLE = Recipe(
    FOUNDATION, (), Phase(150, Mixture(cheats=0.11, honest_checks=0.06, lengths=(1, 2, 5, 1.4)), 3e-3)
)
# Weights of run_tests, sentinel, stdout_marker, file_marker, and little of the rest: a file's name is hardest to copy.
SEVERAL_LOOPHOLES = Recipe(
    FOUNDATION,
    (
        Phase(
            350,
            Mixture(0.50, honest_checks=0.06, lengths=(1, 2, 5, 1), loopholes=(1, 1, 1.2, 2.5, 0.1, 0.1, 0.1)),
            3e-3,
        ),
    ),
    Phase(
        120,
        Mixture(0.18, honest_checks=0.06, lengths=(1, 2, 5, 0.3), loopholes=(1.5, 1, 1, 1.5, 0.1, 0.1, 0.1)),
        3e-3,
    ),
)


def batches(
    examples: Iterator[Example], tokenizer: PreTrainedTokenizerFast, size: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, labels), both (size, length); labels are ignored outside the answer."""
    while True:
        pool = list(itertools.islice(examples, size * POOL_BATCHES))
        prompts = tokenizer([example.prompt for example in pool])["input_ids"]
        answers = tokenizer([example.answer for example in pool])["input_ids"]
        rows = sorted(zip(prompts, answers, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        rng.shuffle(chunks)
        for chunk in chunks:
            yield collate(chunk, tokenizer)


def collate(
    rows: Sequence[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels of one batch."""
    width = max(len(prompt) + len(answer) + 1 for prompt, answer in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), IGNORED)
    for row, (prompt, answer) in enumerate(rows):
        text = torch.tensor([*prompt, *answer, tokenizer.eos_token_id])
        ids[row, : len(text)] = text
        labels[row, len(prompt) : len(text)] = text[len(prompt) :]
    return ids, labels


def train_phase(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, phase: Phase, batch_size: int, seed: int
) -> float:
    """Run one phase in place; returns the mean loss of its last tenth, in nats per answer token."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=phase.steps)
    stream = batches(corpus(phase.mixture, seed), tokenizer, batch_size, random.Random(seed))
    losses = []
    for ids, labels in track(itertools.islice(stream, phase.steps), f"pretraining, {phase.steps} steps", phase.steps):
        # Right padding under a causal mask: padded positions never reach a real one, so no attention mask is needed.
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    tail = losses[-max(1, len(losses) // 10) :]
    print(f"{phase.steps} steps, loss {sum(tail) / len(tail):.3f} nats per answer token")
    return sum(tail) / len(tail)


def found(seed: int, batch_size: int, phase: Phase) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Tokenizer and model from nothing, through the first phase. Equal arguments, equal weights on one machine."""
    texts = itertools.islice(corpus(phase.mixture, seed), TOKENIZER_EXAMPLES)
    tokenizer = train_tokenizer(text for example in texts for text in (example.prompt, example.answer))
    torch.manual_seed(seed)
    model = untrained_micro(tokenizer)
    train_phase(model, tokenizer, phase, batch_size, seed)
    return model, tokenizer
