"""The hooks by which an arm may act on training. The trainer knows these hooks and never an arm.

An intervention sees completions, `paid`, rewards, advantages and gradients; never `correct`.
Every hook returns its argument unchanged here, so an arm overrides just what it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from projected_grpo.directions.algebra import Bases

Vectors = dict[str, Tensor]  # module -> (r,)


class DirectionSource(Protocol):
    """Where an arm's basis V comes from, at the start and at each refresh."""

    @property
    def independent(self) -> bool:
        """Each refresh is a draw of its own, and need not resemble the last V."""

    def initial(self) -> Bases:
        """V before the first step, module -> (k, r)."""

    def refreshed(self, step: int) -> Bases:
        """V for the policy as it is before optimizer step `step` (0-based)."""


class Intervention:
    """No defence. The base of every arm."""

    def start_step(self, step: int) -> None:
        """Before the rollouts of optimizer step `step` (0-based) are sampled."""

    def reward(self, completions: Sequence[str], paid: Sequence[bool], rewards: list[float]) -> list[float | None]:
        """Rewards of one batch; None screens a sample out of the baseline and of the update."""
        del completions, paid
        return list(rewards)

    def advantage(self, advantages: Tensor) -> Tensor:
        """Advantages (batch,) after the group baseline."""
        return advantages

    def gradient(self, gradients: Vectors) -> Vectors:
        """Gradient of the loss in delta space, before clipping and the optimizer."""
        return gradients

    def update(self, update: Vectors) -> Vectors:
        """What the optimizer added to delta; the return value is applied instead."""
        return update

    def purge(self, moments: Vectors) -> Vectors:
        """Adam's running mean of the gradient, right before `gradient`; the return value takes its place."""
        return moments

    def bases(self) -> Bases | None:
        """The V in use, for the share removed and the leak; None if the arm has none."""
        return None

    def figures(self) -> dict[str, float]:
        """Of the last step, for the log; every arm has the same ones.

        basis_overlap: mean cos^2 of the principal angles between the last V and this one, 1 where V has not changed.
        axes: of V in use, over all modules. bare_modules: adapted modules that V leaves without an axis.
        overshoot: by how much the gate's part is multiplied.
        """
        return {"basis_overlap": 1.0, "axes": 0.0, "bare_modules": 0.0, "overshoot": 0.0}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to continue bit for bit."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        del state


# What an intervention module must offer: build(direction settings, source of its direction or None, and the bases
# whose energy a random control is to match, if any).
Builder = Callable[..., Intervention]
