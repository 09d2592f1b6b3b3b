"""`scales.<scale>.grpo`: the training loop, the same for every arm."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from projected_grpo.settings.section import Count, Decay, NonNegative, Positive, Section, broken_rule


class GrpoSettings(Section):
    """One optimizer step uses `prompts` groups of `samples` completions."""

    steps: Count
    """optimizer steps of one run"""

    prompts: Count
    """problems per step"""

    samples: Annotated[int, Field(ge=2)]
    """completions per problem: the group whose mean is the baseline"""

    max_new_tokens: Count
    """longest completion, tokens"""

    temperature: Positive
    """sampling temperature"""

    learning_rate: Positive
    """constant learning rate on delta"""

    adam_beta1: Decay
    """decay of the first moment, per step"""

    adam_beta2: Decay
    """decay of the second moment, per step"""

    weight_decay: NonNegative
    """decoupled weight decay on delta, per step and learning rate"""

    kl_beta: NonNegative
    """weight of the KL penalty to the base; 0 switches it off"""

    max_grad_norm: NonNegative
    """gradient norm after projection is clipped to this; 0 never clips"""

    reward_format: NonNegative
    """reward of an answer that compiles"""

    reward_paid: NonNegative
    """reward added when the grader in use pays"""

    save_every: Count
    """optimizer steps between resume points; changes no result"""

    measure_k: Count
    """axes of the static hack direction that every arm is measured with, at most `extract.k_max`"""

    rollout_gradients: bool
    """keep each completion's own gradient of the one backward pass, for the alignment columns of rollouts.parquet"""

    probe_every: Annotated[int, Field(ge=0)]
    """optimizer steps whose rollout gradients one reading of the linear probe pools (`directions.probe`); 0 is off"""

    @model_validator(mode="after")
    def _probe_can_read(self) -> Self:
        if self.probe_every and not self.rollout_gradients:
            rule = "must be 0 where rollout_gradients is false: the probe reads gradients by rollout"
            raise broken_rule("probe_every", self.probe_every, rule, "set 0, or rollout_gradients: true")
        if self.probe_every and self.save_every % self.probe_every:
            rule = f"must divide save_every ({self.save_every}): a resumed run must pool the same steps"
            raise broken_rule("probe_every", self.probe_every, rule, "set a divisor of save_every, or 0")
        return self
