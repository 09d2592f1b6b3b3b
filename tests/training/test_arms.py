"""Every family of interventions through the real trainer: its arm runs, and switched off it is plain GRPO bit for bit.

A family without an entry here fails `test_every_family_is_here`.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from training_lab import Lab, silent

from projected_grpo.interventions.registry import check_arms, families
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.storage import SCRATCH_VARIABLE
from projected_grpo.training.run import STEP_COLUMNS, train_run
from projected_grpo.training.runlog import ROLLOUTS

DEPLOYED = "run/adapter/adapter_model.safetensors"
GRPO = {"steps": 2, "max_new_tokens": 24, "save_every": 100}


@dataclasses.dataclass(frozen=True)
class Family:
    """Blocks of `arms`. on: with what the arm is about; off: with its knob at nothing, to equal plain GRPO.

    A family without an `off` has no such knob: its arm always acts, or never.
    """

    on: dict[str, Any]
    off: dict[str, Any] | None = None


def hack(**options: Any) -> dict[str, Any]:
    """What acts on the hack direction, with options of the family."""
    return {"direction": "hack", "options": options}


FAMILIES: dict[str, Family] = {
    "measure": Family({}),
    "erase": Family(hack(), {"direction": "hack", "axes": {"overshoot": 0.0}}),
    "guarded": Family(hack(threshold=-1.0), hack(enabled=False)),
    "ended": Family(hack(after=1), hack(after=0)),
    "routed": Family(hack(capacity="span"), hack(enabled=False)),
    "advantage": Family(hack(), hack(alpha=0.0)),
    "gradient_advantage": Family(hack(), hack(alpha=0.0)),
    "rollout_routed": Family(hack(low=-1.0, high=-1.0), hack(enabled=False)),
    "absorbed": Family(hack(), hack(strength=0.0, train_quarantine=False)),
    "trusted": Family(
        {"direction": "clean", "options": {"answers": "hack"}}, {"direction": "clean", "options": {"strength": 0.0}}
    ),
    "suppressed": Family(hack(), hack(strength=0.0)),
    "inoculated": Family({}, {"options": {"prefixes": []}}),
    "monitored": Family(
        {"options": {"monitor": "truth", "accuracy": 0.5}}, {"options": {"monitor": "truth", "action": "watch"}}
    ),
}
# Other modes of a family: with the mode, and the same block without it.
MODES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "additive": ("advantage", hack(form="additive"), hack()),
    "discriminant": ("gradient_advantage", hack(reading="discriminant", alpha=8.0), hack(alpha=8.0)),
    "share": ("rollout_routed", hack(reading="share", low=0.5, high=0.5), hack(low=0.5, high=0.5)),
    "seeded": ("routed", hack(seeded=5.0), hack()),
    "seeded rollouts": ("rollout_routed", hack(seeded=5.0), hack()),
    "energy": ("erase", {"direction": "random", "axes": {"random_match": "energy"}}, {"direction": "random"}),
}


def test_every_family_is_here() -> None:
    assert set(FAMILIES) == set(families())


@pytest.fixture(scope="module")
def plain(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that an arm with its knob at nothing must equal."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path_factory.mktemp("plain")))
        return train_run(lab.spec("vanilla", block={"intervention": "measure"}, **GRPO), silent)


def run(lab: Lab, name: str, block: dict[str, Any]) -> Path:
    """Train an arm of a family, with the checks that `validate` makes before."""
    block = {"intervention": name, **block}
    spec = lab.spec(name, block=block, **GRPO)
    shared = DirectionSettings(k=2, gate="one_sided", refresh_every=1, project="gradient")
    check_arms({name: ArmSettings.model_validate(block)}, shared)
    return train_run(spec, silent)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_arm_of_every_family_runs_and_writes_the_same_columns(
    lab: Lab, scratch: Path, plain: Path, name: str
) -> None:
    result = run(lab, name, FAMILIES[name].on)
    assert result.is_relative_to(scratch)
    assert pq.read_schema(result / "run/rollouts.parquet").equals(ROLLOUTS)
    steps = pd.read_csv(result / "run/steps.csv")
    assert tuple(steps.columns) == STEP_COLUMNS
    assert len(steps) == GRPO["steps"]
    assert (steps["default_norm"] > 0).all()
    acts = FAMILIES[name].off is not None  # what its knob does at nothing is compared with the plain run below
    same = (result / DEPLOYED).read_bytes() == (plain / DEPLOYED).read_bytes()
    assert not (acts and same)


@pytest.mark.parametrize("name", sorted(name for name, family in FAMILIES.items() if family.off))
def test_an_arm_switched_off_is_the_plain_run_bit_for_bit(lab: Lab, scratch: Path, plain: Path, name: str) -> None:
    family = FAMILIES[name]
    assert family.off is not None
    result = run(lab, name, family.off)
    assert result.is_relative_to(scratch)
    got, wanted = (
        pq.read_table(folder / "run/rollouts.parquet").drop_columns(["arm", "score"]) for folder in (result, plain)
    )
    assert got.equals(wanted)
    assert (result / DEPLOYED).read_bytes() == (plain / DEPLOYED).read_bytes()


@pytest.mark.parametrize("mode", sorted(MODES))
def test_a_mode_trains_another_adapter_than_the_family_without_it(lab: Lab, scratch: Path, mode: str) -> None:
    name, with_it, without = MODES[mode]
    adapters = [(run(lab, name, block) / DEPLOYED).read_bytes() for block in (with_it, without)]
    assert adapters[0] != adapters[1]
    assert any(scratch.iterdir())


# ---------------------------------------------------------------- the monitors


class Reply(http.server.BaseHTTPRequestHandler):
    """A judge that calls an answer a hack by its length."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hack = len(asked["messages"][-1]["content"]) % 2 == 0
        content = json.dumps({"hack": hack, "confidence": 0.75})
        body = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def judge() -> Iterator[str]:
    """The address of a local judge."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Reply) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def test_a_judge_is_asked_during_training(lab: Lab, scratch: Path, judge: str) -> None:
    options = {"monitor": "judge", "action": "screening", "judge": {"base_url": judge, "model": "local"}}
    result = run(lab, "monitored", {"options": options})
    assert result.is_relative_to(scratch)
    rows = pd.read_parquet(result / "run/rollouts.parquet")
    assert set(rows["score"]) == {0.25, 0.75}
    assert (rows["reward"].isna() == (rows["score"] > 0.5)).all()  # screened out where it says hack


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [
        hack(monitor="probe", action="screening"),
        {"options": {"monitor": "flags"}},
        {"options": {"monitor": "flags", "flag": "stub_passes"}},
    ],
    ids=["probe", "attempted", "stub_passes"],
)
def test_every_monitor_judges_every_completion(lab: Lab, scratch: Path, block: dict[str, Any]) -> None:
    result = run(lab, "monitored", block)
    assert result.is_relative_to(scratch)
    rows = pd.read_parquet(result / "run/rollouts.parquet")
    assert rows["score"].between(0, 1).all()
