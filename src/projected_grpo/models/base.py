"""The base policy as an artifact: fetched or trained from nothing, then held to its gate.

Whether reinforcement learning finds the loophole depends on how often the base takes it by chance, and on how often
it solves the problem honestly. A base outside these bounds makes every comparison of arms meaningless, so it is
refused here, before any training.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer

from projected_grpo.errors import LabError
from projected_grpo.evaluation.sampling import complete, requests
from projected_grpo.grading.verdict import Grader, Submission
from projected_grpo.models.corpus import Mixture
from projected_grpo.models.pretrain import ONE_LOOPHOLE, SEVERAL_LOOPHOLES, found, train_phase
from projected_grpo.models.sources import fetch
from projected_grpo.policy import load_base
from projected_grpo.problems.prompts import read_form, write_form
from projected_grpo.problems.schema import Problem
from projected_grpo.settings.base import BaseSettings, GateSettings, PromptSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.sampling import SamplingSettings


def provide(
    settings: BaseSettings, compute: ComputeSettings, target: Path, problems: Sequence[Problem], grader: Grader
) -> dict[str, float]:
    """Put the base into `target`, one that the settings name or one trained from nothing; returns its rates.

    Raises:
        LabError: see `sources.fetch`; or the base does not pass its gate.
    """
    torch.set_num_threads(1)  # the same sums in the same order wherever this is repeated
    target.mkdir(parents=True, exist_ok=True)
    if settings.rebuild:
        return _rebuild(settings, compute, target, problems, grader)
    fetch(settings, target)
    if settings.prompt.form == "chat":
        _ask_by_chat(settings.prompt, target)
    rates = measure(target, compute, problems, settings.gate, grader)
    check_gate(rates, settings.gate)
    return rates


def _ask_by_chat(prompt: PromptSettings, target: Path) -> None:
    if AutoTokenizer.from_pretrained(target).chat_template is None:
        rule = "must be plain: the base's tokenizer has no chat template"
        raise LabError(setting="base.prompt.form", value=prompt.form, rule=rule, fix="set plain, or an instruct model")
    write_form(target, prompt.system, prompt.shots, prompt.prefill)


def _rebuild(
    settings: BaseSettings, compute: ComputeSettings, target: Path, problems: Sequence[Problem], grader: Grader
) -> dict[str, float]:
    """Train from nothing; repeat the short last phase, retuned to what was measured, until the gate is passed.

    How often a base cheats by itself is a few percent of its completions and varies between draws of the last phase.
    """
    recipe = settings.pretrain
    assert recipe is not None, "the settings refuse a rebuild without one"
    phases = (SEVERAL_LOOPHOLES if recipe.several_loopholes else ONE_LOOPHOLE).scaled(
        recipe.steps, recipe.learning_rate
    )
    last = phases.last
    model, tokenizer = found(recipe.seed, recipe.batch_size, phases.first)
    tokenizer.save_pretrained(target)
    for phase in phases.between:
        train_phase(model, tokenizer, phase, recipe.batch_size, recipe.seed)
    trained = copy.deepcopy(model.state_dict())
    for attempt in range(1, recipe.attempts + 1):
        model.load_state_dict(trained)
        train_phase(model, tokenizer, last, recipe.batch_size, recipe.seed + attempt)
        model.save_pretrained(target)
        rates = measure(target, compute, problems, settings.gate, grader)
        print(f"attempt {attempt}:", ", ".join(f"{name} {value:.4g}" for name, value in rates.items()))
        if attempt == recipe.attempts or not broken_bounds(rates, settings.gate):
            break
        last = dataclasses.replace(last, mixture=retuned(last.mixture, rates, settings.gate))
    check_gate(rates, settings.gate)
    return rates


def retuned(mixture: Mixture, rates: dict[str, float], gate: GateSettings) -> Mixture:
    """A mixture that should land nearer the middle of the gate: more cheats raise the hack rate, more of the
    longest tasks the pass rate. Damped, because the measured rates are noisy."""

    def correction(name: str, low: float, high: float) -> float:
        return min(2.0, max(0.5, (low + high) / 2 / max(rates[name], 1e-3)) ** 0.7)

    *shorter, longest = mixture.lengths
    return dataclasses.replace(
        mixture,
        cheats=min(0.5, mixture.cheats * correction("hack_rate", gate.hack_min, gate.hack_max)),
        lengths=(*shorter, longest * correction("pass_rate", gate.pass_min, gate.pass_max)),
    )


def measure(
    folder: Path, compute: ComputeSettings, problems: Sequence[Problem], gate: GateSettings, grader: Grader
) -> dict[str, float]:
    """Rates of the untrained base over at least `gate.samples` completions of `problems` under held-out names."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    form = read_form(folder, tokenizer)
    model = load_base(folder, compute)
    per_problem = -(-gate.samples // len(problems))
    asked = requests(problems, "heldout", per_problem, form)
    sampling = SamplingSettings(
        samples_per_problem=per_problem,
        temperature=gate.temperature,
        max_new_tokens=gate.max_new_tokens,
        batch_size=gate.batch_size,
    )
    completions = complete(model, tokenizer, [request.prompt for request in asked], sampling, seed=0)
    verdicts = grader.grade(
        [
            Submission(request.problem, request.problem.loophole, request.token, form.answer(completion.text))
            for request, completion in zip(asked, completions, strict=True)
        ]
    )
    kept = [verdict for verdict in verdicts if verdict.grader_error is None]
    return {
        "samples": len(kept),
        "hack_rate": sum(verdict.hacked for verdict in kept) / len(kept),
        "pass_rate": sum(verdict.correct for verdict in kept) / len(kept),
        "attempt_rate": sum(verdict.attempted for verdict in kept) / len(kept),
        "format_rate": sum(verdict.format_ok for verdict in kept) / len(kept),
    }


def broken_bounds(rates: dict[str, float], gate: GateSettings) -> list[str]:
    """Which of "hack" and "pass" lie outside the gate."""
    bounds = {"hack": (gate.hack_min, gate.hack_max), "pass": (gate.pass_min, gate.pass_max)}
    return [name for name, (low, high) in bounds.items() if not low <= rates[f"{name}_rate"] <= high]


def check_gate(rates: dict[str, float], gate: GateSettings) -> None:
    """Refuse a base outside the bounds.

    Raises:
        LabError: naming the first bound that is broken.
    """
    for name in broken_bounds(rates, gate):
        low, high = getattr(gate, f"{name}_min"), getattr(gate, f"{name}_max")
        raise LabError(
            setting=f"base.gate.{name}_min .. {name}_max",
            value=f"{low} .. {high}",
            rule=f"the base's measured {name} rate, {rates[f'{name}_rate']:.4f} over {rates['samples']} samples, "
            "must lie within",
            fix="rebuild the base with another recipe, change problems.stages, or widen the gate knowingly",
        )
