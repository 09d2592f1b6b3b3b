"""`scales.<scale>.sampling`: completions of held-out problems after training."""

from __future__ import annotations

from projected_grpo.settings.section import Count, Positive, Section


class SamplingSettings(Section):
    """Sampled once per arm, seed, held-out problem and token list."""

    samples_per_problem: Count
    """completions per problem"""

    temperature: Positive
    """sampling temperature"""

    max_new_tokens: Count
    """longest completion, tokens"""

    batch_size: Count
    """sequences generated together; changes speed and memory"""
