"""Where the seconds of a training step go, on the shipped micro model: one process, one thread, real steps.

Measured in cycles: a refresh of the direction and a resume point every 10 steps (--quick: every 5, the refresh then
counted at half its cost), after a first step that is not counted. Overhead is what TRL and this project add to the
work itself: sampling_overhead (tokenising, padding, metrics, rollout log), projection (intervention, gauge, norms) and
the rest (loop, figures, resume points). Shares hardly depend on how busy the host is; seconds do.

The last line is JSON:

    overhead_share     of the step, in the arm where it is larger (the bar: 0.15)
    projection_share   of the step, arm `projected`
    seconds_per_step   arm `projected`, refresh included
    tokens_per_second  completion tokens sampled per second of generation
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from projected_grpo.parallel import SINGLE_THREADED

os.environ.update(SINGLE_THREADED)  # before torch is imported

import pandas as pd
import torch
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from projected_grpo.directions.extract import extract_modules
from projected_grpo.directions.options import ExtractionOptions
from projected_grpo.directions.store import Direction, save_direction
from projected_grpo.policy import load_policy
from projected_grpo.problems.families import make_problems
from projected_grpo.problems.pairs import dump_pairs, read_pairs, select
from projected_grpo.problems.schema import write_problems
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.base import BaseSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.loader import Params, parse, read_params
from projected_grpo.settings.problems import ProblemsSettings
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.storage import SCRATCH_VARIABLE, sha256_file
from projected_grpo.training.run import train_run
from projected_grpo.training.spec import RunSpec

WORK = ("generate", "grade", "forward_backward", "optimizer", "refresh")
OVERHEAD = ("sampling_overhead", "projection", "rest")
ARMS = ("vanilla", "projected")
SCALE = "scales.micro"
BAR = 0.15
CYCLE, QUICK_CYCLE = 10, 5  # steps


def make_inputs(params: Params, root: Path) -> None:
    """What the stages before training provide, as far as these two arms read it."""
    shutil.copytree(parse(params, f"{SCALE}.base", BaseSettings).path, root / "base")
    settings = parse(params, f"{SCALE}.problems", ProblemsSettings)
    problems = make_problems(settings.train, settings.stages, "train", settings.loopholes, settings.seed)
    write_problems(root / "train.jsonl", problems)
    extract = parse(params, f"{SCALE}.extract", ExtractSettings)
    pairs = select(read_pairs(Path(extract.pairs)), "hack", "extract", extract.bodies)
    (root / "pairs.yaml").write_text(dump_pairs(pairs))
    model = load_policy(root / "base", parse(params, f"{SCALE}.compute", ComputeSettings))
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    tokens = parse(params, f"{SCALE}.grpo", GrpoSettings).max_new_tokens
    options = ExtractionOptions(extract.k_max, tokens)
    modules = extract_modules(model, tokenizer, pairs, options)
    base_hash = sha256_file(root / "base/model.safetensors")
    save_direction(root / "hack.safetensors", Direction("hack", base_hash, "", -1.0, modules, options))


def run_spec(params: Params, arm: str, root: Path, cycle: int, cycles: int) -> RunSpec:
    """One run of the arm: a first step, then `cycles` times `cycle` steps."""
    settings = parse(params, f"arms.{arm}", ArmSettings)
    direction = parse(params, f"{SCALE}.direction", DirectionSettings)
    grpo = parse(params, f"{SCALE}.grpo", GrpoSettings)
    acts = settings.direction is not None
    return RunSpec(
        arm=arm,
        seed=1,
        settings=settings,
        grpo=grpo.model_copy(update={"steps": 1 + cycles * cycle, "save_every": cycle, "probe_every": cycle}),
        compute=parse(params, f"{SCALE}.compute", ComputeSettings),
        sandbox=parse(params, f"{SCALE}.sandbox", SandboxSettings),
        direction=direction.model_copy(update={"refresh_every": cycle}) if acts else None,
        base=root / "base",
        problems=root / "train.jsonl",
        gauge=root / "hack.safetensors",
        own_direction=root / "hack.safetensors" if acts else None,
        pairs=root / "pairs.yaml" if acts else None,
    )


def measure(spec: RunSpec) -> tuple[pd.Series, float]:
    """Mean seconds of a step by phase, and tokens per second of generation."""
    result = train_run(spec, lambda *_: None)
    steps = pd.read_parquet(result / "provenance/timings.parquet").query("step > 0").set_index("step")
    tokens = pd.read_parquet(result / "run/rollouts.parquet").query("step > 0")["token_ids"].map(len).sum()
    speed = tokens / steps["generate"].sum()
    steps["rest"] = steps["step_total"] - steps[[*WORK, *OVERHEAD[:2]]].sum(axis=1)
    seconds = steps.mean()
    seconds["refresh"] *= spec.grpo.save_every / CYCLE
    seconds["step_total"] = seconds[[*WORK, *OVERHEAD]].sum()
    return seconds, speed


def table(seconds: dict[str, pd.Series]) -> str:
    """Seconds and shares of a step, one row per phase."""
    lines = [f"{'seconds per step':20}" + "".join(f"{arm:>20}" for arm in seconds)]
    for name in (*WORK, *OVERHEAD, "step_total"):
        cells = (f"{s[name]:12.4f} {s[name] / s['step_total']:6.1%}" for s in seconds.values())
        lines.append(f"{name:20}" + "".join(f"{cell:>20}" for cell in cells))
    cells = (f"{overhead_share(s):.1%}" for s in seconds.values())
    lines.append(f"{'overhead':20}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def overhead_share(seconds: pd.Series) -> float:
    """Bookkeeping's share of the step."""
    return float(sum(seconds[name] for name in OVERHEAD) / seconds["step_total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short cycle instead of four")
    cycle, cycles = (QUICK_CYCLE, 1) if parser.parse_args().quick else (CYCLE, 4)
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    params = read_params()
    started = time.perf_counter()
    seconds, speeds = {}, {}
    with tempfile.TemporaryDirectory(prefix="training-step-") as folder:
        root = Path(folder)
        os.environ[SCRATCH_VARIABLE] = str(root / "scratch")
        make_inputs(params, root)
        for arm in ARMS:
            seconds[arm], speeds[arm] = measure(run_spec(params, arm, root, cycle, cycles))
    print(table(seconds))
    shares = {arm: overhead_share(row) for arm, row in seconds.items()}
    worst = max(shares.values())
    verdict = "within" if worst <= BAR else "OVER"
    print(f"overhead {worst:.1%}, {verdict} the bar of {BAR:.0%}; measured in {time.perf_counter() - started:.0f} s")
    projected = seconds["projected"]
    figures = {
        "overhead_share": worst,
        "projection_share": projected["projection"] / projected["step_total"],
        "seconds_per_step": projected["step_total"],
        "tokens_per_second": sum(speeds.values()) / len(speeds),
    }
    print(json.dumps({name: round(float(value), 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
