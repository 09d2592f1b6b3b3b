"""How fast the sandbox runs trivial answers, with all its layers and without: one line of JSON at the end.

Rates fall on a busy host; `cpu_ms` (server and child, per execution) does not, or much less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

from projected_grpo.grading.sandbox import Job, Sandbox, SandboxLimits
from projected_grpo.grading.sandbox.sandbox import Layer

LAYERS: tuple[Layer, ...] = ("namespaces", "landlock", "seccomp")
CODE = "class Solution:\n    def double(self, n):\n        return n * 2\n# {}"
CALLS = tuple(f"Solution().double(n = {n})" for n in range(5))


def measure(without: tuple[Layer, ...], jobs: int) -> dict[str, float]:
    """Executions per second in batches, latency one by one, CPU time per execution."""
    with Sandbox(SandboxLimits(allow_weak=True), without=without) as sandbox:
        batch = [Job("", CODE.format(number), CALLS) for number in range(jobs)]
        sandbox.run(batch[:20])
        start, ours = time.perf_counter(), time.process_time()
        sandbox.run(batch)
        elapsed, trusted = time.perf_counter() - start, time.process_time() - ours
        latencies = []
        for job in batch:
            start = time.perf_counter()
            sandbox.run([job])
            latencies.append(1e3 * (time.perf_counter() - start))
        active = len(sandbox.isolation)
        before = os.times()
    after = os.times()  # now the servers, and what they waited for, are counted
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "layers": active,
        "per_second": round(jobs / elapsed, 1),
        "p50_ms": round(statistics.median(latencies), 2),
        "p99_ms": round(statistics.quantiles(latencies, n=100)[98], 2),
        "cpu_ms": round(1e3 * spent / (2 * jobs + 20), 2),
        "trusted_cpu_ms": round(1e3 * trusted / jobs, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer executions")
    jobs = 300 if parser.parse_args().quick else 3000
    print(json.dumps({"full": measure((), jobs), "bare": measure(LAYERS, jobs)}))


if __name__ == "__main__":
    main()
