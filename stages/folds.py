"""Stage `folds` of study/dvc.yaml: the weak detector, all studies whose V does not know every loophole.

Which studies these are, and what is unseen, is read from their settings. The arms that know no pairs are those of the
study that a fold starts from, where it trains none itself. Everything is computed before the first file is written.
Writes metrics/study/folds.json, plots/study/folds.{csv,md,png,svg}.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from projected_grpo.errors import LabError, exit_status
from projected_grpo.evaluation.controls import controls_of
from projected_grpo.evaluation.folds import Fold, fold_arms, fold_of, pooled
from projected_grpo.evaluation.hypothesis import Evidence, Judgement, judge
from projected_grpo.evaluation.registration import departures, registration
from projected_grpo.evaluation.study import read_study_samples
from projected_grpo.report import folds as report
from projected_grpo.report.tables import claim_sentence
from projected_grpo.settings.arms import ArmSettings, TeacherSettings
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.hypotheses import HYPOTHESES, Hypotheses, read_hypotheses
from projected_grpo.settings.loader import CHANGEABLE, Params, parse, read_params, section
from projected_grpo.settings.problems import ProblemsSettings
from projected_grpo.settings.studies import StudySettings, paths_of
from projected_grpo.storage import write_bytes, write_json, write_text

PLOTS = Path("plots/study")


def folds(params: Params) -> list[Fold]:
    """The studies that are folds, in the order of params.yaml."""
    found = []
    for name in params["studies"]:
        changed = read_params(study=name)
        problems, extract = section(changed, "problems", ProblemsSettings), section(changed, "extract", ExtractSettings)
        fold = fold_of(name, problems, extract)
        if fold is not None:
            found.append(fold)
    if not found:
        raise LabError(
            setting="studies",
            value="no fold",
            rule="a fold extracts from pairs about some of its problems' loopholes, not all",
            fix="add a study with problems.loopholes and fewer extract.loopholes",
        )
    return found


def fold_samples(params: Params, fold: Fold) -> dict[str, pd.DataFrame]:
    """Graded samples of the arms of one fold, those that know no pairs first."""
    own = parse(params, f"studies.{fold.study}", StudySettings)
    samples = read_study_samples(paths_of(params, fold.study).graded, own.arms)
    if own.of is not None:
        samples = read_study_samples(paths_of(params, own.of).graded, _borrowed(params, fold.study, own)) | samples
    return samples


def by_teacher(
    arms: Mapping[str, ArmSettings], samples: Mapping[str, pd.DataFrame]
) -> Iterable[dict[str, pd.DataFrame]]:
    """The arms of one fold, apart by their teacher: each is compared with the first that has the same one."""
    parts: dict[TeacherSettings | None, dict[str, pd.DataFrame]] = {}
    for arm, rows in samples.items():
        parts.setdefault(arms[arm].teacher, {})[arm] = rows
    return parts.values()


def judged(
    plan: Hypotheses, measured: Sequence[tuple[Fold, Mapping[str, pd.DataFrame]]], confidence: float
) -> list[Judgement]:
    """The claims on folds, each judged on all folds with its bodies.

    Raises:
        LabError: a claim is about bodies that no fold has, or about an arm that not every such fold has.
    """
    found = []
    evidence: dict[str, Evidence] = {}
    for name, claim in plan.claims.items():
        if claim.folds is None:
            continue
        chosen = [(fold, samples) for fold, samples in measured if fold.bodies == claim.folds]
        missing = [arm for arm in claim.arms if any(arm not in samples for _, samples in chosen)]
        if missing or not chosen:
            setting = f"{HYPOTHESES}: claims.{name}"
            value = f"arm {missing[0]}" if missing else f"folds: {claim.folds}"
            rule = "must be in every fold with these bodies" if missing else "must be the bodies of some fold"
            raise LabError(setting=setting, value=value, rule=rule, fix="change the claim, or the studies it is about")
        if claim.folds not in evidence:
            evidence[claim.folds] = pooled(chosen, confidence)
        found.append(judge(name, claim, evidence[claim.folds]))
    return found


def _borrowed(params: Params, study: str, own: StudySettings) -> list[str]:
    """The arms of what a fold starts from that know no pairs, and so are the same in the fold.

    Raises:
        LabError: the fold changes more than its pairs, so that they are not.
    """
    changed = [name for name in CHANGEABLE if name != "extract" and getattr(own, name)]
    if changed:
        rule = f"must change `extract` alone, for its reference is trained by {own.of}; it changes {', '.join(changed)}"
        fix = f"set these in {own.of}, or name no study in `of`"
        raise LabError(setting=f"studies.{study}", value=changed[0], rule=rule, fix=fix)
    arms = {
        arm: parse(params, f"arms.{arm}", ArmSettings) for arm in parse(params, f"studies.{own.of}", StudySettings).arms
    }
    plain = ArmSettings(intervention="erase", direction="random")
    return [name for name, arm in arms.items() if name not in own.arms and (arm.idle or arm == plain)]


def main() -> None:
    params = read_params()
    confidence = parse(params, "comparison", ComparisonSettings).confidence
    arms = {arm: parse(params, f"arms.{arm}", ArmSettings) for arm in params["arms"]}
    links = controls_of(arms)
    measured = [(fold, fold_samples(params, fold)) for fold in folds(params)]
    found = [
        row
        for fold, samples in measured
        for part in by_teacher(arms, samples)
        for row in fold_arms(fold, part, links, confidence)
    ]
    plan = read_hypotheses()
    claims = judged(plan, measured, confidence)
    seeds = sorted(
        {int(seed) for _, samples in measured for rows in samples.values() for seed in rows["seed"].unique()}
    )
    held = registration(departures(plan, params, seeds))
    drawn = {"png": report.figure(found, "png"), "svg": report.figure(found, "svg")}

    write_json("metrics/study/folds.json", report.metrics(found, claims, held))
    write_text(PLOTS / "folds.csv", report.table(found).to_csv(index=False, lineterminator="\n"))
    written = {name: claim.written for name, claim in plan.claims.items()}
    write_text(PLOTS / "folds.md", report.markdown(found, confidence, claims, held, written))
    for kind, content in drawn.items():
        write_bytes(PLOTS / f"folds.{kind}", content)
    print(f"weak detector: {len({row.fold for row in found})} folds; the table is in {PLOTS}/folds.md")
    print("\n".join(claim_sentence(claim, confidence) for claim in claims))


if __name__ == "__main__":
    sys.exit(exit_status(main))
