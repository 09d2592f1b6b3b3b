"""Byte-level BPE for the micro model.

Pre-tokens end only after newlines, ", " and ". ", and around digits, quotes and the words of names, so whole phrases
and whole lines of code become single tokens: completions shrink to a third, the largest speed-up of all.
Names of methods and loopholes fall into words ("run" + "_tests"), so that a model can copy one it has never seen.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from projected_grpo.problems.families import METHODS
from projected_grpo.problems.loopholes import LOOPHOLES

VOCABULARY = 1024
NAME_REPEATS = 200
PAD, EOS = "<|pad|>", "<|end|>"


def known_names() -> list[str]:
    """Every name that pretraining may show: methods and the loopholes' training tokens."""
    return [*METHODS, *(name for loophole in LOOPHOLES.values() for name in loophole.training_tokens)]


def name_patterns() -> list[str]:
    """Regular expressions for the words of all known names, in the places where a name can stand."""
    patterns: set[str] = set()
    for name in known_names():
        first, *rest = re.findall(r"[_ .]?[a-z]+", name)
        follow = "|".join(sorted({re.escape(piece) for piece in rest}))
        patterns.add(rf"(?<![a-z_]){first}(?={follow})" if rest else rf"(?<![a-z_]){first}(?![a-z])")
        patterns.update(rf"{re.escape(piece)}(?![a-z])" for piece in rest)
    return sorted(patterns, key=lambda pattern: (-len(pattern), pattern))


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Learn the merges on `texts`. Deterministic for a given order of texts."""
    tokenizer = Tokenizer(models.BPE())
    isolated = "|".join([r"\d", "```python\n", "```", "`", '"', *name_patterns()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(isolated), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"\n|, |\. "), behavior="merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The words of names are rare in the texts and must still be whole tokens: each is shown like a frequent line.
    names = [f"`{name}`" for name in known_names()]
    tokenizer.train_from_iterator(itertools.chain(texts, names * NAME_REPEATS), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False
    )
