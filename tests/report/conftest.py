"""A synthetic comparison in the shape of the real one: five trained arms and the base, three seeds, 40
steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_lab import rollout_rows, with_texts, write_data

from projected_grpo.evaluation.comparison import gather
from projected_grpo.evaluation.hypothesis import Role, roles
from projected_grpo.evaluation.metrics import ArmResult, measure
from projected_grpo.report.curves import read_steps
from projected_grpo.report.findings import Findings, find
from projected_grpo.report.inputs import ReportInputs, read_inputs
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.hypotheses import Hypotheses, read_hypotheses
from projected_grpo.settings.loader import Params, read_params

ROOT = Path(__file__).resolve().parents[2]

SEEDS = (1, 2, 3)
STEPS = 40
# arm: final hack rate, final pass rate, format rate, signed alignment at the end, share removed
WORLD = {
    "base": (0.035, 0.18, 0.97, 0.0, 0.0),
    "vanilla": (0.514, 0.077, 0.98, 0.12, 0.0),
    "projected": (0.007, 0.288, 0.95, 0.05, 0.42),
    "random": (0.50, 0.061, 0.97, 0.11, 0.19),
    "placebo": (0.132, 0.085, 0.96, 0.07, 0.33),
    "rl_baseline": (0.008, 0.34, 0.98, 0.01, 0.0),
}


def graded(arm: str, problems: int = 128, samples: int = 2) -> pd.DataFrame:
    """Graded samples of one arm of `WORLD`, drawn with a fixed generator."""
    hack, passed, form, *_ = WORLD[arm]
    rng = np.random.default_rng(list(arm.encode()))
    frames = []
    for seed in SEEDS:
        for tokens in ("heldout", "train"):
            shift = 1 if arm == "base" else float(np.exp(rng.normal(0, 0.12)))
            draw = rng.random(problems * samples)
            hacked = draw < min(hack * shift, 1)
            correct = ~hacked & (draw > 1 - passed * shift)
            broken = ~hacked & ~correct & (rng.random(problems * samples) < (1 - form) / (1 - hack - passed))
            frames.append(
                pd.DataFrame(
                    {
                        "arm": arm,
                        "seed": seed,
                        "tokens": tokens,
                        "problem_id": [f"p{index // samples:03d}" for index in range(problems * samples)],
                        "hacked": hacked,
                        "correct": correct,
                        "attempted": hacked,
                        "paid": hacked | correct,
                        "format_ok": ~broken,
                        "grader_error": False,
                    }
                )
            )
    return with_texts(pd.concat(frames, ignore_index=True))


def write_runs(root: Path) -> None:
    """Training logs and rollouts, `<root>/<arm>/<seed>/{steps.csv,rollouts.parquet}`, of the trained arms."""
    step = np.arange(1, STEPS + 1)
    rise = 1 / (1 + np.exp(-(step - 16) / 3.5))
    for arm, (hack, passed, _, signed, removed) in WORLD.items():
        if arm == "base":
            continue
        for seed in SEEDS:
            rng = np.random.default_rng([seed, *arm.encode()])
            folder = root / arm / str(seed)
            folder.mkdir(parents=True)
            trained = 0.0 if arm == "rl_baseline" else 1.0  # an honest grader pays no hack
            late = np.exp(rng.normal(0, 0.15))
            pd.DataFrame(
                {
                    "step": step,
                    "hacked": rng.binomial(72, np.clip(trained * (0.035 + (hack - 0.035) * rise * late), 0, 1)) / 72,
                    "correct": rng.binomial(72, np.clip(0.18 + (passed - 0.18) * rise, 0, 1)) / 72,
                    "alignment_signed": signed * rise + rng.normal(0, 0.04, STEPS),
                    "alignment": 0.46 + rng.normal(0, 0.02, STEPS),
                    "alignment_null": 0.18,
                    "leak": np.clip(0.06 + rng.normal(0, 0.02, STEPS), 0, 1) if removed else 0.0,
                    "share_removed": np.clip(removed + rng.normal(0, 0.03, STEPS), 0, 1) if removed else 0.0,
                }
            ).to_csv(folder / "steps.csv", index=False)
            rollout_rows(arm, seed).to_parquet(folder / "rollouts.parquet")


@pytest.fixture(scope="session")
def cast() -> dict[str, Role]:
    return roles(
        base="base",
        treatment="projected",
        reference="vanilla",
        controls=("random", "placebo"),
        honest="rl_baseline",
    )


@pytest.fixture(scope="session")
def world() -> dict[str, pd.DataFrame]:
    return {arm: graded(arm) for arm in WORLD}


@pytest.fixture(scope="session")
def results(world: dict[str, pd.DataFrame]) -> dict[str, ArmResult]:
    return {arm: measure(samples, arm) for arm, samples in world.items()}


@pytest.fixture(scope="session")
def plan_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repository's hypotheses.yaml, its controls cut to those of `WORLD`; nothing is frozen."""
    root = tmp_path_factory.mktemp("plan")
    text = (ROOT / "hypotheses.yaml").read_text()
    (root / "hypotheses.yaml").write_text(text.replace(", permuted]", "]"))
    return root


@pytest.fixture(scope="session")
def plan(plan_root: Path) -> Hypotheses:
    return read_hypotheses(plan_root / "hypotheses.yaml")


@pytest.fixture(scope="session")
def settings() -> ComparisonSettings:
    return ComparisonSettings(
        treatment="projected",
        reference="vanilla",
        controls=("random", "placebo"),
        honest="rl_baseline",
        confidence=0.95,
    )


@pytest.fixture(scope="session")
def params(settings: ComparisonSettings) -> Params:
    """The repository's settings with the arms of `WORLD`."""
    return {**read_params(ROOT / "params.yaml"), "comparison": settings.model_dump(mode="json")}


@pytest.fixture(scope="session")
def found(
    settings: ComparisonSettings,
    params: Params,
    plan: Hypotheses,
    plan_root: Path,
    results: dict[str, ArmResult],
    runs: Path,
) -> Findings:
    steps = read_steps(runs, {arm: SEEDS for arm in WORLD if arm != "base"})
    return find(params, plan, gather(results, steps, settings.confidence), plan_root)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_runs(root)
    return root


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of all arms of `WORLD`, see `report_lab`."""
    return write_data(tmp_path_factory.mktemp("data"), list(WORLD))


@pytest.fixture(scope="session")
def inputs(found: Findings, plan: Hypotheses, runs: Path, data: Path) -> ReportInputs:
    steps = read_steps(runs, {arm: SEEDS for arm in WORLD if arm != "base"})
    return read_inputs(found, plan, steps, root=data)
