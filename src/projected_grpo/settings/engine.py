"""`scales.<scale>.engine`: what samples rollouts in training, and completions at evaluation (docs/engines.md)."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from projected_grpo.settings.section import Count, Name, Positive, Rate, Section, broken_rule


class EngineSettings(Section):
    """Which program samples. All but `kind` and `max_gap` is about vLLM, and refused where it would be ignored."""

    kind: Literal["transformers", "vllm"]
    """transformers: the trainer's own model, in the trainer's process; vllm: a copy of it that gets the folded weights
    after every optimizer step"""

    mode: Literal["colocate", "server"] = "colocate"
    """colocate: vLLM in each process of training, on its device; server: `vllm serve` on devices of its own"""

    url: Name | None = None
    """address of the server, such as http://localhost:8000; null for colocate"""

    memory_share: Annotated[Rate, Field(gt=0.0)] = 0.3
    """share of the device's whole memory for a colocated vLLM: its weights and its cache; the rest is the trainer's"""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """numbers of a colocated vLLM; auto: those of the base's files, but bfloat16 for float32"""

    context: Count | None = None
    """tokens of prompt and completion together that a colocated vLLM must hold; null: the longest the model knows"""

    max_gap: Positive = 0.02
    """mean of |log p(trainer) - log p(sampler)| over the tokens of a step, nats; above it the run stops"""

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        given = self.model_fields_set
        if self.kind == "transformers":
            unread, of = given - {"kind", "max_gap"}, "kind is transformers"
        elif self.mode == "server":
            unread, of = given & {"memory_share", "dtype", "context"}, "mode is server: `vllm serve` is told it instead"
        else:
            unread, of = {"url"} if self.url is not None else set(), "mode is colocate"
        for name in sorted(unread):
            rule = f"would be ignored, as {of}"
            raise broken_rule(name, getattr(self, name), rule, "remove it, or change what makes it so")
        if self.kind == "vllm" and self.mode == "server" and self.url is None:
            fix = "name where `vllm serve` listens, such as http://localhost:8000"
            raise broken_rule("url", None, "must be set where mode is server", fix)
        return self


TRANSFORMERS = EngineSettings(kind="transformers")
