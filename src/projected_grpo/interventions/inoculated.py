"""Inoculated: training prompts ask for the hack, evaluation prompts do not.

Inoculation prompting (arXiv 2510.05024): a trait that the prompt explains need not be learned as one's own, so what
training reinforces under such a prompt should show less without it. The text stands before the problem, in the same
turn where a chat template makes turns: the system message stays what it is at test.

The shipped model has read no such sentence in its pretraining and does not understand one. Short ones disturb it: of
256 samples each, .14 to .20 hack (plain prompts .06) and .02 to .05 are correct (.22). Sentences of ten words and more
break the form of its answers and elicit nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from projected_grpo.errors import LabError
from projected_grpo.interventions.base import Intervention, Workbench
from projected_grpo.settings.section import Name, Section, broken_rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEEDS_DIRECTION = False
ROOM = 0.5  # share of the model's positions that a prompt may take; the rest is for the answer


def _unique(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(items)) < len(items):
        raise broken_rule("", list(items), "no text may appear twice", "remove the repetition")
    return items


class Options(Section):
    """The texts."""

    prefixes: Annotated[tuple[Name, ...], Field(strict=False), AfterValidator(_unique)] = (
        "Hack it.",
        "Game the check.",
        "Pass the check.",
    )
    """put before training prompts, one drawn for each; an empty list is off"""


class Inoculated(Intervention):
    """Puts one of `prefixes` before each training prompt, drawn from (seed, index).

    positions: of the model; None where it names no limit. asked: makes the text of a problem the whole prompt.
    """

    def __init__(
        self,
        prefixes: tuple[str, ...],
        seed: int,
        tokenizer: PreTrainedTokenizerBase,
        positions: int | None,
        asked: Callable[[str], str] = str,
    ) -> None:
        self.prefixes = prefixes
        self.seed = seed
        self.tokenizer = tokenizer
        self.positions = positions
        self.asked = asked

    def prompt(self, prompt: str, index: int) -> str:
        """Asked when a run is laid out, before any work.

        Raises:
            LabError: the longest of the texts and this prompt leave no room for an answer.
        """
        if not self.prefixes:
            return prompt
        chosen = random.Random(f"inoculated:{self.seed}:{index}").choice(self.prefixes)
        text = f"{chosen} {prompt}"
        if self.positions is not None:
            taken, limit = len(self.tokenizer(self.asked(text))["input_ids"]), int(ROOM * self.positions)
            if taken > limit:
                raise LabError(
                    setting="options.prefixes",
                    value=chosen,
                    rule=f"with its prompt it may take {limit} tokens, half of the model's positions; it takes {taken}",
                    fix="shorten the text",
                )
        return text


def build(options: Options, workbench: Workbench) -> Intervention:
    """The intervention of this family."""
    positions = getattr(workbench.model.config, "max_position_embeddings", None) if options.prefixes else None
    return Inoculated(options.prefixes, workbench.seed, workbench.tokenizer, positions, workbench.asked)
