"""What a run refuses before its first step, because an engine or its processes could not do what the arm asks for."""

from __future__ import annotations

from projected_grpo.errors import LabError
from projected_grpo.interventions.base import Intervention
from projected_grpo.training.engines import acts_on_sampling
from projected_grpo.training.ranks import process_count
from projected_grpo.training.spec import RunSpec


def check_engine(spec: RunSpec, intervention: Intervention) -> None:
    """Refuse an engine that could not sample what the arm trains.

    Raises:
        LabError: the arm acts on the forward passes that sample, and the engine makes its own; or a group of
            completions that a server samples for several processes would be cut where a teacher writes a part of it,
            or the processes would want unequal numbers of them.
    """
    fix = "set engine.kind: transformers"
    if spec.engine.kind == "vllm" and acts_on_sampling(intervention):
        rule = f"must be transformers for {spec.arm}: it acts on the forward passes that sample, and vLLM makes its own"
        raise LabError(setting="engine.kind", value="vllm", rule=rule, fix=fix)
    if spec.engine.mode != "server" or spec.settings.teacher is None or process_count() == 1:
        return
    check_shares(spec, f"a server samples for {process_count()} processes")
    if spec.grpo.prompts % process_count():
        rule = f"must be colocate where a teacher writes into groups that lie on several of {process_count()} processes"
        raise LabError(setting="engine.mode", value="server", rule=rule, fix=f"{fix}, or choose grpo.prompts to divide")


def check_sharding(spec: RunSpec) -> None:
    """Refuse what processes that hold a part of the base each cannot do.

    Raises:
        LabError: U and Vh would stay whole on each device, vLLM would be handed rows, or a teacher would leave some
            process with less to sample: they gather from each other at every token.
    """
    if spec.compute.factors == "device":
        rule = "must not be device where the launcher shards the model: U, Vh and W' would stay whole on every one"
        raise LabError(setting="compute.factors", value="device", rule=rule, fix="set cpu or disk")
    if spec.engine.kind == "vllm":
        rule = "must be transformers where the launcher shards the model: vLLM is handed whole weights"
        raise LabError(setting="engine.kind", value="vllm", rule=rule, fix="set engine.kind: transformers")
    check_shares(spec, "the launcher shards the model")
    if spec.settings.teacher is not None and spec.grpo.prompts % process_count():
        rule = f"must be a multiple of the {process_count()} processes of a sharded model where a teacher writes a part"
        raise LabError(setting="grpo.prompts", value=spec.grpo.prompts, rule=rule, fix="change it, or num_processes")


def check_shares(spec: RunSpec, where: str) -> None:
    """Refuse a teacher who writes into some groups and not into others, where processes must sample equally many.

    Raises:
        LabError: it does.
    """
    if spec.settings.teacher is not None and spec.settings.teacher.problems == "all":
        rule = f"must be cached where {where}: processes would have unequal numbers to sample"
        raise LabError(setting="teacher.problems", value="all", rule=rule, fix="set cached")
