"""Stage `sample`: completions of one arm (or of the untrained base) on held-out problems, ungraded."""

import argparse
import sys

import pyarrow.parquet as pq

from projected_grpo.errors import exit_status
from projected_grpo.evaluation.samples import SampleJob, sample_seed, sample_table
from projected_grpo.parallel import map_processes
from projected_grpo.policy import device_of
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.engine import EngineSettings
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.sampling import SamplingSettings
from projected_grpo.settings.seeds import Seeds
from projected_grpo.settings.studies import paths_of
from projected_grpo.storage import atomic_file

UNTRAINED = "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--study")
    arguments = parser.parse_args()
    arm: str = arguments.arm
    params = read_params(study=arguments.study)
    paths = paths_of(params, arguments.study)
    engine = section(params, "engine", EngineSettings)
    compute = section(params, "compute", ComputeSettings)
    jobs = [
        SampleJob(
            arm=arm,
            seed=seed,
            base=paths.base,
            adapter=None if arm == UNTRAINED else paths.runs / arm / str(seed) / "adapter",
            problems=paths.problems / "test.jsonl",
            sampling=section(params, "sampling", SamplingSettings),
            compute=compute,
            engine=engine,
        )
        for seed in section(params, "seeds", Seeds).root
    ]
    # A model and its caches may fill a card; a vLLM takes its share of one.
    alone = engine.kind == "vllm" or device_of(compute).type != "cpu"
    rows = map_processes(sample_seed, jobs, preload="projected_grpo.evaluation.samples", one_by_one=alone)
    table = sample_table(rows)
    with atomic_file(paths.samples / arm / "samples.parquet") as temporary:
        pq.write_table(table, temporary)
    print(f"{arm}: {table.num_rows} completions of {len(jobs)} seeds")


if __name__ == "__main__":
    sys.exit(exit_status(main))
