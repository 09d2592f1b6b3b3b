"""Stage `base_model`: the policy to start from, verified or rebuilt, and held to its gate by measurement. `--study`
names one of `studies` that starts from a base of its own (study/dvc.yaml)."""

import argparse
import sys

from projected_grpo.errors import exit_status
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import Grader
from projected_grpo.models.base import provide
from projected_grpo.problems.schema import read_problems
from projected_grpo.settings.base import BaseSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.studies import paths_of
from projected_grpo.storage import atomic_directory, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study")
    study: str | None = parser.parse_args().study
    params = read_params(study=study)
    paths = paths_of(params, study)
    settings = section(params, "base", BaseSettings)
    compute = section(params, "compute", ComputeSettings)
    limits = SandboxLimits(**section(params, "sandbox", SandboxSettings).model_dump())
    problems = read_problems(paths.problems / "test.jsonl")
    with atomic_directory(paths.base) as folder, Sandbox(limits) as sandbox:
        rates = provide(settings, compute, folder, problems, Grader(sandbox))
    write_json(paths.base.with_name("gate.json"), rates)  # a measurement: nothing depends on it
    print("base:", ", ".join(f"{name} {value:.4g}" for name, value in rates.items()))


if __name__ == "__main__":
    sys.exit(exit_status(main))
