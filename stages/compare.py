"""Stage `compare`: every arm of `comparison` and the untrained base, the claims of hypotheses.yaml, tables and
figures.

H1 is judged on the arms of `comparison`; where they, the seeds or the confidence are not the registered ones, or
the analysis is not the frozen one, the run says so. Arms and their runs are named one by one, never taken from what
lies in a folder. Everything is computed before the first file is written. Writes metrics/compare.json,
plots/{training,alignment,arms,seeds,types}.csv, plots/arms.md, the figures of `report.figures` as PNG and SVG,
and plots/report.html.
"""

import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from projected_grpo.errors import exit_status
from projected_grpo.evaluation.comparison import gather
from projected_grpo.evaluation.hypothesis import BASE_ARM, Evidence
from projected_grpo.evaluation.metrics import DIGITS, measure, read_samples
from projected_grpo.evaluation.statistics import check_pairing
from projected_grpo.report import curves, tables
from projected_grpo.report.figures import figures
from projected_grpo.report.findings import cast_of, find, metrics
from projected_grpo.report.inputs import read_inputs
from projected_grpo.report.page import write_report
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.hypotheses import Hypotheses, read_hypotheses
from projected_grpo.settings.loader import Params, parse, read_params
from projected_grpo.storage import write_bytes, write_json, write_text

GRADED, RUNS = Path("data/graded"), Path("data/runs")


def main() -> None:
    compare(read_params(), read_hypotheses())


def compare(params: Params, hypotheses: Hypotheses) -> None:
    """Judge the claims and write the stage's outs."""
    evidence, steps = measured(parse(params, "comparison", ComparisonSettings), hypotheses)
    found = find(params, hypotheses, evidence)
    shown = steps[steps["arm"].isin(list(found.roles))]
    frames = {
        "training": curves.training_table(shown),
        "alignment": curves.alignment_table(shown),
        "arms": tables.arms_table(found.rates, found.roles, found.arms),
        "seeds": tables.seeds_table(found.rates, found.roles),
    }
    inputs = read_inputs(found, hypotheses, shown)
    frames["types"] = inputs.types.round(DIGITS)
    drawn = figures(inputs)
    write_json("metrics/compare.json", metrics(found))
    for name, frame in frames.items():
        write_text(f"plots/{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    for name, content in drawn.items():
        write_bytes(f"plots/{name}", content)
    write_report(inputs, Path("plots/report.html"))
    write_text("plots/arms.md", tables.markdown(found))

    console = Console()
    console.print(tables.terminal_table(found))
    console.print(tables.verdict_sentence(found.h1, found.confidence), style="bold", highlight=False)
    console.print("\n".join(tables.reason_lines(found.h1)), highlight=False, markup=False)
    console.print(found.registration.sentence(), highlight=False, markup=False)


def measured(settings: ComparisonSettings, hypotheses: Hypotheses) -> tuple[Evidence, pd.DataFrame]:
    """Every arm of the comparison and of the claims, and the training logs of those that were trained."""
    arms = [*cast_of(settings), *(arm for claim in hypotheses.of(folds=None).values() for arm in claim.arms)]
    results = {arm: measure(read_samples(GRADED, arm), arm) for arm in dict.fromkeys(arms)}
    for result in results.values():  # in the tables and the figures, too, like stands beside like
        check_pairing(results[settings.reference].hacks, result.hacks)
    seeds = {arm: list(result.hacks.seeds) for arm, result in results.items() if arm != BASE_ARM}
    steps = curves.read_steps(RUNS, seeds)
    curves.check_budget(RUNS, seeds)
    return gather(results, steps, settings.confidence), steps


if __name__ == "__main__":
    sys.exit(exit_status(main))
