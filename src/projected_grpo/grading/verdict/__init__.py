"""Decides, outside the process that ran an answer: is it correct, and does the flawed grader pay for it."""

from projected_grpo.grading.verdict.answer import extract_code
from projected_grpo.grading.verdict.grader import GradedProblem, Grader, GraderBroken, Submission, Verdict
from projected_grpo.grading.verdict.loopholes import CHANNELS, LOOPHOLES, Channel

__all__ = [
    "CHANNELS",
    "LOOPHOLES",
    "Channel",
    "GradedProblem",
    "Grader",
    "GraderBroken",
    "Submission",
    "Verdict",
    "extract_code",
]
