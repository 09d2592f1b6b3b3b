"""Stages `grpo_*`: one arm, all seeds. `--arm` names a block of `arms` in params.yaml, `--study` one of `studies` (see
study/dvc.yaml). Seeds run side by side, or, where the scale names a launcher, one after another over its processes."""

import argparse
import sys
from pathlib import Path

from projected_grpo.errors import ParamsError
from projected_grpo.settings.arms import ArmSettings, direction_of
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.engine import EngineSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.launcher import Launcher
from projected_grpo.settings.loader import Params, parse, read_params, section
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.seeds import Seeds
from projected_grpo.settings.studies import Paths, paths_of
from projected_grpo.storage import atomic_directory, copy_directory
from projected_grpo.training.launch import launch_seeds
from projected_grpo.training.seeds import RunFailed, train_seeds
from projected_grpo.training.spec import RunSpec, with_named_loopholes


def spec(params: Params, name: str, arm: ArmSettings, seed: int, paths: Paths) -> RunSpec:
    """Settings and inputs of one run; an arm that acts on no direction depends on none of its settings."""
    return RunSpec(
        arm=name,
        seed=seed,
        settings=with_named_loopholes(arm, paths.pairs / "hack.yaml"),
        grpo=section(params, "grpo", GrpoSettings),
        compute=section(params, "compute", ComputeSettings),
        sandbox=section(params, "sandbox", SandboxSettings),
        direction=direction_of(arm, section(params, "direction", DirectionSettings), f"arms.{name}")
        if arm.direction
        else None,
        base=paths.base,
        problems=paths.problems / "train.jsonl",
        gauge=paths.directions / "hack.safetensors",
        own_direction=paths.directions / f"{arm.direction}.safetensors" if arm.direction else None,
        pairs=paths.pairs / f"{arm.contrast}.yaml" if arm.contrast else None,
        pool=Path(arm.teacher.pool) if arm.teacher else None,
        engine=section(params, "engine", EngineSettings),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True)
    parser.add_argument("--study")
    parser.add_argument("--machine", type=int, default=0, help="rank of this one; all but 0 only lend devices")
    arguments = parser.parse_args()
    name: str = arguments.arm
    try:
        params = read_params(study=arguments.study)
        paths = paths_of(params, arguments.study)
        arm = parse(params, f"arms.{name}", ArmSettings)
        launcher = section(params, "launcher", Launcher).root
        specs = [spec(params, name, arm, seed, paths) for seed in section(params, "seeds", Seeds).root]
        results = launch_seeds(specs, Path(launcher), arguments.machine) if launcher else train_seeds(specs)
    except (ParamsError, RunFailed) as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.machine:
        return 0
    for part, target in (("run", paths.runs), ("provenance", paths.provenance)):
        with atomic_directory(target / name) as folder:
            for seed, result in results.items():
                copy_directory(result / part, folder / str(seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
