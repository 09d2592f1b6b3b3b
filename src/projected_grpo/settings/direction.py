"""`scales.<scale>.direction`: what the direction is, shared by the projected arm and its controls."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from projected_grpo.settings.section import Count, Section


class DirectionSettings(Section):
    """One block for all arms that act on a direction: a change retrains them together."""

    k: Count
    """axes of V per adapted matrix, at most `extract.k_max`"""

    gate: Literal["one_sided", "both_sides", "reverse"]
    """one_sided drops the hack-ward component, both_sides all of the span, reverse reflects the former"""

    refresh_every: Annotated[int, Field(ge=0)]
    """optimizer steps between extractions from the current policy; 0 keeps the first V"""

    project: Literal["gradient", "update", "both"]
    """what is projected: the gradient, the optimizer's update, or both"""
