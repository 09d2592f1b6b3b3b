"""No defence: every update is measured against the hack direction (by the trainer, as for all arms), none is changed.

With the loophole's grader this is `vanilla`; with the honest grader it is `rl_baseline`.
"""

from __future__ import annotations

from projected_grpo.directions.algebra import Bases
from projected_grpo.interventions.base import DirectionSource, Intervention


def build(settings: None, source: DirectionSource | None, reference: Bases | None = None) -> Intervention:
    """The intervention of this module; it takes no settings and no direction."""
    del settings, source, reference
    return Intervention()
