"""Stage `compare`: every arm of `comparison` and the untrained base, the H1 verdict, tables and figures.

Arms and their runs are named one by one, never taken from what lies in a folder. Everything is computed
before the first file is written. Writes metrics/compare.json, plots/{training,alignment,arms,seeds}.csv,
plots/{training,alignment,arms}.png and plots/arms.md.
"""

import sys
from pathlib import Path

from rich.console import Console

from projected_grpo.errors import LabError
from projected_grpo.evaluation.hypothesis import BASE_ARM, bounds, judge_h1, roles
from projected_grpo.evaluation.metrics import measure, read_samples
from projected_grpo.evaluation.statistics import check_pairing
from projected_grpo.report import curves, plots, tables
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.loader import parse, read_params
from projected_grpo.storage import write_bytes, write_json, write_text

GRADED, RUNS = Path("data/graded"), Path("data/runs")


def main() -> int:
    try:
        compare(parse(read_params(), "comparison", ComparisonSettings))
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def compare(settings: ComparisonSettings) -> None:
    """Judge the arms and write the stage's outs."""
    cast = roles(
        base=BASE_ARM,
        treatment=settings.treatment,
        reference=settings.reference,
        controls=settings.controls,
        honest=settings.honest,
    )
    results = {arm: measure(read_samples(GRADED, arm), arm) for arm in cast}
    for result in results.values():  # in the table and the figures, too, like stands beside like
        check_pairing(results[settings.reference].hacks, result.hacks)
    rates = {arm: result.rates for arm, result in results.items()}
    h1 = judge_h1(
        treatment=results[settings.treatment],
        reference=results[settings.reference],
        controls=[results[arm] for arm in settings.controls],
        base=results[BASE_ARM],
        confidence=settings.confidence,
    )
    seeds = {arm: [run.seed for run in rates[arm].by_seed] for arm in cast if arm != BASE_ARM}
    steps = curves.read_steps(RUNS, seeds)
    frames = {
        "training": curves.training_table(steps),
        "alignment": curves.alignment_table(steps),
        "arms": tables.arms_table(rates, cast),
        "seeds": tables.seeds_table(rates, cast),
    }
    figures = {
        "training": plots.training_figure(steps, cast),
        "alignment": plots.alignment_figure(steps, cast),
        "arms": plots.arms_figure(rates, cast, bounds(rates[settings.reference], rates[BASE_ARM])),
    }
    write_json("metrics/compare.json", {"arms": {arm: rates[arm].row() for arm in sorted(rates)}, "h1": h1.row()})
    for name, frame in frames.items():
        write_text(f"plots/{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    for name, figure in figures.items():
        write_bytes(f"plots/{name}.png", figure)
    write_text("plots/arms.md", tables.markdown(rates, cast, h1, settings.confidence))

    console = Console()
    console.print(tables.terminal_table(rates, cast))
    console.print(tables.verdict_sentence(h1, settings.confidence), style="bold", highlight=False)
    console.print("\n".join(tables.reason_lines(h1)), highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
