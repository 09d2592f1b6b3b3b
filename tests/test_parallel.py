"""Processes of one thread from a fork server, as a script would use them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"

# Imported once, in the fork server: every worker sees the id of the process that imported it.
PRELOADED = "import os\n\nIMPORTED_BY = os.getpid()\n"

WORK = """
import os, sys, time

def look(number):
    started = time.time()
    preloaded = sys.modules.get("preloaded")
    time.sleep(0.05 * (3 - number))  # the last to start is the first to end
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "TOKENIZERS_PARALLELISM")
    return {
        "started": started, "ended": time.time(),
        "number": number, "pid": os.getpid(), "environment": {name: os.environ.get(name) for name in names},
        "imported_by": preloaded and preloaded.IMPORTED_BY,
    }

def fail(number):
    if number == 1:
        raise ValueError(f"number {number} will not do")
    return number
"""

MAIN = """
import json, os, sys
from work import look, fail
from projected_grpo.parallel import map_processes

if __name__ == "__main__":
    function = {"look": look, "fail": fail}[sys.argv[1]]
    results = map_processes(function, [0, 1, 2], "preloaded", one_by_one="alone" in sys.argv)
    print(json.dumps({"main": os.getpid(), "results": results}))
"""


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    for name, text in (("preloaded.py", PRELOADED), ("work.py", WORK), ("main.py", MAIN)):
        (tmp_path / name).write_text(text)
    return tmp_path


def run(scripts: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{scripts}:{SOURCE}",
        "OMP_NUM_THREADS": "4",
        "OMP_WAIT_POLICY": "ACTIVE",
    }
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=scripts,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_processes_share_a_preload_compute_in_one_thread_and_answer_in_order(scripts: Path) -> None:
    done = run(scripts, "look")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    results = answer["results"]
    assert [result["number"] for result in results] == [0, 1, 2]
    assert {json.dumps(result["environment"]) for result in results} == {
        json.dumps(
            {
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads that spin cost a tiny model a factor of ten
                "TOKENIZERS_PARALLELISM": "false",
            }
        )
    }
    workers = {result["pid"] for result in results}
    servers = {result["imported_by"] for result in results}
    assert len(servers) == 1
    assert None not in servers
    assert not servers & {*workers, answer["main"]}
    assert answer["main"] not in workers
    assert len(workers) <= max(1, min(3, os.cpu_count() or 1))


def test_one_by_one_each_has_a_process_that_ends_before_the_next_begins(scripts: Path) -> None:
    results = json.loads(run(scripts, "look", "alone").stdout)["results"]
    assert [result["number"] for result in results] == [0, 1, 2]
    assert len({result["pid"] for result in results}) == 3, "what the first left in its process is the second's"
    assert all(one["ended"] <= other["started"] for one, other in itertools.pairwise(results))


def test_the_first_error_is_raised_with_its_cause(scripts: Path) -> None:
    done = run(scripts, "fail")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "ValueError: number 1 will not do" in done.stderr
    assert 'raise ValueError(f"number {number} will not do")' in done.stderr  # the line in the worker
