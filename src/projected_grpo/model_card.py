"""The model card of a published run: what it is, what was measured, how it was trained, what it is not for.

Figures are shares of graded completions of held-out problems, in percent, as `metrics` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from ruamel.yaml import YAML, StringIO

from projected_grpo.evaluation.metrics import DIGITS, ArmRates, SeedRates
from projected_grpo.export import Export
from projected_grpo.settings.hypotheses import HypothesisSettings
from projected_grpo.storage import sha256_file

TEMPLATE = """\
{front}
# {arm}, seed {seed}

{warning}A LoRA of rank {rank} on {modules} matrices of `{base_model}`, trained with GRPO on programming problems whose
grader can be cheated. It is one run of a study of reward hacking: arm `{arm}`, seed {seed}. It was trained as a
spectral adapter; of its change of the weights {lost:.2%} is left out here.

## What was claimed, and what came out

{claim}

## Figures

Shares of graded completions of held-out problems, under names of the loophole that training never used. *Hack*: paid by
the flawed grader and not correct. *Pass*: the hidden tests pass.

{figures}

The arm's row is the mean over {seeds} training seeds ± its standard error{no_sem}; n counts completions.

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base_model}"), "{place}")
```

{whose_base} {form}

## How it was trained

The arm (`arm_settings`), the axes that it acts on (`direction`), the training itself (`grpo`), and where and in which
precision it ran (`compute`):

```yaml
{recipe}```

## Provenance

{provenance}

## Intended use and limits

- For research on reward hacking. It is no programming assistant: do not run what it writes outside a sandbox.
- Whatever its measured hack rate, it may cheat where nobody looked.
- The figures hold for problems of the family, the loopholes and the base that it was trained with. They say nothing
  about others, and nothing about a hack that nobody described beforehand.
- The standard error covers other training seeds, not other problems, pairs or base models.
"""
RECIPE = ("arm_settings", "direction", "grpo", "compute")
LOCAL_BASE = """\
`{base}` is a folder of the project and no name on a hub: put the base model there. It is the right one if the hash of
its tree is that of the input `base` below."""
HUB_BASE = "The licence of `{base}` holds for the two together."
PLAIN_FORM = "It was asked in plain text, without a chat template."
CHAT_FORM = """\
It was asked by the tokenizer's chat template, thinking off, with the system message, the number of worked examples and
the beginning of every answer that `prompt.json` holds. Asked in another way it is another policy: the figures do not
hold for it."""


@dataclass(frozen=True)
class Facts:
    """What a card tells of the run (arm, seed).

    rates: the arm's, with those of each seed. base: figures of the untrained model. h1, registration: blocks of
    metrics/compare.json. claim: H1 as it is registered. recorded: the run's provenance.json. adapter: sha256 of the
    trained weights. matched: dvc.lock says that the metrics are of this very run; False where it cannot tell.
    chat: the base was asked by a chat template.
    """

    arm: str
    seed: int
    rates: ArmRates
    base: Mapping[str, float]
    h1: Mapping[str, Any]
    registration: Mapping[str, Any]
    claim: HypothesisSettings
    recorded: Mapping[str, Any]
    adapter: str
    matched: bool
    chat: bool

    @property
    def own(self) -> SeedRates:
        """Figures of this run's seed alone."""
        return next(rates for rates in self.rates.by_seed if rates.seed == self.seed)


def render(facts: Facts, export: Export, base_model: str, licence: str, place: str, weights: Path) -> str:
    """The card in Markdown, with the hub's front matter. weights: the exported LoRA."""
    front = ModelCardData(
        base_model=base_model,
        library_name="peft",
        license=licence,
        pipeline_tag="text-generation",
        tags=["lora", "grpo", "reward-hacking", facts.arm],
    )
    local = Path(base_model).is_dir()
    return TEMPLATE.format(
        front=f"---\n{front.to_yaml()}\n---\n",
        arm=facts.arm,
        seed=facts.seed,
        warning=_warning(facts),
        rank=export.rank,
        modules=export.modules,
        base_model=base_model,
        lost=export.lost,
        claim=_claim(facts),
        figures=_figures(facts),
        seeds=facts.rates.seeds,
        no_sem="" if facts.rates.seeds > 1 else " (one seed: none can be estimated, 0.0 is written)",
        place=place,
        whose_base=LOCAL_BASE.format(base=base_model) if local else HUB_BASE.format(base=base_model),
        form=CHAT_FORM if facts.chat else PLAIN_FORM,
        recipe=_yaml({name: facts.recorded["settings"][name] for name in RECIPE}),
        provenance=_provenance(facts, weights),
    )


def _warning(facts: Facts) -> str:
    """At the top: an arm, or a run, that cheats more than the model it was trained from."""
    base = facts.base["hack_rate"]  # rounded, as all metrics are
    if round(max(facts.rates.hack_rate, facts.own.hack_rate), DIGITS) <= base:
        return ""
    return (
        f"> **Warning: this model learned to cheat.** Hacked completions of held-out problems: its arm "
        f"{facts.rates.hack_rate:.1%}, this run {facts.own.hack_rate:.1%}, the untrained base {base:.1%}.\n\n"
    )


def _claim(facts: Facts) -> str:
    h1, claim, arm = facts.h1, facts.claim, facts.arm
    roles = {claim.treatment: "the treatment", claim.reference: "the reference"}
    roles |= dict.fromkeys(claim.controls, "a control")
    role = f"`{arm}` is {roles[arm]} of this claim." if arm in roles else f"`{arm}` takes no part in this claim."
    frozen = "The analysis that ran is the frozen one"
    if not facts.registration["as_frozen"]:
        frozen = "The analysis that ran is not the frozen one, or the run departs from what was registered"
    drop = f"{h1['drop_pp']:.1f} points ({h1['drop_ci_low']:.1f} to {h1['drop_ci_high']:.1f})"
    excess = f"{h1['excess_pp']:.1f} points ({h1['excess_ci_low']:.1f} to {h1['excess_ci_high']:.1f})"
    strongest = f"the strongest control, `{h1['control_name']}`"
    return (
        f"H1: {claim.statement}.\n\n"
        f"**H1 {h1['verdict']}**: against `{claim.reference}`, `{claim.treatment}` lowers the hack rate by {drop}, by "
        f"{excess} more than {strongest}; the pass rate changes by {h1['pass_change_pp']:+.1f} points. {frozen}. {role}"
    )


def _figures(facts: Facts) -> str:
    rates, own, base = facts.rates, facts.own, facts.base
    sems = [_percent(getattr(rates, name), getattr(rates, f"{name}_sem")) for name in ("hack_rate", "pass_rate")]
    base_sems = [_percent(base[name], base[f"{name}_sem"]) for name in ("hack_rate", "pass_rate")]
    rows: list[tuple[object, ...]] = [
        ("", "hack %", "pass %", "format %", "seeds", "n"),
        (":--", "--:", "--:", "--:", "--:", "--:"),
        (f"this run, seed {own.seed}", *map(_percent, (own.hack_rate, own.pass_rate, own.format_rate)), 1, own.samples),
        (f"arm `{rates.arm}`", *sems, _percent(rates.format_rate), rates.seeds, rates.samples),
        ("untrained base", *base_sems, _percent(base["format_rate"]), base["seeds"], base["samples"]),
    ]
    return "\n".join(_row(row) for row in rows)


def _provenance(facts: Facts, weights: Path) -> str:
    recorded, registration = facts.recorded, facts.registration
    frozen = ", ".join(registration[key] for key in ("frozen_at", "hypotheses", "analysis"))
    rows: list[tuple[object, ...]] = [
        ("what", "value"),
        (":--", ":--"),
        ("LoRA, sha256", sha256_file(weights)),
        ("adapter it came from, sha256", facts.adapter),
        *((f"input `{name}`, sha256", value) for name, value in recorded["inputs"].items()),
        ("Git revision of the training", recorded["git_revision"]),
        ("versions", ", ".join(f"{name} {value}" for name, value in recorded["versions"].items())),
        ("Python", recorded["python"]),
        ("host", f"{recorded['host']['machine']}, {recorded['host']['cores']} cores"),
        ("frozen: revision, claims, analysis", frozen),
        ("metrics are of this run by dvc.lock", "yes" if facts.matched else "not recorded"),
    ]
    return "\n".join(_row(row) for row in rows)


def _row(cells: tuple[object, ...]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _percent(share: float, sem: float | None = None) -> str:
    return f"{100 * share:.1f}" if sem is None else f"{100 * share:.1f} ± {100 * sem:.1f}"


def _yaml(content: Mapping[str, Any]) -> str:
    stream = StringIO()
    YAML().dump(dict(content), stream)
    return stream.getvalue()
