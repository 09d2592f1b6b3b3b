"""`scales.<scale>.extract`: how directions are found.

The fields with a default are refinements that are off; a block need not name them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from projected_grpo.settings.section import Count, Name, Section, Seed, Unique


class ExtractSettings(Section):
    """Contrastive pairs in, up to `k_max` axes per matrix out."""

    pairs: Name
    """contrastive pairs, relative to the repository root: YAML, or a JSON list of {prompt, hack, clean}"""

    k_max: Count
    """axes stored per adapted matrix"""

    bodies: Literal["both", "lazy", "matched"]
    """which pairs count: hacks with a lazy wrong body, hacks with the body of the clean answer, or both"""

    loopholes: Unique[Name] | None = None
    """only pairs about these loopholes: a detector that does not know the others; null: all"""

    direction_file: Name | None
    """use this .safetensors direction instead of extracting one; null extracts"""

    loss: Literal["fixed", "token_mean"] = "fixed"
    """an answer's loss: its sum over tokens / grpo.max_new_tokens, as in training, or its mean over tokens"""

    tau_axis: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """axes weaker than this share of their matrix's strongest one are not stored; 0 is off"""

    centred: bool = False
    """take the mean difference off before the SVD: axes of what varies between pairs"""

    control_seed: Seed = 0
    """seed of the controls: the stored random axes, the permutation and the flips of labels"""
