"""`projected-grpo doctor`: what it says about this host, and when it says no."""

from __future__ import annotations

import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from projected_grpo import doctor
from projected_grpo.cli import app
from projected_grpo.grading.sandbox import Sandbox, SandboxUnavailable

PARAMS = """
scale: tiny
scales:
  tiny:
    sandbox: {{workers: null, cpu_seconds: 1.0, wall_seconds: 2.0, memory_mb: 256, output_kb: 64,
              max_error_share: 0.02, allow_weak: {allow_weak}}}
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


@pytest.fixture
def weak_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "Sandbox", functools.partial(Sandbox, without=("seccomp",)))


def test_it_names_versions_and_layers(params: Path) -> None:
    params.write_text(PARAMS.format(allow_weak="true"))
    diagnosis = doctor.examine(params)
    text = str(diagnosis)
    for library in doctor.LIBRARIES:
        assert f"{library} {importlib.metadata.version(library)}" in text
    assert "new session, resource limits" in text
    assert "scale tiny: sandbox.allow_weak is true" in text
    assert diagnosis.go
    assert text.endswith("\ngo")


@pytest.mark.usefixtures("weak_host")
@pytest.mark.parametrize("allow_weak", ["true", "false"])
def test_a_weak_host_goes_only_if_the_scale_allows_it(params: Path, allow_weak: str) -> None:
    params.write_text(PARAMS.format(allow_weak=allow_weak))
    result = CliRunner().invoke(app, ["doctor", "--params", str(params)])
    *_, last = result.stdout.splitlines()
    assert "missing: seccomp (left out)" in result.stdout
    assert "strong: no" in result.stdout
    if allow_weak == "true":
        assert (result.exit_code, last) == (0, "go")
    else:
        assert result.exit_code == 1
        assert last.startswith("no-go: ")
        assert "allow_weak: true" in last


@pytest.mark.usefixtures("weak_host")
def test_without_settings_weak_is_not_allowed(params: Path) -> None:
    diagnosis = doctor.examine(params)
    assert not diagnosis.go
    assert "no " + str(params) in str(diagnosis)


def test_wrong_settings_are_named(params: Path) -> None:
    params.write_text(PARAMS.format(allow_weak="perhaps"))
    assert any("scales.tiny.sandbox.allow_weak" in obstacle for obstacle in doctor.examine(params).obstacles)


def test_a_sandbox_that_does_not_start_is_an_obstacle(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_limits: object) -> None:
        raise SandboxUnavailable("no processes left")

    monkeypatch.setattr(doctor, "Sandbox", broken)
    diagnosis = doctor.examine(params)
    assert "no processes left" in str(diagnosis)
    assert not diagnosis.go


def test_missing_libraries_are_an_obstacle(params: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("torch", "no-such-library"))
    assert any(obstacle.startswith("install no-such-library") for obstacle in doctor.examine(params).obstacles)


def test_torch_is_not_loaded() -> None:
    code = "import sys; from projected_grpo import doctor; doctor.examine(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
