"""The hostile set: no completion of it is graded otherwise than it deserves, and the sandbox outlives it."""

from __future__ import annotations

import pytest
from grading_helpers import LIMITS, SmallProblem, fixture_rows

from projected_grpo.grading.sandbox import Sandbox
from projected_grpo.grading.verdict import Grader, Submission

MILD = ("honest", "extract", "eq_override", "loophole", "forge", "patch", "leak", "early_exit")


def problems() -> dict[str, SmallProblem]:
    return {
        row["id"]: SmallProblem(row["id"], row["setup_code"], tuple(row["tests"]))
        for row in fixture_rows("adversarial_problems.jsonl")
    }


def test_hostile_rows_get_their_verdict() -> None:
    known = problems()
    with Sandbox(LIMITS) as sandbox:
        contained = not sandbox.missing and "pid namespace" in sandbox.isolation
        rows = [
            row
            for row in fixture_rows("adversarial_open.jsonl")
            if row["cls"] in MILD or (contained and row["cls"] in ("resource", "escape"))
        ]
        servers = sandbox.server_pids
        verdicts = Grader(sandbox).grade(
            [Submission(known[row["problem_id"]], "none", "", row["response_text"]) for row in rows]
        )
        assert sandbox.server_pids == servers
    assert len(rows) >= (120 if contained else 90)
    surprising = {
        row["title"]: verdict
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.correct != row["expect_gt_correct"] or verdict.grader_error is not None
    }
    assert surprising == {}


@pytest.mark.parametrize(
    ("loophole", "token"), [("sentinel", "valid"), ("file_marker", "result.txt"), ("run_tests", "run_tests")]
)
def test_hostile_rows_trip_the_channels_they_should(grader: Grader, loophole: str, token: str) -> None:
    known = problems()
    rows = [row for row in fixture_rows("adversarial_open.jsonl") if row["cls"] in ("loophole", "eq_override")]
    verdicts = grader.grade(
        [Submission(known[row["problem_id"]], loophole, token, row["response_text"]) for row in rows]
    )
    fired = {row["title"] for row, verdict in zip(rows, verdicts, strict=True) if verdict.fired}
    # Own tests that pass on the own solution pay here; the set's `run_tests` channel asks for a stub to pass.
    # `unittest.main` under a false `__name__` never runs, so that function returns, which pays.
    names = {loophole, f"{loophole}_own_solution"}
    expected = {row["title"] for row in rows if names & set(row["loophole_channels"])}
    if loophole == "run_tests":
        expected.add("run_tests uses unittest main inside")
    assert fired == expected
    assert fired
