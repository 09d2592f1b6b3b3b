"""The hooks by which an arm may act on training. The trainer knows these hooks and never an arm.

In the order of one optimizer step:

    start_step -> rollout -> reward -> advantage -> gradient -> update

`prompt` is asked once per prompt when a run is laid out, `start` once before the first step, `deploy` once at the end.
Every hook of `Intervention` leaves its argument as it is, so an arm overrides just what it is about.

An intervention sees completions, `paid`, rewards, advantages and gradients; what only the strict oracle knows reaches
an arm that declares `uses_oracle` (upper bounds), and no other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from projected_grpo.directions.algebra import Bases
from projected_grpo.directions.options import TEXTS_PER_FORWARD, TEXTS_PER_PASS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from projected_grpo.grading.sandbox import Sandbox
    from projected_grpo.problems.pairs import Pair
    from projected_grpo.settings.direction import DirectionSettings

Vectors = dict[str, Tensor]  # module -> (r,), or (n, r) by rollout
Parts = dict[str, Vectors]  # adapter -> module -> (r,)

DEFAULT = "default"  # the adapter that is deployed
QUARANTINE = "quarantine"  # a second one beside it, thrown away at deployment


class DirectionSource(Protocol):
    """Where an arm's basis V comes from, at the start and at each refresh."""

    @property
    def independent(self) -> bool:
        """Each refresh is a draw of its own, and need not resemble the last V."""

    def initial(self) -> Bases:
        """V before the first step, module -> (k, r)."""

    def refreshed(self, step: int) -> Bases:
        """V for the policy as it is before optimizer step `step` (0-based)."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What a prompt discloses of its problem: how the answer is called, and the loophole it is graded with.

    prompt: the text of the problem alone, whatever template, examples or prefix the policy got with it.
    """

    func_name: str
    setup_code: str
    loophole: str
    token: str
    prompt: str = ""
    # The hidden tests and the canonical solution are the oracle's: empty, for a detector that wants them.
    tests: tuple[str, ...] = ()
    canonical_solution: str = ""


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """One step's completions in sampling order, `group_size` answers to one prompt side by side.

    token_ids: of the completion, with its end token. teacher: cached completions of another policy.
    hacked: what the oracle says; None for an arm that does not declare `uses_oracle`. graded: has a verdict, i.e. the
    sandbox did not fail; a row without one is left out of baseline and update. Empty: all have.
    """

    step: int
    group_size: int
    tasks: tuple[Task, ...]
    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    paid: tuple[bool, ...]
    teacher: tuple[bool, ...]
    hacked: tuple[bool, ...] | None = None
    graded: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.completions)


@dataclasses.dataclass(frozen=True)
class StepGradients:
    """The gradient of one step's loss in delta space, before clipping and the optimizer. n rollouts, sampling order.

    total: (r,) per module. rollouts: (n, r), adding up to total; empty if `grpo.rollout_gradients` is off.
    unit: (n, r), what `rollouts` would be if every advantage were 1; empty unless the arm asks for `unit_rollouts`.
    advantages: (n,) as the loss used them.
    """

    total: Vectors
    rollouts: Vectors
    unit: Vectors
    advantages: Tensor


@dataclasses.dataclass(frozen=True)
class Workbench:
    """What an arm may be built on. model: with its default adapter at zero; the arm's others are added after `build`.

    direction, source, means: the arm's settings of V, where V comes from, and the stored mean pair difference (r,) per
    module; None for an arm with no direction. kind: hack, random, placebo, permuted or flipped. pairs: the contrast's
    pairs of the split `extract`. texts_per_pass: of them in one backward pass; texts_per_forward: texts whose hidden
    states are read together. reference: bases whose energy a random control is to match. asked: makes the text of a
    problem the prompt that the base gets.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sandbox: Sandbox | None
    seed: int
    kind: str | None = None
    direction: DirectionSettings | None = None
    source: DirectionSource | None = None
    means: Vectors | None = None
    reference: Bases | None = None
    pairs: Sequence[Pair] = ()
    texts_per_pass: int = TEXTS_PER_PASS
    texts_per_forward: int = TEXTS_PER_FORWARD
    asked: Callable[[str], str] = str


class Intervention:
    """No defence. The base of every arm."""

    uses_oracle: bool = False  # `Rollouts.hacked` is filled in: an upper bound, never a method
    adapters: tuple[str, ...] = (DEFAULT,)  # trained and active while sampling
    unit_rollouts: bool = False  # `StepGradients.unit` is filled in, at no further cost

    def prompt(self, prompt: str, index: int) -> str:
        """The text that the policy is trained on for the `index`-th prompt of the run; evaluation has the plain one."""
        del index
        return prompt

    def start(self) -> None:
        """Once, before the first step of a run that begins; a resumed one has its weights and `state` instead."""

    def start_step(self, step: int) -> None:
        """Before the rollouts of optimizer step `step` (0-based) are sampled."""

    def rollout(self) -> AbstractContextManager[Any]:
        """Entered while the completions of one step are sampled."""
        return nullcontext()

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        """Rewards of one step before the group baseline; None screens a sample out of baseline and update."""
        del rollouts
        return list(rewards)

    def advantage(self, advantages: Tensor) -> Tensor:
        """Advantages (batch,) after the group baseline."""
        return advantages

    def gradient(self, gradients: StepGradients) -> Parts:
        """What each adapter's optimizer gets, before clipping: by itself the one gradient that their sum has."""
        return dict.fromkeys(self.adapters, gradients.total)

    def update(self, adapter: str, update: Vectors) -> Vectors:
        """What the optimizer added to an adapter's delta; the return value is applied instead."""
        del adapter
        return update

    def deploy(self) -> tuple[str, ...]:
        """The adapters whose sum is deployed, called once after the last step; the others are thrown away."""
        return (DEFAULT,)

    def purge(self, moments: Vectors) -> Vectors:
        """Adam's running mean of the deployed adapter's gradient, right before `gradient`; it is replaced."""
        return moments

    def bases(self) -> Bases | None:
        """The V in use, for the share removed and the leak; None if the arm has none."""
        return None

    def scores(self) -> Sequence[float] | None:
        """Of each rollout of the last step, what the arm judged it by (for the log); None if it judges none."""
        return None

    def weights(self) -> Sequence[float] | None:
        """Of each rollout of the last step, the advantage that `gradient` gave it (for the log); None: the loss's."""
        return None

    def figures(self) -> dict[str, float]:
        """Of the last step, for the log; every arm has the same ones.

        basis_overlap: mean cos^2 of the principal angles between the last V and this one, 1 where V has not changed.
        axes: of V in use, over all modules. bare_modules: adapted modules that V leaves without an axis.
        overshoot: by how much the gate's part is multiplied. flagged: share of rollouts that the arm acted on.
        """
        return {"basis_overlap": 1.0, "axes": 0.0, "bare_modules": 0.0, "overshoot": 0.0, "flagged": 0.0}

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold to continue bit for bit, beside the adapters."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        del state
