"""Suppressed: completions are sampled with the concept direction projected out of the hidden states,

    h' = h - strength (h v) v

at every position after the chosen blocks. Generation-time projection is one of the rivals that Wu & Tang (2026, arXiv
2604.01476) measure their own method against; layers and strength are reconstructed. The forward passes of training are
not changed, so the policy learns from completions that it did not quite sample: a weakness of the method as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from projected_grpo.directions.concept import Concept, blocks, concept
from projected_grpo.interventions.advantage import Depths, check
from projected_grpo.interventions.base import Intervention, Workbench

__all__ = ["NEEDS_DIRECTION", "READS_AXES", "Options", "Suppressed", "build", "check"]  # `check` is that of `advantage`

NEEDS_DIRECTION = True
READS_AXES: frozenset[str] = frozenset()


class Options(Depths):
    """What is taken out of the hidden states, and where."""

    strength: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """share of the component that is taken out; 0 is off, 2 reflects"""

    one_sided: bool = False
    """take out only what points hack-ward"""


class Suppressed(Intervention):
    """Projects with the concept of the untrained policy."""

    def __init__(self, options: Options, workbench: Workbench) -> None:
        self.options = options
        self.model = workbench.model
        assert workbench.kind is not None, "the registry refuses an arm without a direction"
        depths = (options.depth_low, options.depth_high)
        self.concept: Concept = concept(
            self.model,
            workbench.tokenizer,
            workbench.pairs,
            workbench.kind,
            workbench.seed,
            depths,
            workbench.texts_per_forward,
        )

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Hooks on the chosen blocks, gone at exit, whatever happens within."""
        if not self.options.strength:
            yield
            return
        chosen = blocks(self.model)
        pairs = zip(self.concept.layers, self.concept.vectors, strict=True)
        handles = [chosen[layer].register_forward_hook(self._hook(vector)) for layer, vector in pairs]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, vector: Tensor) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self.project(output[0], vector), *output[1:])
            return self.project(output, vector)

        return hook

    def project(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """`hidden` (..., d) without `strength` times its component along the unit vector (d,)."""
        v = vector.to(hidden)
        along = hidden @ v
        if self.options.one_sided:
            along = along.clamp_min(0)
        return hidden - self.options.strength * along.unsqueeze(-1) * v

    def figures(self) -> dict[str, float]:
        return super().figures() | {"flagged": float(self.options.strength > 0)}

    def state(self) -> dict[str, Tensor]:
        return {"vectors": self.concept.vectors}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.concept = dataclasses.replace(self.concept, vectors=state["vectors"])


def build(options: Options, workbench: Workbench) -> Intervention:
    """The intervention of this family."""
    return Suppressed(options, workbench)
