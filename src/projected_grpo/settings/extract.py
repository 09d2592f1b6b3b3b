"""`scales.<scale>.extract`: how directions are found."""

from __future__ import annotations

from typing import Literal

from projected_grpo.settings.section import Count, Name, Section


class ExtractSettings(Section):
    """Contrastive pairs in, up to `k_max` axes per matrix out."""

    pairs: Name
    """YAML file of contrastive pairs, relative to the repository root"""

    k_max: Count
    """axes stored per adapted matrix"""

    bodies: Literal["both", "lazy", "matched"]
    """which pairs count: hacks with a lazy wrong body, hacks with the body of the clean answer, or both"""

    direction_file: Name | None
    """use this .safetensors direction instead of extracting one; null extracts"""
