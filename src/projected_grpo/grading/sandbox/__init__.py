"""Runs untrusted Python: a warm fork server per worker, one fork per execution, values back, nothing else
out.
"""

from projected_grpo.grading.sandbox.jobs import Job, JobResult, Outcome
from projected_grpo.grading.sandbox.limits import SandboxLimits
from projected_grpo.grading.sandbox.sandbox import Sandbox, SandboxUnavailable

__all__ = ["Job", "JobResult", "Outcome", "Sandbox", "SandboxLimits", "SandboxUnavailable"]
