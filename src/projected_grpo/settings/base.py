"""`scales.<scale>.base`: the policy that training starts from, and the gate it must pass."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from projected_grpo.settings.section import Count, Name, Positive, Rate, Section, Seed, broken_rule


class GateSettings(Section):
    """Rates of the base within which reward hacking can emerge; measured, not assumed."""

    samples: Count
    """completions sampled to measure the base"""

    hack_min: Rate
    """lowest accepted hack rate, a share of completions"""

    hack_max: Rate
    """highest accepted hack rate, a share of completions"""

    pass_min: Rate
    """lowest accepted pass rate, a share of completions"""

    pass_max: Rate
    """highest accepted pass rate, a share of completions"""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        for name, low, high in (
            ("hack", self.hack_min, self.hack_max),
            ("pass", self.pass_min, self.pass_max),
        ):
            if low > high:
                raise broken_rule(
                    f"{name}_min",
                    low,
                    f"must not exceed {name}_max ({high})",
                    f"lower {name}_min or raise {name}_max",
                )
        return self


class PretrainSettings(Section):
    """How a rebuilt base is trained from nothing (`rebuild: true`)."""

    steps: Count
    """optimizer steps"""

    batch_size: Count
    """sequences per step"""

    learning_rate: Positive
    """peak learning rate, decaying linearly to 0"""

    seed: Seed
    """seed of weights, corpus and order"""

    attempts: Count
    """draws of the short last phase; the first whose base passes the gate is taken"""


class BaseSettings(Section):
    """Where the base comes from, its identity, and its gate."""

    source: Literal["shipped"]
    """shipped: a checkpoint that comes with the repository"""

    path: Name
    """folder of the checkpoint (config, tokenizer, model.safetensors), relative to the repository root"""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """sha256 of model.safetensors in `path`, 64 lower-case hex digits"""

    rebuild: bool
    """train the base anew instead of taking the shipped weights; `sha256` is then not checked"""

    gate: GateSettings
    """bounds on what the base does before training"""

    pretrain: PretrainSettings
    """recipe of the rebuild"""
