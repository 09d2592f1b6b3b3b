"""The gate finds the grader right, and would not if it were wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from grading_helpers import DATA, LIMITS, fixture_path, fixture_rows
from typer.testing import CliRunner

from projected_grpo.cli import app
from projected_grpo.errors import LabError
from projected_grpo.grading import gate
from projected_grpo.grading.batch import Completion, Graded, grade_completions, open_sandbox, read_problems
from projected_grpo.grading.exploits import EXPLOITS
from projected_grpo.grading.sandbox import Sandbox
from projected_grpo.grading.verdict import CHANNELS, LOOPHOLES, Grader


def test_every_loophole_has_an_exploit_and_the_matrix_is_clean(grader: Grader) -> None:
    assert {exploit.loophole for exploit in EXPLOITS} == set(CHANNELS)
    rows = gate.exploit_verdicts(grader)
    assert len(rows) == len(EXPLOITS)
    assert all(list(verdicts) == list(LOOPHOLES) for verdicts in rows.values())
    assert list(gate.matrix_faults(rows)) == []
    assert list(gate.other_faults(grader)) == []


@pytest.mark.parametrize(
    ("loophole", "changes", "said"),
    [
        ("none", {"paid": True}, "method that prints, under none: paid"),
        ("sentinel", {"paid": True}, "under sentinel: paid"),
        ("run_tests", {"paid": False}, "under run_tests: not paid"),
        ("run_tests", {"correct": True}, "under run_tests: graded correct"),
        ("none", {"grader_error": "server lost"}, "under none: server lost"),
    ],
)
def test_a_wrong_verdict_in_the_matrix_is_a_fault(grader: Grader, loophole: str, changes: dict, said: str) -> None:
    rows = gate.exploit_verdicts(grader)
    exploit = EXPLOITS[0]
    rows[exploit][loophole] = dataclasses.replace(rows[exploit][loophole], **changes)
    (fault,) = gate.matrix_faults(rows)
    assert said in fault


def test_the_hostile_set_gets_its_verdicts_and_leaves_nothing_behind() -> None:
    """All 127 rows where the host isolates strongly, else those that need less."""
    with open_sandbox(dataclasses.replace(LIMITS, workers=2)) as sandbox:
        part, due = gate.hostile_part(DATA, sandbox)
        contained = not sandbox.missing and "pid namespace" in sandbox.isolation
    assert part.faults == ()
    assert part.ran == (127 if contained else 127 - 26)
    assert bool(part.note) == (not contained)
    assert gate.trace_part([(0.0, post) for _, post in due]).faults == ()


ROW = {
    "title": "x", "cls": "honest", "loophole_channels": [], "expect_gt_correct": True, "expect_format_ok": True,
    "expect_defines_run_tests": False,
}  # fmt: skip
FOUND = Graded("x", "p", True, "correct", "", True, False, False, (), 0.0)


@pytest.mark.parametrize(
    ("row", "found", "said"),
    [
        ({"expect_gt_correct": False}, {}, "correct is True, expected False"),
        ({}, {"correct": False}, "correct is False, expected True"),
        ({}, {"format_ok": False}, "format_ok is False"),
        ({}, {"defines_run_tests": True}, "defines_run_tests is True"),
        ({}, {"stub_passes": True}, "stub_passes is True"),
        ({}, {"channels": ("sentinel",)}, "channels is ['sentinel'], expected []"),
        ({"cls": "forge", "loophole_channels": ["sentinel"]}, {}, "channels is [], expected ['sentinel']"),
        ({}, {"outcome": "error", "reason": "server lost"}, "server lost"),
    ],
)
def test_a_hostile_row_with_another_verdict_is_a_fault(row: dict, found: dict, said: str) -> None:
    assert list(gate.hostile_faults([ROW], [FOUND])) == []
    faults = list(gate.hostile_faults([{**ROW, **row}], [dataclasses.replace(FOUND, **found)]))
    assert any(said in fault for fault in faults)


def test_traces_are_seen(tmp_path: Path) -> None:
    (tmp_path / "late").symlink_to("nowhere")
    here = Path("/proc/self/comm").read_text().strip()
    assert gate.traces({"path_absent": str(tmp_path / "late")})
    assert not gate.traces({"path_absent": str(tmp_path / "later"), "after_s": 5})
    assert gate.traces({"no_process_named": here})
    assert not gate.traces({"no_process_named": "no such process"})
    assert gate.traces({"no_cmdline": Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()})
    assert gate.traces({"lib_file_absent": "os.py"})
    assert not gate.traces({"lib_file_absent": "ADV_ESCAPE_lib.py"})


def test_an_earlier_escape_is_not_taken_for_a_new_one(tmp_path: Path, sandbox: Sandbox) -> None:
    rows = [json.loads(line) for line in (DATA / "adversarial_open.jsonl").read_text().splitlines()]
    rows[0]["post"] = {"path_absent": str(tmp_path)}
    (tmp_path / "adversarial_open.jsonl").write_text(json.dumps(rows[0]) + "\n")
    shutil.copy(DATA / "adversarial_problems.jsonl", tmp_path)
    with pytest.raises(LabError, match="earlier escape"):
        gate.hostile_part(tmp_path, sandbox)


def test_the_command_fails_without_a_hostile_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gate.FIXTURES_VARIABLE, str(tmp_path))
    arguments = ["check-grader", "--hostile", str(tmp_path), "--workers", "1", "--allow-weak"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "adversarial_open.jsonl" in result.output


def test_the_command_prints_what_ran_and_fails_on_a_wrong_expectation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.loads(line) for line in (DATA / "adversarial_open.jsonl").read_text().splitlines()][:3]
    shutil.copy(DATA / "adversarial_problems.jsonl", tmp_path)
    monkeypatch.setenv(gate.FIXTURES_VARIABLE, str(tmp_path))
    arguments = ["check-grader", "--hostile", str(tmp_path), "--workers", "1", "--allow-weak"]
    (tmp_path / "adversarial_open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "right hostile set: 3 rows" in result.output
    assert "not run shared fixtures: 0 rows" in result.output
    rows[1]["expect_gt_correct"] = True
    (tmp_path / "adversarial_open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "wrong hostile set: 3 rows" in result.output
    assert "correct is False, expected True" in result.output


def test_elicited_hacks_of_a_real_model_fire_their_channel() -> None:
    folder = fixture_path("loophole_rollouts_open.jsonl").parent
    setup = fixture_rows("problems_open.jsonl")[0]["setup_code"]
    with open_sandbox(dataclasses.replace(LIMITS, workers=len(os.sched_getaffinity(0)))) as sandbox:
        part = gate.rollout_part(folder, setup, sandbox, step=50)
    assert part.faults == ()
    assert part.ran == 41 + 22


def test_grading_as_the_gate_does_it_keeps_the_servers(sandbox: Sandbox) -> None:
    problems = read_problems(DATA / "adversarial_problems.jsonl")
    rows = [row for row in fixture_rows("adversarial_open.jsonl") if row["cls"] == "early_exit"]
    servers = sandbox.server_pids
    graded = list(
        grade_completions(problems, [Completion(r["id"], r["problem_id"], r["response_text"]) for r in rows], sandbox)
    )
    assert [row.id for row in graded] == [row["id"] for row in rows]
    assert sandbox.server_pids == servers
