"""The family of docs/adding_an_arm.md, built as the page says: file and block are taken from the page itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/adding_an_arm.md").read_text(encoding="utf-8")
USE = """
from projected_grpo.interventions.base import Rollouts, Task, Workbench
from projected_grpo.interventions.registry import check_arms, families, family, options_of
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

assert "terse" in families()
arm = ArmSettings(**{block!r})
check_arms({{"terse": arm}}, DirectionSettings(k=1, gate="one_sided", refresh_every=0, project="gradient"))
built = family("terse").build(options_of(arm), Workbench(None, None, None, seed=0))
two = (Task("f", "", "none", ""),) * 2
rollouts = Rollouts(0, 2, two, ("", ""), ("a", "a\\nb"), ((1,), (1,)), (True, True), (False, False))
print(built.reward(rollouts, [3.5, 3.5]))
"""


def code(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_the_page_builds_an_arm_from_one_file_and_one_block(tmp_path: Path) -> None:
    package = shutil.copytree(
        ROOT / "src/projected_grpo", tmp_path / "projected_grpo", ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "interventions/terse.py").write_text(code("python"))
    block = YAML(typ="safe").load(code("yaml"))["arms"]["terse"]
    script = USE.format(block=block)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[3.45, 3.4]"


def test_the_pages_gradient_hook_sets_the_loud_completion_aside() -> None:
    import torch

    from projected_grpo.interventions.base import DEFAULT, StepGradients

    names = {"torch": torch, "DEFAULT": DEFAULT}
    exec("from __future__ import annotations\n" + code("py"), names)
    rows = {"a": torch.tensor([[3.0], [0.0], [1.0]]), "b": torch.tensor([[4.0], [1.0], [0.0]])}  # of length 5, 1, 1
    step = StepGradients({module: g.sum(0) for module, g in rows.items()}, rows, {}, torch.ones(3))
    for times, expected in {2.0: {"a": [1.0], "b": [1.0]}, 3.0: {"a": [4.0], "b": [5.0]}}.items():
        arm = SimpleNamespace(options=SimpleNamespace(times=times))
        parts = names["gradient"](arm, step)
        assert {module: vector.tolist() for module, vector in parts[DEFAULT].items()} == expected


def test_the_page_names_every_hook() -> None:
    from projected_grpo.interventions.base import Intervention

    hooks = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    services = {"purge", "bases", "scores", "weights", "figures", "state", "load_state"}
    assert hooks == {name for name, value in vars(Intervention).items() if callable(value)} - services
