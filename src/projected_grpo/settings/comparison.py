"""`comparison`: which arms are shown, and which play the roles of H1."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from projected_grpo.settings.section import Name, Section, Unique


class ComparisonSettings(Section):
    """Roles of the arms in the H1 verdict; every name is a key of `arms`. Other roles than those that hypotheses.yaml
    registers are allowed, and the verdict says that they are others."""

    treatment: Name
    """arm whose drop in hack rate is claimed"""

    reference: Name
    """arm it is compared with, trained on the same seeds"""

    controls: Unique[Name]
    """arms that must not drop as much; the strongest is the one to beat"""

    honest: Name
    """arm trained with the honest grader: what could be learned at best"""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    """coverage of the intervals, a share"""
