"""`scales.<scale>.direction`: what the direction is, shared by the projected arm and its controls.

The fields with a default are refinements that are off; a block need not name them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from projected_grpo.errors import LabError
from projected_grpo.settings.section import Count, Section, broken_rule

if TYPE_CHECKING:
    from projected_grpo.settings.extract import ExtractSettings


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

    overshoot: Annotated[float, Field(ge=0.0, le=10.0)] = 1.0
    """what the gate takes is taken so many times: 1 removes it, 1.1 leaves a tenth of it pointing the other way, 0
    takes nothing"""

    preserve_magnitude: bool = False
    """scale what is left of a matrix's gradient to the length it had before"""

    purge_moments: bool = False
    """at each refresh, clear the new V's span from Adam's running mean of the gradient"""

    noise_floor: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """quantile of all matrices' singular values: weaker axes are not used, a matrix may be left with none; 0 is off"""

    mean_diff: bool = False
    """V is the mean pair difference alone (k must be 1), in place of the strongest axes"""

    random_match: Literal["rank", "energy"] = "rank"
    """the random control removes as many axes as V (rank); with energy also as much of each gradient as the stored
    hack direction, which no refresh changes, would"""

    random_redraw: bool = True
    """the random control is drawn anew at each refresh; false keeps its first draw"""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        if self.mean_diff and self.k != 1:
            rule = "must be 1 where mean_diff is true: the mean difference is one axis"
            raise broken_rule("k", self.k, rule, "set k: 1, or mean_diff: false")
        if self.mean_diff and self.noise_floor:
            rule = "must be 0 where mean_diff is true: a mean has no singular value"
            raise broken_rule("noise_floor", self.noise_floor, rule, "set 0, or mean_diff: false")
        if self.purge_moments and not self.refresh_every:
            rule = "must be false where refresh_every is 0: moments are purged at a refresh"
            raise broken_rule("purge_moments", True, rule, "set false, or refresh V")
        if self.preserve_magnitude and self.random_match == "energy":
            rule = "must be rank where preserve_magnitude is true: the rescaling would undo the match"
            raise broken_rule("random_match", self.random_match, rule, "set rank, or preserve_magnitude: false")
        if not self.random_redraw and not self.refresh_every:
            rule = "must be true where refresh_every is 0: nothing is drawn anew"
            raise broken_rule("random_redraw", False, rule, "set true, or refresh V")
        if self.preserve_magnitude and self.gate == "reverse" and self.overshoot == 1.0:
            rule = "must be false where gate is reverse: a reflection keeps the length by itself"
            raise broken_rule("preserve_magnitude", True, rule, "set false")
        return self


def beyond_extraction(direction: DirectionSettings, extract: ExtractSettings, path: str) -> list[LabError]:
    """What `direction` asks for and an extraction by `extract` does not give. `path`: what errors call `direction`."""
    faults = []
    if direction.k > extract.k_max:
        rule, fix = f"must not exceed extract.k_max ({extract.k_max})", "lower k, or raise k_max (which extracts anew)"
        faults.append(LabError(setting=f"{path}.k", value=direction.k, rule=rule, fix=fix))
    if extract.direction_file is not None and direction.refresh_every != 0:
        rule = "must be 0 where extract.direction_file is given: a refresh would replace the given direction"
        fix = "set 0, or direction_file: null"
        faults.append(LabError(setting=f"{path}.refresh_every", value=direction.refresh_every, rule=rule, fix=fix))
    return faults
