"""No defence: every update is measured against the hack direction (by the trainer, as for all arms), none is changed.

With the loophole's grader this is `vanilla`; with the honest grader it is `rl_baseline`.
"""

from __future__ import annotations

from projected_grpo.interventions.base import Intervention, Workbench
from projected_grpo.settings.section import Section

NEEDS_DIRECTION = False


class Options(Section):
    """There is nothing to set."""


def build(options: Options, workbench: Workbench) -> Intervention:
    """The intervention of this family."""
    del options, workbench
    return Intervention()
