"""Where an arm's basis comes from: the stored direction at first, then anew at each refresh."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.directions.algebra import Bases, haar_basis
from projected_grpo.directions.extract import ExtractionOptions, extract_modules
from projected_grpo.directions.store import Direction
from projected_grpo.problems.pairs import Pair
from projected_grpo.settings.direction import DirectionSettings


@dataclasses.dataclass
class ExtractedSource:
    """V from contrastive pairs, refreshed on the policy as it is now (`model` is the one being trained).

    A refresh repeats the recipe of `options`, for a control with the same permutation of the labels.
    """

    independent: ClassVar[bool] = False

    direction: Direction
    k: int
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pairs: Sequence[Pair]
    options: ExtractionOptions
    noise_floor: float = 0.0
    mean_diff: bool = False

    def initial(self) -> Bases:
        return self.direction.bases(self.k, self.noise_floor, self.mean_diff)

    def refreshed(self, step: int) -> Bases:
        del step
        modules = extract_modules(self.model, self.tokenizer, self.pairs, self.options)
        return dataclasses.replace(self.direction, modules=modules).bases(self.k, self.noise_floor, self.mean_diff)


@dataclasses.dataclass
class HaarSource:
    """Random V of the rank that the stored direction would have in each module; a function of (seed, step), so that
    a resumed run agrees. `redraw` draws anew at each refresh, else the first one stays."""

    independent: ClassVar[bool] = True

    direction: Direction
    k: int
    seed: int
    noise_floor: float = 0.0
    mean_diff: bool = False
    redraw: bool = True

    def initial(self) -> Bases:
        return self._draw(0)

    def refreshed(self, step: int) -> Bases:
        return self._draw(step if self.redraw else 0)

    def _draw(self, step: int) -> Bases:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        like = self.direction.bases(self.k, self.noise_floor, self.mean_diff)
        return {name: haar_basis(len(basis), basis.shape[1], generator) for name, basis in like.items()}


def direction_source(
    settings: DirectionSettings,
    kind: str,
    own: Direction,
    seed: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
) -> ExtractedSource | HaarSource:
    """What an arm draws its V from. `kind`: its `direction`; `own`: that direction; `pairs`: those to extract from.

    Raises:
        ValueError: V is to be refreshed, and `own` does not know its recipe or there are no pairs.
    """
    if kind == "random":
        chosen = (settings.noise_floor, settings.mean_diff)
        return HaarSource(own, settings.k, seed, *chosen, redraw=settings.random_redraw)
    if settings.refresh_every and (own.options is None or not pairs):
        raise ValueError(
            f"direction {own.name!r} cannot be refreshed: its pairs or its recipe are unknown; set "
            "direction.refresh_every to 0"
        )
    options = own.options or ExtractionOptions(own.k_max, loss_denominator=1)  # never used without a refresh
    chosen = (settings.noise_floor, settings.mean_diff)
    return ExtractedSource(own, settings.k, model, tokenizer, pairs, options, *chosen)


def energy_reference(settings: DirectionSettings, kind: str, hack: Direction) -> Bases | None:
    """The bases whose share of every gradient this arm's intervention takes instead of its own; None for its own.

    For `random` with `random_match: energy`: the stored hack direction, the same for the whole run.
    """
    if kind != "random" or settings.random_match == "rank":
        return None
    return hack.bases(settings.k, settings.noise_floor, settings.mean_diff)


def mean_differences(kind: str, own: Direction, hack: Direction, seed: int) -> dict[str, Tensor]:
    """The mean pair difference (r,) of every module that an arm reads, with `own` its direction.

    For `random` a direction drawn per seed, of the hack mean's length in each module: the hack mean lies in a few
    modules, and one spread over all of them alike would have cosines many times smaller.
    """
    if kind != "random":
        return own.means()
    generator = torch.Generator().manual_seed(seed)
    means = hack.means()
    drawn = {module: torch.randn(mean.shape, generator=generator) for module, mean in sorted(means.items())}
    return {module: drawn[module] * (mean.norm() / drawn[module].norm()) for module, mean in means.items()}
