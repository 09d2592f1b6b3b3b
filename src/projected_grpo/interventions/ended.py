"""Ended: a defence for the first steps only; from then on training is plain GRPO.

Does a policy that was kept from hacking stay away from it, or does it take the loophole as soon as nothing stops it
(relapse)? The defence is another family's, and is unchanged as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from projected_grpo.directions.algebra import Bases
from projected_grpo.errors import ParamsError
from projected_grpo.interventions import registry
from projected_grpo.interventions.base import Intervention, Parts, StepGradients, Vectors, Workbench
from projected_grpo.settings.section import Section

if TYPE_CHECKING:
    from projected_grpo.settings.arms import ArmSettings
    from projected_grpo.settings.direction import DirectionSettings

NEEDS_DIRECTION = True
NEEDS_ROLLOUT_GRADIENTS = True  # the guard does


class Options(Section):
    """What ends and when; the defence has its own options' defaults."""

    defence: Literal["erase", "guarded"] = "erase"
    """family that acts before the end"""

    after: Annotated[int, Field(ge=0)]
    """steps with the defence, the first ones; 0: none"""


class Ended(Intervention):
    """Before step `after` the hooks below go to `defence`, from then on to no defence.

    Hooks of prompts, rollouts, rewards, advantages and deployment are not passed on: the defences allowed have none.
    """

    def __init__(self, defence: Intervention, after: int) -> None:
        self.defence = defence
        self.after = after
        self._acting = defence

    def start_step(self, step: int) -> None:
        self._acting = self.defence if step < self.after else Intervention()
        self._acting.start_step(step)

    def gradient(self, gradients: StepGradients) -> Parts:
        return self._acting.gradient(gradients)

    def update(self, adapter: str, update: Vectors) -> Vectors:
        return self._acting.update(adapter, update)

    def purge(self, moments: Vectors) -> Vectors:
        return self._acting.purge(moments)

    def bases(self) -> Bases | None:
        return self._acting.bases()

    def scores(self) -> Sequence[float] | None:
        return self._acting.scores()

    def figures(self) -> dict[str, float]:
        return self._acting.figures()

    def state(self) -> dict[str, Tensor]:
        return self.defence.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.defence.load_state(state)


def modules(options: Options) -> tuple[str, ...]:
    """The defence's own file counts for what a run depends on."""
    return (f"projected_grpo.interventions.{options.defence}",)


def check(options: Options, arm: ArmSettings, direction: DirectionSettings | None) -> None:
    """Refuse what the defence by itself refuses.

    Raises:
        ParamsError: as its family's check, and axes that it does not read.
    """
    if faults := registry.unread_axes(options.defence, arm, "axes"):
        raise ParamsError(faults)
    defence = registry.family(options.defence)
    defence.check(defence.Options(), arm, direction)


def build(options: Options, workbench: Workbench) -> Ended:
    """The intervention of this family."""
    defence = registry.family(options.defence)
    return Ended(defence.build(defence.Options(), workbench), options.after)
