"""`arms.<name>`: one intervention with its settings; a run is (arm, seed)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from projected_grpo.settings.section import Section, broken_rule


class ArmSettings(Section):
    """What one arm does during training."""

    intervention: Literal["measure", "erase"]
    """module of `interventions/`: measure acts on nothing, erase drops the hack-ward part of the update"""

    direction: Literal["hack", "random", "placebo", "permuted", "flipped"] | None = None
    """the basis V that the intervention acts on; only for interventions that act"""

    grader: Literal["loophole", "honest"] = "loophole"
    """what is rewarded: the flawed verdict `paid`, or `correct` alone (the upper bound)"""

    @model_validator(mode="after")
    def _direction_iff_acting(self) -> Self:
        if self.intervention == "measure" and self.direction is not None:
            raise broken_rule(
                "direction",
                self.direction,
                "`measure` acts on no direction; the setting would be ignored",
                "remove it, or choose another intervention",
            )
        if self.intervention != "measure" and self.direction is None:
            raise broken_rule(
                "direction",
                None,
                f"`{self.intervention}` needs a direction to act on",
                "set one of hack, random, placebo, permuted, flipped",
            )
        return self

    @property
    def contrast(self) -> Literal["hack", "placebo"] | None:
        """Which pairs the arm's V is extracted from, at the start and at each refresh; None if from none."""
        if self.direction is None or self.direction == "random":
            return None
        return "placebo" if self.direction == "placebo" else "hack"
