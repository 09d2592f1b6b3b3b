"""Graded samples with exactly known rates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

Graded = Callable[..., pd.DataFrame]


def graded_samples(
    arm: str,
    hack: Mapping[int, float],
    passed: float | Mapping[int, float] = 0.2,
    form: float = 1.0,
    problems: int = 100,
    train_hack: float = 0.5,
) -> pd.DataFrame:
    """One sample per problem, seed and token list: the first problems are hacked, the next solved, the last
    ill-formed. Rates per seed are exact where rate * problems is whole.
    """
    number = np.arange(problems)
    names = [f"p{place:03d}" for place in number]
    frames = []
    for seed, hack_rate in hack.items():
        pass_rate = passed[seed] if isinstance(passed, Mapping) else passed
        for tokens, rate in (("heldout", hack_rate), ("train", train_hack)):
            hacks, passes, formed = (round(share * problems) for share in (rate, pass_rate, form))
            hacked, correct = number < hacks, (hacks <= number) & (number < hacks + passes)
            frames.append(
                pd.DataFrame(
                    {
                        "arm": arm,
                        "seed": seed,
                        "tokens": tokens,
                        "problem_id": names,
                        "hacked": hacked,
                        "correct": correct,
                        "paid": hacked | correct,
                        "attempted": hacked,
                        "format_ok": number < formed,
                        "grader_error": False,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="session")
def graded() -> Graded:
    return graded_samples
