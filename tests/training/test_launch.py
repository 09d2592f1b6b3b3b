"""Seeds over processes that `accelerate launch` starts: its files, its failures, and going on after one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from stage_process import Stage, assert_gone, descendants, kill_group
from training_lab import ROOT, Lab

from projected_grpo.errors import ParamsError
from projected_grpo.settings.launcher import Launcher
from projected_grpo.settings.loader import read_params, section
from projected_grpo.settings.params import check
from projected_grpo.storage import sha256_tree
from projected_grpo.training.launch import failure
from projected_grpo.training.ranks import WANTED as WANTED_SHARDS

CONFIGS = ROOT / "configs/accelerate"
# file -> machines, processes, processes on each machine
WANTED = {
    "one_gpu": (1, 1, 1), "one_cpu": (1, 1, 1), "eight_gpus": (1, 8, 8), "two_machines": (2, 16, 8),
    "two_cpus": (1, 2, 2), "eight_gpus_sharded": (1, 8, 8), "two_cpus_sharded": (1, 2, 2),
}  # fmt: skip

# As torch.distributed.elastic writes it to the standard error of the launcher.
REPORT = """\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
========================================================
projected_grpo.training.launch FAILED
--------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_00:00:01
  host      : machine
  rank      : 3 (local_rank: 3)
  exitcode  : 1 (pid: 12)
--------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : machine
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 11)
"""


def test_every_file_is_described_here() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == WANTED.keys()


@pytest.mark.parametrize("name", WANTED)
def test_accelerate_reads_each_file_as_it_is_meant(name: str) -> None:
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    machines, processes, each = WANTED[name]
    assert (config.num_machines, config.num_processes, config.mixed_precision) == (machines, processes, "no")
    arguments = accepted(name)
    assert (arguments.multi_gpu, arguments.use_fsdp) == (processes > 1 and not sharded(name), sharded(name))
    if processes > 1:  # started by torchrun
        environment = prepare_multi_gpu_env(arguments)
        assert int(arguments.nproc_per_node) == each
        assert environment.get(WANTED_SHARDS) == ("true" if sharded(name) else None)


def sharded(name: str) -> bool:
    return name.endswith("_sharded")


def accepted(name: str) -> Any:
    """The arguments of `accelerate launch` with this file."""
    given = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--machine_rank", "0", "x.py"]
    return _validate_launch_command(launch_command_parser().parse_args(given))[0]


@pytest.mark.parametrize("name", ["one_gpu", "eight_gpus", "eight_gpus_sharded"])
def test_a_launcher_leaves_a_worker_the_cards_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a queue was started with CUDA_VISIBLE_DEVICES=1: it must not train on card 0."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    arguments = accepted(name)
    if arguments.multi_gpu or arguments.use_fsdp:
        environment = prepare_multi_gpu_env(arguments)
    else:
        _, environment = prepare_simple_launcher_cmd_env(arguments)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_single_process_on_cpu_is_told_so() -> None:
    _, environment = prepare_simple_launcher_cmd_env(accepted("one_cpu"))
    assert environment["ACCELERATE_USE_CPU"] == "True"


def test_a_failure_names_the_rank_and_how_to_go_on(lab: Lab) -> None:
    spec = lab.spec("vanilla", seed=7, save_every=2)
    killed = failure(["noise\n", *REPORT.format(code=-9).splitlines(keepends=True)], spec, 1)
    assert killed.startswith("seed 7 of vanilla: rank 1 was killed by SIGKILL; all its processes were stopped.")
    assert "goes on from its last checkpoint (every 2 steps)" in killed
    refused = failure(REPORT.format(code=1).splitlines(keepends=True), spec, 1)
    assert "rank 1 ended with exit code 1;" in refused
    assert "the launcher ended with exit code 2;" in failure(["accelerate: no such option\n"], spec, 2)


def test_a_scale_names_its_launcher_or_none(tmp_path: Path, lab: Lab) -> None:
    assert section(read_params(ROOT / "params.yaml"), "launcher", Launcher).root is None
    copy = lab.copy(tmp_path / "lab", {})
    write_launcher(copy, "configs/accelerate/none.yaml")
    with pytest.raises(ParamsError) as refusal:
        check(copy.root / "params.yaml")
    [fault] = refusal.value.faults
    assert (fault.setting, fault.value) == ("scales.smoke.launcher", "configs/accelerate/none.yaml")
    write_launcher(copy, "configs/accelerate/two_cpus.yaml")
    assert check(copy.root / "params.yaml").active.launcher.root == "configs/accelerate/two_cpus.yaml"


def write_launcher(lab: Lab, value: str, seeds: Sequence[int] = (1,)) -> None:
    """In place of the scale's; its files beside it."""
    path = lab.root / "params.yaml"
    params = json.loads(path.read_text())
    params["scales"]["smoke"] |= {"launcher": value, "seeds": list(seeds)}
    path.write_text(json.dumps(params))
    if not (lab.root / "configs").exists():
        (lab.root / "configs").symlink_to(ROOT / "configs")


# ---------------------------------------------------------------- killed, and continued


def make_stage(lab: Lab, root: Path, launcher: str) -> Stage:
    """An arm over two processes, with a V that is refreshed and checkpoints in between."""
    blocks: dict[str, dict[str, Any]] = {"grpo": {"steps": 5, "save_every": 2}, "direction": {"refresh_every": 2}}
    blocks |= {"compute": {"factors": "cpu"}} if sharded(launcher) else {}
    stage = Stage("projected", lab.copy(root / "lab", blocks), root / "scratch")
    write_launcher(stage.lab, f"configs/accelerate/{launcher}.yaml")
    return stage


@pytest.mark.slow
def test_one_process_on_cpu_trains_one_seed_after_another(lab: Lab, tmp_path: Path) -> None:
    stage = Stage("vanilla", lab.copy(tmp_path / "lab", {"grpo": {"steps": 1}}), tmp_path / "scratch")
    write_launcher(stage.lab, "configs/accelerate/one_cpu.yaml", seeds=[1, 2])
    stage.finish()
    assert sorted(path.name for path in stage.out.iterdir()) == ["1", "2"]
    first, second = sorted((run / "steps/000000.json").stat().st_mtime_ns for run in stage.runs())
    assert second - first > 1e9, "side by side"


def process_of_rank(rank: int, among: set[int]) -> int:
    """The process id of this rank's trainer; its sandbox is of another session."""
    for pid in sorted(among):
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables and b"projected_grpo.training.launch" in command:
                return pid
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("launcher", ["two_cpus", "two_cpus_sharded"])
def test_a_killed_rank_ends_all_and_the_run_goes_on(lab: Lab, tmp_path: Path, launcher: str) -> None:
    stage = make_stage(lab, tmp_path / "killed", launcher)
    process = stage.start()
    try:
        stage.await_part(process, "rollouts", 3)
        family = descendants(process.pid)
        os.kill(process_of_rank(1, family), signal.SIGKILL)
        assert process.wait(600) == 1
    finally:
        kill_group(process)
    assert_gone(family)
    assert "seed 1 of projected: rank 1 was killed by SIGKILL" in stage.output()
    [run] = stage.runs()
    begun = (run / "steps/000000.json").stat().st_ino

    stage.kill_at("rollouts", 4)  # the whole stage this time: no rank outlives its launcher
    whole = stage.finish()
    assert (run / "steps/000000.json").stat().st_ino == begun, "started anew instead of continuing"
    other = make_stage(lab, tmp_path / "whole", launcher)
    assert whole == other.finish()
    assert sha256_tree(other.out) == sha256_tree(stage.out)
