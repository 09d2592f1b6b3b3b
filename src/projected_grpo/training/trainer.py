"""TRL's trainer with our hooks: what we add to a GRPO step, in one place.

start_step -> sample (rollout hook; the teacher's share comes from its pool) -> grade, pay, reward hook (environment)
-> group baseline (TRL) -> advantage hook -> loss, backward (TRL) -> gradient hook, clip -> optimizer -> update hook
-> log
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, TrainerCallback

from projected_grpo.grading.verdict import Verdict
from projected_grpo.interventions.base import DEFAULT, Intervention
from projected_grpo.spectral import activate
from projected_grpo.storage import write_text
from projected_grpo.training.clock import PhaseClock
from projected_grpo.training.engines import EngineTrainer, acts_on_sampling
from projected_grpo.training.environment import Environment, GradedBatch
from projected_grpo.training.hooks import UpdateHooks
from projected_grpo.training.pool import TeacherRollout
from projected_grpo.training.probing import ProbeLog
from projected_grpo.training.ranks import ALONE, Ranks, is_sharded
from projected_grpo.training.runlog import RunLog
from projected_grpo.training.sharding import data_parallel
from projected_grpo.training.teacher import Teacher

INTERVENTION_STATE = "intervention.safetensors"
COMPLETE = "complete"  # written last into a checkpoint: one without it was cut short and is ignored


class HookedTrainer(EngineTrainer):
    """GRPOTrainer that calls an intervention's hooks, logs each step's rollouts and figures, and can resume."""

    def __init__(
        self,
        *,
        environment: Environment,
        intervention: Intervention,
        update_hooks: UpdateHooks,
        probe: ProbeLog,
        log: RunLog,
        clock: PhaseClock,
        labels: dict[str, Any],
        on_step: Callable[[int, dict[str, float]], None],
        teacher: Teacher | None = None,
        ranks: Ranks = ALONE,
        generate_batch: int | None = None,
        **trl: Any,
    ) -> None:
        super().__init__(reward_funcs=[environment], steered=acts_on_sampling(intervention), **trl)
        self.environment = environment
        self.intervention = intervention
        self.update_hooks = update_hooks
        self.probe = probe
        self.run_log = log
        self.clock = clock
        self.labels = labels  # arm and seed: the same in every row
        self.on_step = on_step
        self.teacher = teacher
        self.ranks = ranks
        self.generate_batch = generate_batch  # rollouts sampled together; None: all of this rank's
        self.batch_figures: dict[str, float] = {}
        self._cached: dict[int, TeacherRollout] = {}  # this rank's cached completions of the step, by its rows
        self._pass_tokens: list[float] = []  # of the step's passes over all ranks, tokens that count
        self._rows: list[dict[str, Any]] = []  # of this step's rollouts, until its update is known
        self._step_started = time.perf_counter()
        self.remove_callback(PrinterCallback)  # `on_step` feeds the one progress line
        self.add_callback(update_hooks)
        self.add_callback(CheckpointSeal(intervention, ranks))
        self._activate()

    def _activate(self) -> None:
        """All adapters of the arm. TRL and PEFT know one active adapter, and go back to it after a reference pass."""
        model = self.accelerator.unwrap_model(self.model)
        if list(model.active_adapters) != list(self.intervention.adapters):
            activate(model, *self.intervention.adapters)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if training and is_sharded() and self.accelerator.unwrap_model(model) is model:
            return data_parallel(model)
        return super()._wrap_model(model, training, dataloader)

    # ------------------------------------------------------------ sampling and grading

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        self.clock.start("prepare")
        prepared = super()._prepare_inputs(generation_batch)
        self.clock.stop("prepare")
        return prepared

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, num_generations: int, *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[Any] | None]:
        """Sample the rows that no teacher has written, and put its completions in their places.

        Theirs have no log-probs: with None the ratio is 1, made-up ones would drop them without a word.
        """
        live = [row for row in range(len(prompt_ids)) if row not in self._cached]
        per_prompt = sampled_per_prompt(self._cached, len(prompt_ids), num_generations)
        together = self.generate_batch or max(len(live), 1)
        portions = [live[start : start + together] for start in range(0, len(live), together)]
        sampled: list[list[int]] = []
        logprobs: list[Any] | None = None
        with self.clock.phase("generate"), self.intervention.rollout():
            for portion in portions:
                asked = [prompt_ids[row] for row in portion]
                ids, known = super()._generate_single_turn(asked, images, fields, per_prompt, *args, **kwargs)
                sampled += ids
                logprobs = None if known is None else [*(logprobs or []), *known]
        if not self._cached:
            return sampled, logprobs
        return _merged(live, sampled, logprobs, self._cached)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        step = self.state.global_step
        with self.clock.phase("refresh"):
            self.intervention.start_step(step)
        mine = self.ranks.rows(len(inputs))
        problem_ids = self.ranks.lists([row["problem_id"] for row in inputs])
        drawn = self.teacher.draw(problem_ids, self.num_generations, step) if self.teacher is not None else {}
        self._cached = {row - mine.start: cached for row, cached in drawn.items() if row in mine}
        self.environment.begin(step, {row: _verdict(cached) for row, cached in self._cached.items()})
        batch = super()._generate_and_score_completions(inputs)
        self._activate()
        graded = self.environment.last
        assert graded is not None, "TRL did not call the environment"
        self.clock.add("grade", graded.seconds)
        advantages = self.intervention.advantage(self.ranks.gather(batch["advantages"]))
        self.ranks.align([advantages])
        share = advantages[mine.start : mine.stop]
        batch["advantages"] = torch.ones_like(share) if self.intervention.unit_rollouts else share
        batch["rollout"] = torch.arange(mine.start, mine.stop, device=advantages.device)
        self.update_hooks.begin(advantages, torch.tensor(graded.teacher, device=advantages.device))
        self._rows = self.rollout_rows(step, graded, advantages)
        self.batch_figures = batch_figures(graded, self.num_generations, self.eos_token_ids)
        return batch

    def rollout_rows(self, step: int, graded: GradedBatch, advantages: torch.Tensor) -> list[dict[str, Any]]:
        """One row per completion of the step, of all ranks, before any filter, in sampling order."""
        rows = []
        for index, verdict in enumerate(graded.verdicts):
            problem = self.environment.problems[graded.problem_ids[index]]
            reward = graded.rewards[index]
            ended = bool(set(graded.token_ids[index][-1:]) & set(self.eos_token_ids))
            rows.append(
                {
                    **self.labels,
                    "step": step,
                    "problem_id": problem.id,
                    "loophole": problem.loophole,
                    "token": problem.token,
                    "group": index // self.num_generations,
                    "sample": index % self.num_generations,
                    "source": "teacher" if graded.teacher[index] else "student",
                    "prompt": graded.prompts[index],
                    "completion": graded.completions[index],
                    "token_ids": graded.token_ids[index],
                    "finish_reason": "stop" if ended else "length",
                    "reward": reward,
                    "reward_format": self.environment.settings.reward_format * verdict.format_ok,
                    "reward_paid": self.environment.settings.reward_paid * verdict.paid,
                    "advantage": float(advantages[index]),
                    "weight": 0.0 if reward is None else 1.0,
                    "format_ok": verdict.format_ok,
                    "paid": verdict.paid,
                    "correct": verdict.correct,
                    "hacked": verdict.hacked,
                    "attempted": verdict.attempted,
                    "grader_error": verdict.grader_error,
                }
            )
        return rows

    # ------------------------------------------------------------ update and log

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("resume_from_checkpoint"):
            self.intervention.start()
        with self.update_hooks.collector:
            return super().train(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.update_hooks.forward(inputs["rollout"])
        self._pass_tokens.append(float(self.ranks.gather(inputs["completion_mask"].sum()[None]).sum()))
        with self.clock.phase("forward"):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.clock.phase("training_step"):
            return super().training_step(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        passes = {name: list(self._metrics["train"].get(name, ())) for name in ("entropy", "kl")}
        tokens, self._pass_tokens = self._pass_tokens, []
        super().log(logs, start_time)
        if "loss" not in logs:  # the summary at the end of training
            return
        step = self.state.global_step - 1
        sampler = self.gap.take(step, self.ranks)
        if not self.ranks.first:  # rank 0 has the whole step
            return
        rollouts = self.update_hooks.rollouts
        hacked, advantages = ([row[name] for row in self._rows] for name in ("hacked", "advantage"))
        figures = {
            **self.batch_figures,
            **self.update_hooks.figures,
            **self.probe.read(step, rollouts, hacked, advantages, self.intervention.bases()),
            "loss": self._loss(logs["loss"]),
            **{name: token_mean(values, tokens) for name, values in passes.items()},
        }
        bad = [name for name, value in (figures | sampler).items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"step {step}: {', '.join(bad)} not finite: lower grpo.learning_rate")
        self.run_log.write_rollouts(step, self._with_alignment(self._weighed(), rollouts))
        self.run_log.write_figures("steps", step, figures)
        self.run_log.write_figures("sampler", step, sampler)
        now = time.perf_counter()
        seconds = {**phases(self.clock.take()), "step_total": now - self._step_started}
        self.run_log.write_figures("timings", step, seconds)
        self._step_started = now
        self.on_step(step, figures | sampler | {f"seconds_{phase}": spent for phase, spent in seconds.items()})

    def _weighed(self) -> list[dict[str, Any]]:
        """Rows of the step with the advantages that its update was made with."""
        weights = self.intervention.weights()
        if weights is None:
            return self._rows
        return [{**row, "advantage": weight} for row, weight in zip(self._rows, weights, strict=True)]

    def _loss(self, logged: float) -> float:
        """The loss of the update. Where every advantage was 1 in TRL's, it is put together from those of the update:
        - sum_i A_i |o_i| / (n x max_completion_length), as the ratio is 1 in the only pass over a batch."""
        if not self.intervention.unit_rollouts:
            return logged
        total = sum(row["advantage"] * len(row["token_ids"]) for row in self._weighed())
        return -total / (len(self._rows) * self.max_completion_length)

    def _with_alignment(self, rows: list[dict[str, Any]], rollouts: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        """Rows of the step with what the arm judged each by, and the readings of its own gradient; null for none."""
        scores = self.intervention.scores()
        if scores is not None:
            rows = [{**row, "score": score} for row, score in zip(rows, scores, strict=True)]
        if not rollouts:
            return rows
        readings = {name: values.tolist() for name, values in self.update_hooks.gauge.read_rows(rollouts).items()}
        return [
            {
                **row,
                **{
                    name: values[index] if readings["alignment_signed"][index] else None
                    for name, values in readings.items()
                },
            }
            for index, row in enumerate(rows)
        ]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Every adapter of the arm (Transformers loads one), then the intervention's own state."""
        folder = Path(resume_from_checkpoint)
        policy = self.accelerator.unwrap_model(self.model if model is None else model)
        for adapter in self.intervention.adapters:
            weights = load_file((folder if adapter == DEFAULT else folder / adapter) / "adapter_model.safetensors")
            set_peft_model_state_dict(policy, weights, adapter_name=adapter)
        self._activate()
        self.intervention.load_state(load_file(folder / INTERVENTION_STATE))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A checkpoint here is resume state, not something to publish."""


def _verdict(cached: TeacherRollout) -> Verdict:
    """What a cached completion was graded when it was cached; labels are frozen."""
    return Verdict(
        format_ok=cached.format_ok,
        correct=cached.correct,
        paid=cached.paid,
        hacked=cached.hacked,
        attempted=cached.attempted,
        fired=cached.hacked,
        outcome="correct" if cached.correct else "wrong",
        reason="" if cached.correct else "cached",
        cpu_seconds=0.0,
    )


def sampled_per_prompt(cached: Container[int], rows: int, group_size: int) -> int:
    """How many neighbouring rows vLLM's server may take for one prompt: those of a group that are not cached. 1 where
    that differs between groups, so that it is asked for each row by itself. No other engine asks."""
    live = {sum(row not in cached for row in range(start, start + group_size)) for start in range(0, rows, group_size)}
    return live.pop() if len(live) == 1 else 1


def _merged(
    live: Sequence[int],
    sampled: Sequence[list[int]],
    logprobs: Sequence[Any] | None,
    cached: Mapping[int, TeacherRollout],
) -> tuple[list[list[int]], list[Any] | None]:
    """Sampled and cached token ids, and log-probs where there are any, by row."""
    ids = dict(zip(live, sampled, strict=True)) | {row: list(found.token_ids) for row, found in cached.items()}
    rows = [ids[row] for row in range(len(ids))]
    if logprobs is None:
        return rows, None
    known = dict(zip(live, logprobs, strict=True))
    return rows, [known.get(row, [None] * len(ids[row])) for row in range(len(ids))]


def batch_figures(graded: GradedBatch, group_size: int, ends: Sequence[int]) -> dict[str, float]:
    """Rates of one step over the student's completions that were graded, and the shares that carry no signal.

    zero_variance_share: groups whose rewards are all equal. truncation_share: completions that hit the length limit.
    teacher, teacher_hacked, teacher_correct: cached completions of the step, their verdicts as they were cached.
    """
    students = [i for i, teacher in enumerate(graded.teacher) if not teacher]
    kept = [i for i in students if not graded.verdicts[i].grader_error]
    if not kept:
        raise RuntimeError("no completion of this step could be graded: see the sandbox's errors")

    def rate(field: str) -> float:
        return sum(bool(getattr(graded.verdicts[i], field)) for i in kept) / len(kept)

    cached = [verdict for verdict, teacher in zip(graded.verdicts, graded.teacher, strict=True) if teacher]
    rewards = [reward for i in students if (reward := graded.rewards[i]) is not None]  # without those screened out
    groups = [graded.rewards[start : start + group_size] for start in range(0, len(graded.rewards), group_size)]
    flat = sum(len({reward for reward in group if reward is not None}) <= 1 for group in groups)
    return {
        "n": float(len(kept)),
        "reward": sum(rewards) / len(rewards) if rewards else 0.0,
        **{field: rate(field) for field in ("paid", "correct", "hacked", "attempted", "format_ok")},
        "zero_variance_share": flat / len(groups),
        "truncation_share": sum(not set(graded.token_ids[i][-1:]) & set(ends) for i in students) / len(students),
        "teacher": float(len(cached)),
        "teacher_hacked": float(sum(verdict.hacked for verdict in cached)),
        "teacher_correct": float(sum(verdict.correct for verdict in cached)),
    }


def token_mean(values: Sequence[float], tokens: Sequence[float]) -> float:
    """Mean over the tokens of all passes of the mean of each; TRL's own would count short passes like long ones."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return sum(value * count for value, count in zip(values, tokens, strict=True)) / sum(tokens)


def phases(taken: dict[str, float]) -> dict[str, float]:
    """Disjoint seconds of one step from the clock's nested totals; `overhead` is TRL's and our own bookkeeping
    inside the step, everything that is not one of the others."""
    get = taken.get
    forward, prepare = get("forward", 0.0), get("prepare", 0.0)
    sampling = {name: get(name, 0.0) for name in ("generate", "grade", "refresh")}
    return {
        **sampling,
        "forward_backward": get("training_step", 0.0) - prepare,
        "forward": forward,
        "optimizer": get("optimizer", 0.0),
        "projection": get("projection", 0.0),
        "sampling_overhead": prepare - sum(sampling.values()),
    }


class CheckpointSeal(TrainerCallback):
    """Adds the intervention's state to a checkpoint, then marks it complete: rank 0, once all have written theirs."""

    def __init__(self, intervention: Intervention, ranks: Ranks = ALONE) -> None:
        self.intervention = intervention
        self.ranks = ranks

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del control
        self.ranks.wait()  # each rank writes the state of its own random generator
        if not self.ranks.first:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        tensors = {name: tensor.contiguous() for name, tensor in self.intervention.state().items()}
        save_file(tensors, folder / INTERVENTION_STATE)
        write_text(folder / COMPLETE, f"{state.global_step}\n")


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written completely."""
    done = [path.parent for path in output_dir.glob(f"checkpoint-*/{COMPLETE}")]
    return max(done, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)
