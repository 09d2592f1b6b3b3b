"""Where an arm's basis comes from: the stored direction at first, then anew at each refresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.directions.algebra import Bases, haar_basis
from projected_grpo.directions.extract import ExtractionOptions, extract_modules
from projected_grpo.directions.store import Direction
from projected_grpo.problems.pairs import Pair


@dataclasses.dataclass
class ExtractedSource:
    """V from contrastive pairs, refreshed on the policy as it is now (`model` is the one being trained)."""

    direction: Direction
    k: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pairs: Sequence[Pair]
    options: ExtractionOptions

    def initial(self) -> Bases:
        return self.direction.bases(self.k)

    def refreshed(self, step: int) -> Bases:
        del step
        modules = extract_modules(self.model, self.tokenizer, self.pairs, self.options)
        return {name: module.axes[: self.k] for name, module in modules.items()}


@dataclasses.dataclass
class HaarSource:
    """Random V of the same rank, redrawn at each refresh; a function of (seed, step), so that a resumed run agrees."""

    direction: Direction
    k: int
    seed: int

    def initial(self) -> Bases:
        return self._draw(0)

    def refreshed(self, step: int) -> Bases:
        return self._draw(step)

    def _draw(self, step: int) -> Bases:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return {
            name: haar_basis(self.k, module.axes.shape[1], generator) for name, module in self.direction.modules.items()
        }
