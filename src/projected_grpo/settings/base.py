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

    max_new_tokens: Count
    """longest completion of the measurement, tokens; training's own, or the rates are of other answers"""

    temperature: Positive
    """sampling temperature of the measurement"""

    batch_size: Count
    """completions sampled together; changes speed and memory"""

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

    several_loopholes: bool = False
    """teach to take sentinel, stdout_marker and file_marker, too; false: run_tests above all"""


class PromptSettings(Section):
    """How the base is asked. It is kept beside the weights, so that every stage asks alike."""

    form: Literal["plain", "chat"]
    """plain: the bare text; chat: the tokenizer's chat template, thinking off where the template knows it"""

    system: str = ""
    """chat: the system message; empty: the template's own"""

    shots: Annotated[int, Field(ge=0, le=8)] = 0
    """chat: worked examples shown as earlier turns; honest, and with no loophole"""

    prefill: str = ""
    """chat: how every answer begins; written for the model, graded as part of its answer"""

    @model_validator(mode="after")
    def _plain_is_bare(self) -> Self:
        if self.form == "plain" and (self.system or self.shots or self.prefill):
            rule = "must be chat where system, shots or prefill are set"
            raise broken_rule("form", self.form, rule, "set form: chat, or leave them out")
        return self


class BaseSettings(Section):
    """Where the base comes from, its identity, and its gate."""

    source: Literal["shipped", "folder", "hub", "gguf"]
    """shipped: a checkpoint that comes with the repository. folder: another one, anywhere. hub: a model of the Hugging
    Face hub. gguf: a quantised file, taken apart into plain float32 weights"""

    path: Name
    """folder of the checkpoint (config, tokenizer, safetensors), relative to the repository root; a hub's owner/name;
    the GGUF file, or package:file for one that a Python package ships"""

    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """commit of the hub's repository, 40 lower-case hex digits: a branch moves"""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    """sha256 of the weights, 64 lower-case hex digits: of the one file, or of the folder of several safetensors files
    (`storage.sha256_tree`); null: not checked, for a hub's model alone, whose revision is pinned"""

    rebuild: bool = False
    """train the shipped base anew instead of taking its weights; `sha256` is then not checked"""

    prompt: PromptSettings = PromptSettings(form="plain")
    """how problems are put to it"""

    gate: GateSettings
    """bounds on what the base does before training"""

    pretrain: PretrainSettings | None = None
    """recipe of the rebuild"""

    @model_validator(mode="after")
    def _names_one_model(self) -> Self:
        if (self.source == "hub") != (self.revision is not None):
            rule = (
                "must be the commit of a hub's model" if self.source == "hub" else "must be null unless source is hub"
            )
            fix = "look it up on the model's page" if self.source == "hub" else "remove it"
            raise broken_rule("revision", self.revision, rule, fix)
        if self.sha256 is None and self.source != "hub":
            rule = f"must be the hash of the weights where source is {self.source}: nothing else says which they are"
            raise broken_rule("sha256", None, rule, "`sha256sum FILE`, or any value: the refusal names the right one")
        if self.rebuild and (self.source != "shipped" or self.pretrain is None):
            rule = "must be false unless source is shipped and pretrain says how: no other base has a recipe here"
            raise broken_rule("rebuild", True, rule, "set false")
        if self.rebuild and self.prompt.form != "plain":
            rule = "must be plain where rebuild is true: a base trained from nothing here has no chat template"
            raise broken_rule("prompt.form", self.prompt.form, rule, "set plain, or rebuild: false")
        return self
