"""What a comparison found: every arm, every claim's verdict, and how the run stands to what was frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from projected_grpo.evaluation.comparison import NO_NUMBER, ArmComparison, PowerNote, compare_arms, power_note
from projected_grpo.evaluation.hypothesis import BASE_ARM, Evidence, Judgement, Role, judge, roles
from projected_grpo.evaluation.metrics import ArmRates
from projected_grpo.evaluation.registration import Registration, departures, registration
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.hypotheses import PRIMARY, Hypotheses
from projected_grpo.settings.loader import Params, parse


@dataclass(frozen=True)
class Findings:
    """All that a comparison found; `judgements` has H1 first, `written` tells of each claim when it was written."""

    rates: Mapping[str, ArmRates]
    roles: Mapping[str, Role]
    arms: Mapping[str, ArmComparison]
    judgements: Sequence[Judgement]
    written: Mapping[str, str]
    registration: Registration
    power: PowerNote | None
    confidence: float

    @property
    def h1(self) -> Judgement:
        return self.judgements[0]


def cast_of(settings: ComparisonSettings) -> dict[str, Role]:
    """The arms of a comparison and the untrained base, in the order in which tables and figures list them."""
    return roles(
        base=BASE_ARM,
        treatment=settings.treatment,
        reference=settings.reference,
        controls=settings.controls,
        honest=settings.honest,
    )


def find(params: Params, hypotheses: Hypotheses, evidence: Evidence, root: Path = Path()) -> Findings:
    """Judge every claim that is not about folds, and compare every arm. H1 is judged on the arms of
    `comparison`, the others on their own; `root` holds hypotheses.yaml and hypotheses.lock.

    Raises:
        LabError: arms differ in seeds, problems or steps, or the lock cannot be read.
    """
    settings = parse(params, "comparison", ComparisonSettings)
    reference = evidence.arms[settings.reference].hacks
    h1 = hypotheses.primary.played_by(
        treatment=settings.treatment, reference=settings.reference, controls=settings.controls
    )
    claims = {**hypotheses.of(folds=None), PRIMARY: h1}
    judgements = [judge(name, claim, evidence) for name, claim in claims.items()]
    return Findings(
        rates={arm: result.rates for arm, result in evidence.arms.items()},
        roles=cast_of(settings),
        arms=compare_arms(evidence, settings.reference, h1.pass_fall.supported / 100 if h1.pass_fall else 0.0),
        judgements=judgements,
        written={name: claim.written for name, claim in claims.items()},
        registration=registration(departures(hypotheses, params, reference.seeds, settings), root),
        power=power_note(judgements[0], h1.supported_from, hypotheses.analysis.power, len(reference.problems)),
        confidence=settings.confidence,
    )


def metrics(found: Findings) -> dict[str, object]:
    """`metrics/compare.json`: `arms.<arm>.<key>`, `h1.<key>`, the other claims and the registration."""
    power = found.power.row() if found.power else {"seeds_needed_drop": NO_NUMBER, "seeds_needed_excess": NO_NUMBER}
    h1 = {**found.h1.headline(), **power}
    return {
        "arms": {arm: arm_row(found.rates[arm], found.arms[arm]) for arm in sorted(found.roles)},
        "h1": dict(sorted(h1.items())),
        **{judgement.name.lower(): judgement.row() for judgement in found.judgements[1:]},
        "registration": found.registration.row(),
    }


def arm_row(rates: ArmRates, comparison: ArmComparison) -> dict[str, float | int]:
    """One arm of `metrics/compare.json`: what it is by itself and beside the reference, in alphabetical order."""
    return dict(sorted({**rates.row(), **comparison.row()}.items()))
