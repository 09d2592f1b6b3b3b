"""Stage `extract`: the hack direction from contrastive pairs, and its controls, up to k_max axes per matrix."""

import argparse
import sys

from projected_grpo.directions.build import build_directions
from projected_grpo.errors import LabError, exit_status
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.studies import paths_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study")
    study = parser.parse_args().study
    params = read_params(study=study)
    paths = paths_of(params, study)
    settings = section(params, "extract", ExtractSettings)
    compute = section(params, "compute", ComputeSettings)
    tokens = section(params, "grpo", GrpoSettings).max_new_tokens
    try:
        figures = build_directions(settings, compute, tokens, paths.base, paths.pairs, paths.directions)
    except (ValueError, FloatingPointError) as error:  # too few pairs, another base, a completion without a loss
        raise LabError(
            setting="extract", value=settings.pairs, rule=str(error), fix="change extract.k_max or the pairs"
        ) from error
    for name, row in figures.items():
        print(f"{name}:", ", ".join(f"{key} {value:.3f}" for key, value in row.items()))


if __name__ == "__main__":
    sys.exit(exit_status(main))
