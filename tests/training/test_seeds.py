"""Seeds side by side in processes: results by seed, and one failure ends them all, with its reason."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import multiprocessing
import os
import queue
import runpy
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_lab import Lab

from projected_grpo.parallel import SINGLE_THREADED, single_threaded_context
from projected_grpo.problems.schema import read_problems, write_problems
from projected_grpo.training.run import curriculum
from projected_grpo.training.seeds import PRELOAD, RunFailed, _work, train_seeds
from projected_grpo.training.spec import RunSpec


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train_seeds` sets these for its processes; put them back."""
    for name, value in SINGLE_THREADED.items():
        monkeypatch.setenv(name, value)


def break_problem(spec: RunSpec, step: int, target: Path) -> RunSpec:
    """The same run, with a test that cannot be read in the first problem of that step."""
    problems = read_problems(spec.problems)
    unlucky = curriculum(problems, spec.grpo.prompts, spec.grpo.steps, spec.seed)[step * spec.grpo.prompts]
    broken = dataclasses.replace(unlucky, tests=("assert nothing",))
    write_problems(target, [broken if problem == unlucky else problem for problem in problems])
    return dataclasses.replace(spec, problems=target)


def test_results_are_keyed_by_seed(lab: Lab, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = train_seeds([lab.spec("vanilla", seed, steps=1) for seed in (5, 3)])
    assert results.keys() == {3, 5}
    for seed, folder in results.items():
        assert folder.is_relative_to(scratch)
        provenance = json.loads((folder / "provenance/provenance.json").read_text())
        assert (provenance["settings"]["seed"], provenance["settings"]["arm"]) == (seed, "vanilla")
        assert provenance["threads"] == 1
    lines = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert sorted(line for line in lines if line.startswith("vanilla")) == [
        "vanilla seed 3 step 1/1",
        "vanilla seed 5 step 1/1",
    ]


@pytest.mark.parametrize("step", [0, 2])
def test_a_failing_seed_stops_the_others_and_says_why(lab: Lab, scratch: Path, tmp_path: Path, step: int) -> None:
    endless = lab.spec("vanilla", seed=1, steps=100_000)
    failing = break_problem(lab.spec("vanilla", seed=2, steps=step + 1), step, tmp_path / "problems.jsonl")
    with pytest.raises(RunFailed, match=r"(?s)^seed 2 failed:\nTraceback .*in train_run.*MalformedTest: .*nothing"):
        train_seeds([endless, failing])
    assert not [process for process in multiprocessing.active_children() if process.is_alive()]
    assert not list(scratch.rglob("result"))
    for lock in scratch.rglob(".lock"):
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or BlockingIOError: somebody is still at it


def test_two_experiments_that_want_the_same_run_train_it_once(lab: Lab, scratch: Path) -> None:
    """As two workers of `dvc queue` do: the second waits for the first, and takes what it finds."""
    context = single_threaded_context(PRELOAD)
    events, spec = context.Queue(), lab.spec("vanilla", seed=4, steps=3)
    both = [context.Process(target=_work, args=(spec, events, str(scratch))) for _ in range(2)]
    for process in both:
        process.start()
    heard: list[tuple] = []
    while sum(kind == "done" for kind, *_ in heard) < 2:
        heard.append(events.get(timeout=300))
        assert heard[-1][0] != "failed", heard[-1][2]
    for process in both:
        process.join()
    assert [step for kind, _, step, _ in heard if kind == "step"] == [0, 1, 2], "one of them trained"
    [folder] = {Path(where) for kind, _, where, _ in heard if kind == "done"}
    assert folder.is_relative_to(scratch)
    assert len(list((scratch / "runs").iterdir())) == 1


def test_a_refusal_is_told_in_its_own_words(
    lab: Lab,
    scratch: Path,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
) -> None:
    block = {"intervention": "rollout_routed", "direction": "hack"}
    refusal = (
        r"^seed 1 failed:\n1 setting refused; nothing was run\n\ngrpo\.rollout_gradients: false\n    rule: must be true"
    )
    with pytest.raises(RunFailed, match=refusal):
        train_seeds([lab.spec("own", block=block, rollout_gradients=False)])
    assert "Traceback" not in capfd.readouterr().err


def test_one_seed_more_runs_at_once_than_there_are_cores(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    class Process:
        exitcode = 3

        def __init__(self, target: object, args: tuple[RunSpec, object], daemon: bool) -> None:
            del target, daemon
            self.seed = args[0].seed

        def start(self) -> None:
            started.append(self.seed)

        def is_alive(self) -> bool:
            return False

        def join(self) -> None:
            """It has ended."""

        def terminate(self) -> None:
            """It has ended."""

    context = SimpleNamespace(Queue=queue.Queue, Process=Process)
    monkeypatch.setattr("projected_grpo.training.seeds.single_threaded_context", lambda _: context)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(RunFailed, match="seed 1 ended with exit code 3"):
        train_seeds([lab.spec("vanilla", seed) for seed in (1, 2, 3, 4)])
    assert started == [1, 2, 3]


def test_a_seed_that_dies_without_a_word_is_a_failure_too(
    lab: Lab,
    scratch: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the kernel kills a process for its memory."""
    monkeypatch.setattr("projected_grpo.training.seeds._work", die)
    with pytest.raises(RunFailed, match="seed 7 ended with exit code -9 and no result"):
        train_seeds([lab.spec("vanilla", seed=7)])


def die(*_: object) -> None:
    """Instead of training."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_failed_stage_says_why_and_leaves_its_outs_alone(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = lab.copy(tmp_path / "lab", {})
    before = own.root / "data/runs/vanilla/1/steps.csv"
    before.parent.mkdir(parents=True)
    before.write_text("of an earlier run")

    def refuse(specs: list[RunSpec]) -> None:
        raise RunFailed(f"seeds {[spec.seed for spec in specs]} failed")

    monkeypatch.chdir(own.root)
    monkeypatch.setattr("sys.argv", ["grpo.py", "--arm", "vanilla"])
    main = runpy.run_path("stages/grpo.py", run_name="stage")["main"]
    monkeypatch.setitem(main.__globals__, "train_seeds", refuse)
    assert main() == 1
    assert capsys.readouterr().err == "seeds [1, 2] failed\n"
    assert before.read_text() == "of an earlier run"
    assert not (own.root / "data/provenance").exists()


def test_an_arm_depends_on_no_direction_it_does_not_act_on(lab: Lab) -> None:
    directions, pairs = lab.root / "data/directions", lab.root / "data/pairs"
    inputs = {}
    for arm in ("vanilla", "projected", "random", "placebo", "rl_baseline"):
        spec = lab.spec(arm)
        inputs[arm] = (spec.gauge, spec.own_direction, spec.pairs, spec.direction is not None)
    hack = directions / "hack.safetensors"
    assert inputs == {
        "vanilla": (hack, None, None, False),
        "projected": (hack, hack, pairs / "hack.yaml", True),
        "random": (hack, directions / "random.safetensors", None, True),
        "placebo": (hack, directions / "placebo.safetensors", pairs / "placebo.yaml", True),
        "rl_baseline": (hack, None, None, False),
    }
