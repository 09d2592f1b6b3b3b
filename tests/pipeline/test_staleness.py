"""For each touched file or setting: which stages run again. Asked of DVC itself, in a scratch copy.

Every stage is recorded as done with made-up outs. After a touch `validate` runs for real (what it writes
decides whether anything follows from it); every other stale stage is taken to change its outs, so that the
table lists the most that can run.
"""

import re
from collections.abc import Callable
from contextlib import chdir
from fnmatch import fnmatch
from pathlib import Path

import networkx
import pytest
from dvc.repo import Repo
from scratch_lab import change_params, run_validate

ARMS = ("vanilla", "projected", "rl_baseline", "random", "placebo", "permuted")
PACKAGE = "src/projected_grpo"
Touch = Callable[[Path], object]


def after_training(*arms: str) -> set[str]:
    """Stages that follow from new runs of these arms, where `method` is vanilla."""
    own = {"vanilla": "grpo_vanilla", "projected": "grpo_projected"}
    stages = {"compare"} | {own.get(arm, f"grpo_reference@{arm}") for arm in arms}
    stages |= {f"{stage}@{arm}" for stage in ("sample", "grade") for arm in arms}
    return stages | ({"evaluate"} if "vanilla" in arms else set())


TRAINING = after_training(*ARMS)
MEASURED = {"sample@*", "grade@*", "evaluate", "compare"}
GRADED = {"grade@*", "evaluate", "compare"}
DIRECTION_ON = TRAINING | {"extract"}
BASE_ON = DIRECTION_ON | {"base_model"} | MEASURED
ALL = BASE_ON | {"prepare"}
ERASING = after_training("projected", "random", "placebo", "permuted")


def code(name: str) -> Touch:
    """A source file gets one more line."""

    def touch(root: Path) -> None:
        path = root / PACKAGE / name
        path.write_text(path.read_text() + "\n# touched\n")

    return touch


def setting(dotted: str, value: object) -> Touch:
    """A parameter gets another value."""

    def touch(root: Path) -> None:
        def change(params: dict) -> None:
            *blocks, name = dotted.split(".")
            for block in blocks:
                params = params[block]
            params[name] = value

        change_params(root, change)

    return touch


def pairs(root: Path) -> None:
    (root / "data/shipped/pairs.yaml").write_text("[{}]\n")


def claims(root: Path) -> None:
    path = root / "hypotheses.yaml"
    path.write_text(path.read_text().replace("falsified_below: 15", "falsified_below: 14"))


def package_versions(root: Path) -> None:
    path = root / "requirements-training.lock"
    path.write_text(path.read_text().replace("trl==", "trl==9."))


def new_arm(root: Path) -> None:
    """An arm in params.yaml and in the lists of the three stages by arm."""
    setting("arms.other", {"intervention": "erase", "direction": "random"})(root)
    text = (root / "dvc.yaml").read_text()
    for block in re.findall(r"^      random:(?: .*\n|\n(?: {8,}.*\n)+)", text, re.MULTILINE):
        text = text.replace(block, block + block.replace("random", "other", 1).replace("runs/random", "runs/other"))
    (root / "dvc.yaml").write_text(text)


CASES: dict[str, tuple[Touch, set[str]]] = {
    "nothing": (lambda _: None, set()),
    "the command line": (code("cli.py"), set()),
    "explanations of columns": (code("columns.py"), set()),
    "a cross-field rule": (code("settings/params.py"), set()),
    "a label": (code("grading/labels/__init__.py"), GRADED),
    "a verdict": (code("grading/verdict/__init__.py"), ALL),
    "the sandbox": (code("grading/sandbox/__init__.py"), ALL),
    "prompts of a loophole": (code("problems/loopholes.py"), ALL),
    "the pairs": (pairs, DIRECTION_ON | {"prepare"} | MEASURED | {"base_model"}),
    "the algebra": (code("directions/algebra.py"), DIRECTION_ON),
    "the trainer": (code("training/trainer.py"), TRAINING),
    "an intervention": (code("interventions/erase.py"), ERASING),
    "no intervention": (code("interventions/measure.py"), after_training("vanilla", "rl_baseline")),
    "an intervention of no arm": (code("interventions/routed.py"), set()),
    "how interventions are found": (code("interventions/registry.py"), TRAINING),
    "where a study's files lie": (code("settings/studies.py"), ALL),
    "a rate": (code("evaluation/metrics.py"), {"evaluate", "compare"}),
    "a statistic": (code("evaluation/statistics.py"), {"compare"}),
    "a claim": (claims, {"compare"}),
    "a picture": (code("report/plots.py"), {"compare"}),
    "the comparison's shape": (code("settings/comparison.py"), {"compare"}),
    "package versions": (package_versions, BASE_ON),
    "method": (setting("method", "projected"), {"evaluate"}),
    "confidence": (setting("comparison.confidence", 0.9), {"compare"}),
    "seed added": (setting("scales.micro.seeds", [1, 2, 3, 4]), TRAINING | MEASURED),
    "k": (setting("scales.micro.direction.k", 4), ERASING),
    "k_max": (setting("scales.micro.extract.k_max", 12), DIRECTION_ON),
    "measured axes": (setting("scales.micro.grpo.measure_k", 4), TRAINING),
    "one arm": (setting("arms.placebo.direction", "random"), after_training("placebo")),
    "samples": (setting("scales.micro.sampling.samples_per_problem", 3), MEASURED),
    "the gate of the base": (setting("scales.micro.base.gate.samples", 2048), BASE_ON),
    "another scale": (setting("scales.smoke.grpo.steps", 3), set()),
}


def stages_after(touch: Touch, root: Path) -> tuple[set[str], set[str]]:
    """All stages, and those that run again: what DVC finds changed and what follows from it.

    `validate` itself is left out: it counts by what it has written.
    """
    touch(root)
    run_validate(root)
    with chdir(root), Repo(str(root)) as repo, repo.lock:
        stages = {stage: stage.name for stage in repo.index.stages}
        graph = networkx.relabel_nodes(repo.index.graph, stages)
        changed = {name for stage, name in stages.items() if stage.changed()} - {"validate"}
    return set(graph), changed.union(*(networkx.ancestors(graph, stage) for stage in changed))


def matching(stages: set[str], patterns: set[str]) -> set[str]:
    return {stage for stage in stages if any(fnmatch(stage, pattern) for pattern in patterns)}


@pytest.mark.parametrize("case", CASES)
def test_what_runs_again(lab, case):
    touch, patterns = CASES[case]
    stages, stale = stages_after(touch, lab)
    assert all(matching(stages, {pattern}) for pattern in patterns), "the table names a stage that is none"
    assert stale == matching(stages, patterns)


def test_a_new_arm_runs_itself_alone(lab):
    """Named in params.yaml and in the lists of dvc.yaml; `compare` takes it in once listed there too."""
    stages, stale = stages_after(new_arm, lab)
    assert stale == {"grpo_reference@other", "sample@other", "grade@other"}
    assert stale < stages
