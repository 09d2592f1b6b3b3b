"""Stage `table` of study/dvc.yaml: the arms of one study, each beside the first.

Arms are named one by one, never taken from what lies in a folder; a missing one is an error. Everything is computed
before the first file is written. Writes metrics/study/<study>.json, table and figures into plots/study/, and, apart
from them because times differ between equal runs, data/study/<study>/cost/.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from projected_grpo.errors import exit_status
from projected_grpo.evaluation.controls import controls_of
from projected_grpo.evaluation.study import (
    Cost,
    StudyArm,
    dose_series,
    ends_of,
    read_costs,
    read_study_samples,
    study_arms,
)
from projected_grpo.report import study as report
from projected_grpo.report.curves import read_steps
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.loader import Params, parse, read_params, section
from projected_grpo.settings.seeds import Seeds
from projected_grpo.settings.studies import StudySettings, paths_of
from projected_grpo.storage import atomic_directory, write_bytes, write_json, write_text

PLOTS = Path("plots/study")


def measured(
    params: Params, study: str, confidence: float, arms: Mapping[str, ArmSettings], links: Mapping[str, str]
) -> tuple[list[StudyArm], pd.DataFrame, list[Cost]]:
    """The arms of one study, their training logs, and what they took."""
    names = list(arms)
    seeds = section(read_params(study=study), "seeds", Seeds).root
    paths = paths_of(params, study)
    steps = read_steps(paths.runs, dict.fromkeys(names, seeds))
    samples = read_study_samples(paths.graded, names)
    found = study_arms(study, samples, steps, confidence, ends_of(arms), links)
    return found, steps, read_costs(study, paths.provenance, names, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True)
    name: str = parser.parse_args().study
    params = read_params()
    confidence = parse(params, "comparison", ComparisonSettings).confidence
    names = parse(params, f"studies.{name}", StudySettings).arms
    arms = {arm: parse(params, f"arms.{arm}", ArmSettings) for arm in names}
    links = controls_of(arms)
    found, steps, costs = measured(params, name, confidence, arms, links)
    doses = dose_series(arms, section(read_params(study=name), "direction", DirectionSettings))
    drawn = report.figures(name, found, steps, links, doses)

    write_json(f"metrics/study/{name}.json", report.metrics(found))
    write_text(PLOTS / f"{name}.csv", report.table(found).to_csv(index=False, lineterminator="\n"))
    write_text(PLOTS / f"{name}.md", report.markdown(found, confidence, doses))
    for file, content in drawn.items():
        write_bytes(PLOTS / file, content)
    with atomic_directory(f"data/study/{name}/cost") as folder:
        write_text(folder / "cost.csv", report.cost_table(costs).to_csv(index=False, lineterminator="\n"))
        write_text(folder / "cost.md", report.cost_markdown(costs))
    print(f"{name}: {len(found)} arms; the table is in {PLOTS}/{name}.md, what they took in data/study/{name}/cost")


if __name__ == "__main__":
    sys.exit(exit_status(main))
