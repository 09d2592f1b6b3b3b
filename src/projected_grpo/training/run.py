"""One run: (arm, seed), from the base model to an adapter, resumable at any step.

A run works in a scratch folder named by the hash of everything it depends on, so that an interrupted run finds its
checkpoint, a finished one is not repeated, and two settings never share a folder.
"""

from __future__ import annotations

import os
import platform

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when trl is imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import dataclasses
import fcntl
import importlib
import importlib.metadata
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

from projected_grpo.directions.options import TEXTS_PER_FORWARD, TEXTS_PER_PASS
from projected_grpo.directions.sources import direction_source, energy_reference, mean_differences
from projected_grpo.directions.store import Direction, load_direction
from projected_grpo.engines import vllm_version
from projected_grpo.errors import LabError
from projected_grpo.grading.sandbox import Sandbox, SandboxLimits
from projected_grpo.grading.verdict import Grader
from projected_grpo.interventions.base import Intervention, Workbench
from projected_grpo.interventions.registry import check_needs, family, needed_gradients, options_of
from projected_grpo.policy import adapter_config, device_of, load_policy
from projected_grpo.problems.pairs import read_pairs
from projected_grpo.problems.prompts import read_form, render_prompt
from projected_grpo.problems.schema import Problem, read_problems
from projected_grpo.spectral import GradientCollector, activate, deltas
from projected_grpo.storage import atomic_directory, scratch_root, sha256_file, sha256_settings, sha256_tree
from projected_grpo.training.clock import PhaseClock
from projected_grpo.training.config import grpo_config
from projected_grpo.training.environment import Environment
from projected_grpo.training.gauge import Gauge
from projected_grpo.training.hooks import UpdateHooks
from projected_grpo.training.probing import ProbeLog
from projected_grpo.training.provenance import provenance
from projected_grpo.training.ranks import ALONE, WANTED, Ranks, is_sharded, process_count
from projected_grpo.training.refusals import check_engine, check_sharding
from projected_grpo.training.runlog import RunLog
from projected_grpo.training.sharding import shard
from projected_grpo.training.spec import RunSpec
from projected_grpo.training.teacher import Teacher
from projected_grpo.training.trainer import HookedTrainer, latest_checkpoint

STEP_COLUMNS = (
    "step", "n", "reward", "paid", "correct", "hacked", "attempted", "format_ok", "loss", "grad_norm_before",
    "grad_norm_after", "alignment_signed", "alignment", "alignment_null", "share_removed", "leak", "modules_touched",
    "zero_variance_share", "truncation_share", "entropy", "kl", "basis_overlap", "axes", "bare_modules", "overshoot",
    "probe_before", "probe_after", "probe_leace", "flagged", "default_norm", "quarantine_norm", "teacher",
    "teacher_hacked", "teacher_correct", "alignment_student", "alignment_teacher",
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers")

# Modules of ours, with all below them, that no result depends on: they check, look up, show or schedule. Settings count
# by their resolved values; another message or bound retrains nothing. Whatever is not named here counts.
WITHOUT_EFFECT = (
    "projected_grpo.cli",
    "projected_grpo.columns",  # explanations
    "projected_grpo.doctor",
    "projected_grpo.errors",
    "projected_grpo.evaluation",  # reads finished runs, as do `report` and `status`
    "projected_grpo.interventions.registry",
    "projected_grpo.memory",
    "projected_grpo.readiness",
    "projected_grpo.report",
    "projected_grpo.settings",
    "projected_grpo.status",
    "projected_grpo.training.display",
    "projected_grpo.training.launch",
    "projected_grpo.training.refusals",
    "projected_grpo.training.seeds",
)


def source_hashes() -> dict[str, str]:
    """Content of the project's own loaded modules, but for those `WITHOUT_EFFECT`: code is an input like any other."""
    files = {
        name: module.__file__
        for name, module in sys.modules.items()
        if name.split(".")[0] == "projected_grpo"
        and not any(f"{name}.".startswith(f"{left_out}.") for left_out in WITHOUT_EFFECT)
        and getattr(module, "__file__", None)
    }
    return {name: sha256_tree(Path(str(path))) for name, path in sorted(files.items())}


def run_key(spec: RunSpec) -> str:
    """Hash of settings, inputs, code and library versions."""
    load_family(spec)  # what is loaded by name, or later, counts too
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    if spec.engine.kind == "vllm":
        versions["vllm"] = vllm_version()
    parts: list[Any] = [spec.resolved(), spec.inputs(), source_hashes(), versions, platform.python_version()]
    processes = process_count()  # each draws its share of the completions from a generator of its own
    parts += [processes] if processes > 1 else []
    parts += ["sharded"] if is_sharded() else []  # folds by rows, which rounds in its own way
    device = device_of(spec.compute).type  # what `auto` stands for here
    return sha256_settings(parts if device == "cpu" else [*parts, device])


def load_family(spec: RunSpec) -> None:
    """Load the arm's family, and what it would load no sooner than it uses it."""
    module = family(spec.settings.intervention, f"arms.{spec.arm}")
    if hasattr(module, "modules"):
        for name in module.modules(options_of(spec.settings, f"arms.{spec.arm}")):
            importlib.import_module(name)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder: a second process with the same run waits, then finds it finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def curriculum(problems: Sequence[Problem], prompts: int, steps: int, seed: int) -> list[Problem]:
    """The problems of a run in order, prompts x steps of them: shuffled passes over all.

    Laid out beforehand instead of shuffled by epoch, because a resumed sampler would start its permutations anew.
    """
    rng = random.Random(seed)
    order: list[Problem] = []
    while len(order) < prompts * steps:
        order += rng.sample(list(problems), len(problems))
    return order[: prompts * steps]


def build_intervention(
    spec: RunSpec,
    hack: Direction,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sandbox: Sandbox | None = None,
) -> Intervention:
    """The arm's intervention, by its family; the model gets the adapters that it trains, at zero.

    `hack`: the direction that all arms are measured with.

    Raises:
        ParamsError: the arm's settings or the recipe are not what its family needs.
    """
    path = f"arms.{spec.arm}"
    check_needs(spec.settings, spec.grpo)
    form = read_form(spec.base, tokenizer)
    portion = spec.compute.micro_batch
    workbench = Workbench(
        model,
        tokenizer,
        sandbox,
        spec.seed,
        texts_per_pass=portion or TEXTS_PER_PASS,
        texts_per_forward=portion or TEXTS_PER_FORWARD,
        asked=form.wrap,
    )
    if spec.direction is not None and spec.own_direction is not None:
        kind = spec.settings.direction
        assert kind is not None
        own = load_direction(spec.own_direction)
        own.check_base(hack.base_hash)
        if spec.direction.k > own.k_max:
            rule, fix = f"must not exceed the axes that {kind} stores ({own.k_max})", "lower k, or raise extract.k_max"
            raise LabError(setting=f"{path}.axes.k", value=spec.direction.k, rule=rule, fix=fix)
        pairs = [form.pair(pair) for pair in read_pairs(spec.pairs) if pair.split == "extract"] if spec.pairs else []
        workbench = dataclasses.replace(
            workbench,
            kind=kind,
            direction=spec.direction,
            source=direction_source(spec.direction, kind, own, spec.seed, model, tokenizer, pairs),
            means=mean_differences(kind, own, hack, spec.seed),
            reference=energy_reference(spec.direction, kind, hack),
            pairs=pairs,
        )
    intervention = family(spec.settings.intervention, path).build(options_of(spec.settings, path), workbench)
    assert isinstance(intervention, Intervention)
    assert not intervention.unit_rollouts or needed_gradients(spec.settings) == "unit", "the family does not declare it"
    for adapter in intervention.adapters:
        if adapter not in model.peft_config:
            model.add_adapter(adapter, adapter_config(spec.compute))
    activate(model, *intervention.adapters)
    return intervention


def join_ranks(spec: RunSpec, folder: Path) -> Ranks:
    """This process among those of the run; the first call opens the process group.

    Raises:
        LabError: the completions of a step cannot be dealt evenly, there is no such device, or the run cannot be
            sharded.
    """
    processes, batch = process_count(), spec.grpo.prompts * spec.grpo.samples
    if WANTED in os.environ:
        rule = "must come from the launcher's file: accelerate would shard the model, deltas and all, by itself"
        fix = "unset it, and set launcher: configs/accelerate/eight_gpus_sharded.yaml"
        raise LabError(setting=WANTED, value=os.environ[WANTED], rule=rule, fix=fix)
    if is_sharded():
        check_sharding(spec)
    if processes == 1:
        return ALONE
    if batch % processes:
        rule = f"must divide grpo.prompts x grpo.samples ({batch}): every process gets as many completions of a step"
        fix = "change num_processes in the launcher's file, or grpo.prompts"
        raise LabError(setting="WORLD_SIZE", value=processes, rule=rule, fix=fix)
    grpo_config(spec.grpo, spec.compute, spec.seed, folder, processes)  # opens it with the backend of the device in use
    return Ranks.current()


def build_teacher(spec: RunSpec, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> Teacher | None:
    """The teacher of the arm, its pool checked against the live tokenizer and prompts; None if it has none."""
    settings = spec.settings.teacher
    if settings is None or spec.pool is None:
        return None
    return Teacher.load(spec.pool, settings, spec.seed, problems, tokenizer, read_form(spec.base, tokenizer))


def build_trainer(
    spec: RunSpec,
    folder: Path,
    sandbox: Sandbox,
    on_step: Callable[[int, dict[str, float]], None],
    ranks: Ranks = ALONE,
) -> HookedTrainer:
    """Everything of a run, wired; its logs are rank 0's."""
    model = load_policy(spec.base, spec.compute)
    if is_sharded():
        shard(model, ranks.count)
    tokenizer = AutoTokenizer.from_pretrained(spec.base, padding_side="left")
    base_hash = sha256_file(spec.base / "model.safetensors")
    hack = load_direction(spec.gauge)
    hack.check_base(base_hash)
    gauge = Gauge.of(hack, spec.grpo.measure_k, model.device)
    intervention = build_intervention(spec, hack, model, tokenizer, sandbox)
    check_engine(spec, intervention)
    problems = read_problems(spec.problems)
    form = read_form(spec.base, tokenizer)
    teacher = build_teacher(spec, problems, tokenizer)
    known = problems if teacher is None else teacher.problems(problems, spec.grpo.samples)
    order = curriculum(known, spec.grpo.prompts, spec.grpo.steps, spec.seed)
    environment = Environment(
        {problem.id: problem for problem in problems},
        Grader(sandbox),
        spec.grpo,
        intervention,
        honest=spec.settings.grader == "honest",
        ranks=ranks,
        form=form,
    )
    clock = PhaseClock()
    collector = GradientCollector(model, rollouts=spec.grpo.rollout_gradients)
    prompts = [
        {"prompt": form.wrap(intervention.prompt(render_prompt(p, p.token), index)), "problem_id": p.id}
        for index, p in enumerate(order)
    ]
    return HookedTrainer(
        environment=environment,
        intervention=intervention,
        update_hooks=UpdateHooks(model, collector, intervention, gauge, spec.grpo.max_grad_norm, clock, ranks),
        probe=ProbeLog(spec.grpo.probe_every, gauge.bases),
        log=RunLog(folder),
        clock=clock,
        labels={"arm": spec.arm, "seed": spec.seed},
        on_step=on_step,
        teacher=teacher,
        ranks=ranks,
        engine=spec.engine,
        generate_batch=spec.compute.generate_batch,
        model=model,
        args=grpo_config(spec.grpo, spec.compute, spec.seed, folder, ranks.count),
        train_dataset=Dataset.from_list(prompts),
        processing_class=tokenizer,
    )


def train_run(spec: RunSpec, on_step: Callable[[int, dict[str, float]], None]) -> Path:
    """Train, or continue, or find finished; returns the folder with `run/` and `provenance/`.

    `on_step` hears (step, figures) of every step that is trained in this call. Where the run is spread over processes,
    each of them calls this; rank 0 holds the folder, hears and writes.

    Raises:
        LabError: processes that do not fit the batch, or see other files than rank 0.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = scratch_root() / "runs" / run_key(spec)[:32]
    ranks = join_ranks(spec, folder)
    ranks.require_same("the run's key", folder.name, "give all machines the same code, settings, inputs and packages")
    with locked(folder) if ranks.first else nullcontext():
        result = folder / "result"
        if not ranks.agree(result.exists()):
            _train(spec, folder, result, on_step, ranks)
    return result


def _train(
    spec: RunSpec, folder: Path, result: Path, on_step: Callable[[int, dict[str, float]], None], ranks: Ranks
) -> None:
    started = time.time()
    set_seed(spec.seed)
    with Sandbox(SandboxLimits(**spec.sandbox.model_dump())) as sandbox:
        trainer = build_trainer(spec, folder, sandbox, on_step, ranks)
        checkpoint = latest_checkpoint(folder)
        shared = "let all machines share the folder of PROJECTED_GRPO_SCRATCH"
        ranks.require_same("the newest checkpoint", checkpoint and checkpoint.name, shared)
        if ranks.first:
            trainer.run_log.drop_from(int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        isolation = list(sandbox.isolation)
    if ranks.first:
        _finish(spec, trainer, result, isolation, started)
    ranks.wait()


def _finish(spec: RunSpec, trainer: HookedTrainer, result: Path, isolation: list[str], started: float) -> None:
    """Write the result, then forget what only a run in progress needs."""
    with atomic_directory(result) as temporary:
        write_result(spec, trainer, temporary)
        provenance(temporary / "provenance", spec.resolved(), spec.inputs(), isolation, started)
    for leftover in result.parent.glob("checkpoint-*"):
        shutil.rmtree(leftover)


def deploy(model: torch.nn.Module, intervention: Intervention) -> None:
    """Leave in the default adapter what the arm deploys."""
    kept = [deltas(model, adapter) for adapter in intervention.deploy()]
    with torch.no_grad():
        for module, delta in deltas(model).items():
            delta.copy_(sum((vectors[module] for vectors in kept[1:]), kept[0][module]))


def write_result(spec: RunSpec, trainer: HookedTrainer, target: Path) -> None:
    """run/: adapter, rollouts, steps, byte-identical for equal inputs. provenance/: what differs between equal runs."""
    run = target / "run"
    deploy(trainer.model, trainer.intervention)
    # The deployed adapter stands at the top, where PEFT looks; what is thrown away in a folder of its own name.
    trainer.model.save_pretrained(run / "adapter", selected_adapters=list(trainer.intervention.adapters))
    (run / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    trainer.run_log.join_rollouts(run / "rollouts.parquet")
    steps = trainer.run_log.figures("steps")
    assert len(steps) == spec.grpo.steps, f"{len(steps)} steps logged of {spec.grpo.steps}"
    steps[list(STEP_COLUMNS)].to_csv(run / "steps.csv", index=False, float_format="%.9g", lineterminator="\n")
    (target / "provenance").mkdir()
    for kind in ("sampler", "timings"):
        trainer.run_log.figures(kind).to_parquet(target / "provenance" / f"{kind}.parquet", index=False)
