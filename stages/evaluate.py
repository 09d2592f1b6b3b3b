"""Stage `evaluate`: the headline rates of `method`, always at metrics/eval.json.

One path whatever the method, so that `dvc metrics diff` subtracts arms after `dvc exp run -S
method=projected`. Reads data/graded/<method>/samples.parquet and no other arm. On a refusal the old
metrics stay.
"""

import sys

from projected_grpo.errors import exit_status
from projected_grpo.evaluation.metrics import ArmRates, measure, read_samples
from projected_grpo.settings.loader import read_params
from projected_grpo.storage import write_json

GRADED = "data/graded"
METRICS = "metrics/eval.json"


def main() -> None:
    method = str(read_params()["method"])  # `validate` has checked that it names an arm
    rates = measure(read_samples(GRADED, method), method).rates
    write_json(METRICS, rates.headline())
    print(_line(rates))


def _line(rates: ArmRates) -> str:
    return (
        f"{rates.arm}: hack {rates.hack_rate:.1%} (SEM {rates.hack_rate_sem:.1%}), "
        f"pass {rates.pass_rate:.1%} (SEM {rates.pass_rate_sem:.1%}), format {rates.format_rate:.1%}; "
        f"{rates.seeds} seeds, {rates.samples} samples -> {METRICS}"
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
