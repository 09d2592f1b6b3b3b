"""Stage `sample`: completions of one arm (or of the untrained base) on held-out problems, ungraded."""

import argparse
import sys
from pathlib import Path

import pyarrow.parquet as pq

from projected_grpo.errors import exit_status
from projected_grpo.evaluation.samples import SampleJob, sample_seed, sample_table
from projected_grpo.parallel import map_processes
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.sampling import SamplingSettings
from projected_grpo.settings.seeds import Seeds
from projected_grpo.storage import atomic_file

UNTRAINED = "base"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True)
    arm = parser.parse_args().arm
    params = read_params()
    jobs = [
        SampleJob(
            arm=arm,
            seed=seed,
            base=Path("data/base"),
            adapter=None if arm == UNTRAINED else Path(f"data/runs/{arm}/{seed}/adapter"),
            problems=Path("data/problems/test.jsonl"),
            sampling=section(params, "sampling", SamplingSettings),
        )
        for seed in section(params, "seeds", Seeds).root
    ]
    table = sample_table(map_processes(sample_seed, jobs, preload="projected_grpo.evaluation.samples"))
    with atomic_file(f"data/samples/{arm}/samples.parquet") as temporary:
        pq.write_table(table, temporary)
    print(f"{arm}: {table.num_rows} completions of {len(jobs)} seeds")


if __name__ == "__main__":
    sys.exit(exit_status(main))
