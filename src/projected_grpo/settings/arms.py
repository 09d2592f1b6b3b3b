"""`arms.<name>`: one intervention with its settings; a run is (arm, seed).

What a family of interventions can be told (`options`) stands in the family's own file, so that a new one changes
nothing here; `interventions.registry` checks it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.loader import parse
from projected_grpo.settings.section import Name, Rate, Section, Unique, broken_rule

DirectionKind = Literal["hack", "random", "placebo", "permuted", "flipped", "clean"]


class TeacherSettings(Section):
    """Cached, graded-once completions of another policy in the groups (`projected-grpo pool build`)."""

    pool: Name
    """the pool's Parquet file, relative to the repository root"""

    mix: Annotated[Rate, Field(gt=0.0, lt=1.0)]
    """share of a group that comes from the pool, rounded to whole completions"""

    until_step: Annotated[int, Field(ge=0)] = 0
    """optimizer steps after which the teacher is silent; 0: it never is"""

    loopholes: Unique[Name] | None = None
    """only the pool's completions for these loopholes; null: all"""

    known_only: bool = False
    """only those for loopholes of the pairs that V is extracted from: what it does not know is not shown"""

    problems: Literal["cached", "all"] = "cached"
    """what is trained on: cached, the problems with enough of these completions; all, the others too, in groups that
    the policy samples whole"""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        if self.known_only and self.loopholes is not None:
            rule = "must be null where `known_only` is true: the pairs name the loopholes"
            raise broken_rule("loopholes", list(self.loopholes), rule, "remove it, or set known_only: false")
        return self


class ArmSettings(Section):
    """What one arm does during training."""

    intervention: Name
    """family: a file of `interventions/`. measure acts on nothing, erase drops the hack-ward part of the update, ..."""

    direction: DirectionKind | None = None
    """what the intervention acts on: the hack direction, the clean answers' span, or a control; null for none"""

    grader: Literal["loophole", "honest"] = "loophole"
    """what is rewarded: the flawed verdict `paid`, or `correct` alone (the upper bound)"""

    axes: dict[str, Any] = Field(default_factory=dict)
    """settings of the scale's `direction` block that this arm has otherwise. They are about the axes of V: how many,
    when they are refreshed, what is taken along them; a family may read some of them only"""

    options: dict[str, Any] = Field(default_factory=dict)
    """settings of the family, see its file"""

    teacher: TeacherSettings | None = None
    """completions of another policy mixed into each group; null: none"""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.axes and self.direction is None:
            rule = "must be empty for an arm without a direction; it would be ignored"
            raise broken_rule("axes", self.axes, rule, "remove it, or set a direction")
        if self.teacher is not None and self.grader == "honest":
            rule = "must be null where the grader is honest: the pool's verdicts are the flawed grader's"
            raise broken_rule("teacher", "(a block)", rule, "remove it, or set grader: loophole")
        return self

    @property
    def idle(self) -> bool:
        """No defence and no teacher: plain GRPO."""
        return self.intervention == "measure" and self.teacher is None

    @property
    def contrast(self) -> Literal["hack", "placebo"] | None:
        """Which pairs the arm's V is extracted from, at the start and at each refresh; None if from none."""
        if self.direction is None or self.direction == "random":
            return None
        return "placebo" if self.direction == "placebo" else "hack"


def direction_of(arm: ArmSettings, shared: DirectionSettings, path: str) -> DirectionSettings | None:
    """The scale's direction block with what the arm's `axes` set otherwise; None for an arm without a direction.

    `path`: the arm's place in params.yaml, for errors.

    Raises:
        ParamsError: with every fault of the two together.
    """
    if arm.direction is None:
        return None
    block = shared.model_dump(mode="json") | arm.axes
    return parse(nested(f"{path}.axes", block), f"{path}.axes", DirectionSettings)


def nested(path: str, block: Any) -> dict[str, Any]:
    """`block` under its dotted path, as `parse` walks it."""
    for key in reversed(path.split(".")):
        block = {key: block}
    return dict(block)
