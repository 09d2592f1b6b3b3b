"""Stage `base_model`: the policy to start from, verified or rebuilt, and held to its gate by measurement."""

import sys
from pathlib import Path

from projected_grpo.errors import exit_status
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import Grader
from projected_grpo.models.base import provide
from projected_grpo.problems.schema import read_problems
from projected_grpo.settings.base import BaseSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.storage import atomic_directory, write_json


def main() -> None:
    params = read_params()
    settings = section(params, "base", BaseSettings)
    compute = section(params, "compute", ComputeSettings)
    limits = SandboxLimits(**section(params, "sandbox", SandboxSettings).model_dump())
    problems = read_problems(Path("data/problems/test.jsonl"))
    with atomic_directory("data/base") as folder, Sandbox(limits) as sandbox:
        rates = provide(settings, compute, folder, problems, Grader(sandbox))
    write_json("data/gate.json", rates)  # a measurement: nothing depends on it
    print("base:", ", ".join(f"{name} {value:.4g}" for name, value in rates.items()))


if __name__ == "__main__":
    sys.exit(exit_status(main))
