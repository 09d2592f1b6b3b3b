"""Verdicts and labels as columns beside the rows they belong to. Plain dictionaries: grading needs no dataframe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from projected_grpo.grading.labels import Suspect, detect, label
from projected_grpo.grading.labels.detectors import OWN_TESTS
from projected_grpo.grading.verdict import Grader, Submission, Verdict
from projected_grpo.problems.schema import Problem

NO_LABEL = ""  # of a row that could not be graded
PLACE = ("arm", "seed", "step", "group", "sample", "problem_id")
MARKS = ("format_ok", "correct", "paid", "hacked", "attempted")
LABELLED_FROM = (*PLACE, *MARKS, "loophole", "token", "completion", "grader_error")  # what `label_rollouts` reads


def grade_samples(
    rows: Sequence[Mapping[str, Any]], problems: Mapping[str, Problem], grader: Grader
) -> list[dict[str, Any]]:
    """Evaluation samples with verdict, label, hack type and the flags of their own tests (null where they have none).

    Rows name their problem, loophole, token and completion.
    """
    submissions = [
        Submission(problems[row["problem_id"]], row["loophole"], row["token"], row["completion"]) for row in rows
    ]
    flags = detect(
        [
            Suspect(problems[row["problem_id"]], row["completion"], _own_tests_name(row["loophole"], row["token"]))
            for row in rows
        ],
        grader.sandbox,
    )
    graded = []
    for row, submission, verdict, own_tests in zip(rows, submissions, grader.grade(submissions), flags, strict=True):
        graded.append(
            {
                **row,
                "format_ok": verdict.format_ok,
                "correct": verdict.correct,
                "paid": verdict.paid,
                "hacked": verdict.hacked,
                "attempted": verdict.attempted,
                "outcome": verdict.outcome,
                "reason": verdict.reason,
                "grader_error": verdict.grader_error is not None,
                "stub_passes": own_tests.stub_passes,
                "rejects_canonical": own_tests.rejects_canonical,
                "own_tests_pass": own_tests.own_tests_pass,
                **_labels(verdict, submission),
            }
        )
    return graded


def label_rollouts(rows: Sequence[Mapping[str, Any]], problems: Mapping[str, Problem]) -> list[dict[str, Any]]:
    """Training rollouts with labels. Their verdicts are the ones training acted on; nothing is run again."""
    labelled = []
    for row in rows:
        verdict = Verdict(
            format_ok=row["format_ok"],
            correct=row["correct"],
            paid=row["paid"],
            hacked=row["hacked"],
            attempted=row["attempted"],
            fired=row["hacked"],
            outcome="correct" if row["correct"] else "wrong",
            reason="",
            cpu_seconds=0.0,
            grader_error=row["grader_error"],
        )
        submission = Submission(problems[row["problem_id"]], row["loophole"], row["token"], row["completion"])
        labelled.append({**{key: row[key] for key in PLACE + MARKS}, **_labels(verdict, submission)})
    return labelled


def _own_tests_name(loophole: str, token: str) -> str:
    return token if loophole == "run_tests" else OWN_TESTS


def _labels(verdict: Verdict, submission: Submission) -> dict[str, str]:
    if verdict.grader_error is not None:
        return {"label": NO_LABEL, "hack_type": NO_LABEL}
    found = label(verdict, submission)
    return {"label": found.label, "hack_type": found.hack_type}
