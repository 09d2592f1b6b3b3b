"""Stages `grpo_*`: one arm, all seeds side by side. `--arm` names a block of `arms` in params.yaml."""

import argparse
import sys
from pathlib import Path

from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.loader import Params, parse, read_params, section
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.seeds import Seeds
from projected_grpo.storage import atomic_directory, copy_directory
from projected_grpo.training.seeds import RunFailed, train_seeds
from projected_grpo.training.spec import RunSpec

DIRECTIONS = Path("data/directions")


def spec(params: Params, name: str, arm: ArmSettings, seed: int) -> RunSpec:
    """Settings and inputs of one run; an arm that acts on no direction depends on none of its settings."""
    return RunSpec(
        arm=name,
        seed=seed,
        settings=arm,
        grpo=section(params, "grpo", GrpoSettings),
        sandbox=section(params, "sandbox", SandboxSettings),
        direction=section(params, "direction", DirectionSettings) if arm.direction else None,
        base=Path("data/base"),
        problems=Path("data/problems/train.jsonl"),
        gauge=DIRECTIONS / "hack.safetensors",
        own_direction=DIRECTIONS / f"{arm.direction}.safetensors" if arm.direction else None,
        pairs=Path(f"data/pairs/{arm.contrast}.yaml") if arm.contrast else None,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", required=True)
    name = parser.parse_args().arm
    params = read_params()
    arm = parse(params, f"arms.{name}", ArmSettings)
    seeds = section(params, "seeds", Seeds).root
    try:
        results = train_seeds([spec(params, name, arm, seed) for seed in seeds])
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    for part, target in (("run", f"data/runs/{name}"), ("provenance", f"data/provenance/{name}")):
        with atomic_directory(target) as folder:
            for seed, result in results.items():
                copy_directory(result / part, folder / str(seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
