"""hypotheses.yaml: what is claimed and how it is decided, written down before the runs that decide it.

Read like params.yaml, with its refusals. `projected-grpo freeze` records the file's hash; `compare` tells whether
the analysis that ran is the frozen one (`evaluation.registration`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from projected_grpo.errors import LabError, ParamsError
from projected_grpo.settings.loader import Params, did_you_mean, parse, read_params, unknown_name
from projected_grpo.settings.section import Name, NonNegative, Rate, Section, Seed, Unique, broken_rule

HYPOTHESES = "hypotheses.yaml"
PRIMARY = "H1"  # the one whose verdict is the headline; the arms of `comparison` in params.yaml play its roles

NAME = r"H[1-9][0-9]*"

Model = TypeVar("Model", bound=BaseModel)
Metric = Literal["hack_rate", "pass_rate", "train_token_hack_rate", "hacks_lead_step", "half_hacked_step"]
FOLD_METRICS = ("hack_rate", "pass_rate")
Bodies = Literal["lazy", "matched"]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class AnalysisSettings(Section):
    """What holds for every hypothesis."""

    seeds: Unique[Seed]
    """training seeds of every arm"""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    """coverage of the intervals, a share"""

    power: Share
    """probability with which the seeds that the power note asks for would show the effect"""

    settings: dict[str, Any]
    """dotted names of params.yaml with the values under which all claims are judged; another value is a departure"""

    folds: dict[str, Any]
    """the same of what makes the folds, for the claims on them alone; null: must not be set"""


class PassSettings(Section):
    """How far the treatment's pass rate may fall below the reference's; a gain never counts against."""

    supported: NonNegative
    """largest fall that still supports, in points"""

    falsified: NonNegative
    """a larger fall falsifies, in points"""

    @model_validator(mode="after")
    def _ordered(self) -> PassSettings:
        if self.falsified < self.supported:
            rule = f"must be at least `supported` ({self.supported:g})"
            raise broken_rule("falsified", self.falsified, rule, "a fall cannot both support and falsify")
        return self


class IntactSettings(Section):
    """What the treatment must not lose against the untrained base: a defence that wrecks the model is none."""

    pass_fall: NonNegative
    """largest fall of the pass rate, in points"""

    format_share: Rate
    """smallest share of the base's format rate"""


class HypothesisSettings(Section):
    """One claim. The effect is how much better the treatment is than the reference: in points (100 x a rate) or
    in steps (a time); `null` where a clause is not asked."""

    statement: Name
    """the claim in words"""

    written: Literal["before_data", "before_treatment", "after_data"]
    """whether the thresholds were set before any run could be seen, before any of the treatment (those of the reference
    and of controls had been), or after"""

    folds: Bodies | None = None
    """null: judged by `compare` on the arms of the main pipeline; else by the study stage `folds` on the unseen
    loopholes of all folds whose pairs have these bodies"""

    metric: Metric
    """what is compared; rates are on held-out problems, with held-out names unless they say `train_token`"""

    better: Literal["lower", "higher"]
    """which way of the metric is the claimed one"""

    treatment: Name
    """arm that the claim is about"""

    reference: Name
    """arm that it is compared with"""

    controls: Annotated[tuple[Name, ...], Field(strict=False)]
    """arms whose effect the treatment's must exceed, the strongest first; its interval must lie above 0"""

    supported_from: float
    """smallest effect that supports"""

    falsified_below: float
    """a smaller effect falsifies"""

    interval_above: float | None
    """the effect's interval must lie above this"""

    falsified_within_sem: NonNegative | None
    """an effect within so many standard errors (over seeds) of zero, or below, falsifies"""

    pass_fall: PassSettings | None
    """bounds on the pass rate"""

    intact: IntactSettings | None
    """bounds against the untrained base"""

    @model_validator(mode="after")
    def _consistent(self) -> HypothesisSettings:
        if self.falsified_below > self.supported_from:
            rule = f"must not exceed `supported_from` ({self.supported_from:g})"
            raise broken_rule("falsified_below", self.falsified_below, rule, "an effect cannot support and falsify")
        if self.folds is not None and (self.metric not in FOLD_METRICS or self.intact is not None):
            rule = f"must be null but for a claim on {' or '.join(FOLD_METRICS)} whose `intact` is null"
            raise broken_rule("folds", self.folds, rule, "folds have no untrained base and no such metric")
        others = (self.reference, *self.controls)
        twice = [name for name in (self.treatment, *self.controls) if (self.treatment, *others).count(name) > 1]
        if twice:
            raise broken_rule("controls", twice[0], "an arm plays one role", "name each arm once")
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.treatment, self.reference, *self.controls)

    def played_by(self, *, treatment: str, reference: str, controls: tuple[str, ...]) -> HypothesisSettings:
        """The same claim about other arms."""
        return self.model_copy(update={"treatment": treatment, "reference": reference, "controls": controls})


@dataclass(frozen=True)
class Hypotheses:
    """The whole file: what holds for every claim, and the claims by name."""

    analysis: AnalysisSettings
    claims: Mapping[str, HypothesisSettings]

    @property
    def primary(self) -> HypothesisSettings:
        return self.claims[PRIMARY]

    def of(self, folds: str | None) -> dict[str, HypothesisSettings]:
        """The claims on the main pipeline's arms (None), or on the folds with these bodies, by rising number."""
        names = sorted(self.claims, key=lambda name: int(name[1:]))
        return {name: self.claims[name] for name in names if self.claims[name].folds == folds}


def read_hypotheses(path: str | os.PathLike[str] = HYPOTHESES) -> Hypotheses:
    """The file, checked.

    Raises:
        ParamsError: it is missing, unreadable, lacks H1, or breaks a rule; with every fault.
    """
    content = {"hypotheses": read_params(path)}
    faults: list[LabError] = []
    for key, value in content["hypotheses"].items():
        if key not in ("analysis", "claims"):
            fix = did_you_mean(key, ["analysis", "claims"])
            faults.append(LabError(setting=f"hypotheses.{key}", value=value, rule="no such setting", fix=fix))
    analysis = _collect(content, "hypotheses.analysis", AnalysisSettings, faults)
    block = content["hypotheses"].get("claims")
    names = list(block) if isinstance(block, Mapping) else []
    if PRIMARY not in names:
        faults.append(unknown_name("hypotheses.claims", names, [PRIMARY], f"must hold {PRIMARY}, the headline"))
    claims = {}
    for name in names:
        if not re.fullmatch(NAME, str(name)):
            rule = "a claim's name is H and a number"
            faults.append(LabError(setting="hypotheses.claims", value=name, rule=rule, fix="name it H5, say"))
            continue
        claim = _collect(content, f"hypotheses.claims.{name}", HypothesisSettings, faults)
        if claim is not None:
            claims[name] = claim
    if PRIMARY in claims and not claims[PRIMARY].controls:
        rule, fix = "the headline needs a control", "name the arms that must not do as well"
        faults.append(LabError(setting=f"hypotheses.claims.{PRIMARY}.controls", value=[], rule=rule, fix=fix))
    if PRIMARY in claims and claims[PRIMARY].folds is not None:
        rule, fix = "the headline is about the main pipeline's arms", "set null, or make it another claim"
        setting = f"hypotheses.claims.{PRIMARY}.folds"
        faults.append(LabError(setting=setting, value=claims[PRIMARY].folds, rule=rule, fix=fix))
    if faults:
        raise ParamsError(faults)
    assert analysis is not None
    return Hypotheses(analysis, claims)


def _collect(content: Params, path: str, model: type[Model], faults: list[LabError]) -> Model | None:
    """`parse`, with the faults put on the list instead of raised."""
    try:
        return parse(content, path, model)
    except ParamsError as error:
        faults.extend(error.faults)
        return None


def check_arms(hypotheses: Hypotheses, arms: Collection[str]) -> None:
    """Refuse a hypothesis about an arm that params.yaml does not have.

    Raises:
        ParamsError: with every such name.
    """
    faults = [
        LabError(
            setting=f"hypotheses.claims.{name}",
            value=arm,
            rule="must name an arm of params.yaml",
            fix=did_you_mean(arm, list(arms)),
        )
        for name, hypothesis in hypotheses.claims.items()
        for arm in hypothesis.arms
        if arm not in arms
    ]
    if faults:
        raise ParamsError(faults)
