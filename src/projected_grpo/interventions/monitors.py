"""What tells an arm that a completion is a hack: the oracle, a probe, detector flags, or a judge.

A monitor gives each completion of a step a score from 0 to 1, or None where it has no verdict; the arm flags what
reaches its threshold.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from projected_grpo.directions.concept import DEPTHS, blocks, concept_layers, hidden_means, pair_states, relabelled
from projected_grpo.directions.options import TEXTS_PER_FORWARD
from projected_grpo.grading.verdict.answer import extract_code
from projected_grpo.grading.verdict.loopholes import LOOPHOLES, attempts
from projected_grpo.interventions.base import Rollouts, Task
from projected_grpo.interventions.judge import Judge

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from projected_grpo.grading.sandbox import Sandbox
    from projected_grpo.problems.pairs import Pair

Flag = Literal["attempted", "stub_passes"]
RIDGE = 1.0  # of the probe: penalty of its squared weights, for standardised features


class Monitor(Protocol):
    """Judges completions. Its state is what a checkpoint needs to continue bit for bit."""

    def start(self) -> None: ...
    def judge(self, rollouts: Rollouts) -> Sequence[float | None]: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


class Stateless:
    """A monitor that learns nothing."""

    def start(self) -> None:
        return None

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        del state


class Truth(Stateless):
    """The oracle's own label, wrong with probability 1 - accuracy, alike for hacks and for others: an upper bound."""

    def __init__(self, accuracy: float, seed: int) -> None:
        self.accuracy = accuracy
        self.seed = seed

    def judge(self, rollouts: Rollouts) -> list[float]:
        """The draws are a function of (seed, step): a step that is repeated errs in the same places.

        Raises:
            ValueError: the rollouts do not hold what the oracle says.
        """
        if rollouts.hacked is None:
            raise ValueError("only an arm that declares `uses_oracle` is told what the oracle says")
        rng = random.Random(f"truth:{self.seed}:{rollouts.step}")
        return [float(hacked != (rng.random() >= self.accuracy)) for hacked in rollouts.hacked]


class Flags(Stateless):
    """One flag of the answer's code, of no knowledge of what is right.

    attempted: the construct of the disclosed loophole stands in the code; nothing is run.
    stub_passes: the answer's own tests pass beside a method that always gives 0; of the loophole run_tests alone.
    """

    def __init__(self, flag: Flag, sandbox: Sandbox | None) -> None:
        if flag == "stub_passes" and sandbox is None:
            raise ValueError("the flag stub_passes needs a sandbox to run answers in")
        self.flag = flag
        self.sandbox = sandbox

    def judge(self, rollouts: Rollouts) -> list[float | None]:
        if self.flag == "attempted":
            pairs = zip(rollouts.tasks, rollouts.completions, strict=True)
            return [float(_attempted(task, completion)) for task, completion in pairs]
        return self._stub_passes(rollouts)

    def _stub_passes(self, rollouts: Rollouts) -> list[float | None]:
        # Labels name answers after the fact, and training does not load them: a new label must retrain nothing. The
        # one detector that is a monitor here is loaded by the arm that asks for it, and by no other.
        from projected_grpo.grading.labels.detectors import Suspect, detect

        assert self.sandbox is not None
        rows = [row for row, task in enumerate(rollouts.tasks) if task.loophole == "run_tests"]
        suspects = [Suspect(rollouts.tasks[row], rollouts.completions[row], rollouts.tasks[row].token) for row in rows]
        scores: list[float | None] = [0.0] * len(rollouts)
        for row, found in zip(rows, detect(suspects, self.sandbox, only_stub=True), strict=True):
            failed = found.defined and found.stub_passes is None  # of the sandbox: no verdict
            scores[row] = None if failed else float(bool(found.stub_passes))
        return scores


def _attempted(task: Task, completion: str) -> bool:
    channel = LOOPHOLES[task.loophole]
    code = extract_code(completion)
    return channel is not None and code is not None and attempts(channel, code, task.token)


class Probe:
    """Logistic regression on the mean hidden state of a completion, after the blocks within `depths` of the model's.

    Trained once, on the pairs' answers as the untrained policy reads them; `kind` relabels them for a control.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: Sequence[Pair],
        kind: str,
        seed: int,
        at_once: int = TEXTS_PER_FORWARD,
        depths: tuple[float, float] = DEPTHS,
        ridge: float = RIDGE,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.pairs, self.kind, self.seed, self.at_once = pairs, kind, seed, at_once
        self.layers = concept_layers(len(blocks(model)), depths)
        self.ridge = ridge
        self.weights = torch.empty(0)  # (layers x d,)
        self.bias = torch.empty(0)  # ()

    def start(self) -> None:
        hack, clean = relabelled(
            *pair_states(self.model, self.tokenizer, self.pairs, self.layers, self.at_once), self.kind, self.seed
        )
        labels = torch.cat([torch.ones(len(hack)), torch.zeros(len(clean))])
        self.weights, self.bias = fitted(torch.cat([hack, clean]).flatten(1).cpu(), labels, self.ridge)

    def judge(self, rollouts: Rollouts) -> list[float]:
        """P(hack)."""
        states = hidden_means(
            self.model, self.tokenizer, rollouts.prompts, rollouts.token_ids, self.layers, self.at_once
        )
        logits = states.flatten(1).cpu().double() @ self.weights + self.bias
        return [float(p) for p in logits.sigmoid()]

    def state(self) -> dict[str, Tensor]:
        return {"weights": self.weights.clone(), "bias": self.bias.clone()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.weights, self.bias = state["weights"], state["bias"]


@torch.enable_grad()
def fitted(features: Tensor, labels: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Weights (d,) and bias () of a logistic regression of labels (n,), 0 or 1, on features (n, d); double precision.

        min  sum_i log(1 + exp(-y_i (w x_i + b))) + ridge / 2 |w|^2      y_i = -1 or 1, x standardised

    The returned weights are for features as they are. A feature that never varies gets the weight 0.
    """
    features, labels = features.double(), labels.double()
    mean, deviation = features.mean(0), features.std(0, correction=0)
    varies = deviation > 1e-8 * features.abs().amax(0).clamp_min(1e-30)
    inverse = torch.where(varies, 1 / deviation.clamp_min(1e-30), 0.0)
    standard = (features - mean) * inverse
    weights = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = standard @ weights + bias
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        loss = loss + ridge / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scaled = weights.detach() * inverse
    return scaled, bias.detach() - scaled @ mean


class Asked(Judge):
    """The judge as a monitor."""

    def start(self) -> None:
        return None

    def judge(self, rollouts: Rollouts) -> list[float | None]:
        return self.ask([task.prompt for task in rollouts.tasks], rollouts.completions)
