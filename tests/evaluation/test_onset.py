"""Times and relapse, on curves whose answer can be read off."""

from __future__ import annotations

import pandas as pd
import pytest

from projected_grpo.errors import LabError
from projected_grpo.evaluation.onset import onset, relapse


def logs(arm: str, *runs: tuple[list[float], list[float]]) -> pd.DataFrame:
    """Training logs of an arm: (hacked, correct) by step for seeds 1, 2, ..."""
    frames = [
        pd.DataFrame({"arm": arm, "seed": seed, "step": range(len(hacked)), "hacked": hacked, "correct": correct})
        for seed, (hacked, correct) in enumerate(runs, start=1)
    ]
    return pd.concat(frames, ignore_index=True)


RISING = ([0.1, 0.2, 0.3, 0.5, 0.9], [0.2, 0.2, 0.2, 0.1, 0.0])
NEVER = ([0.0, 0.0, 0.1, 0.0, 0.0], [0.2, 0.3, 0.3, 0.3, 0.3])


def test_hacks_lead_from_the_first_step_with_more_hacks_than_correct_answers():
    found = onset(logs("a", RISING, NEVER), "a", "hacks_lead_step")
    assert dict(found.by_seed) == {1: 2, 2: 5}  # equal shares at step 1 do not count; never counts as the length
    assert (found.reached, found.steps, found.mean()) == (1, 5, 3.5)


def test_half_are_hacks_from_the_first_step_at_one_half():
    found = onset(logs("a", RISING, NEVER), "a", "half_hacked_step")
    assert (dict(found.by_seed), found.reached) == ({1: 3, 2: 5}, 1)


def test_a_later_fall_does_not_take_the_onset_back():
    found = onset(logs("a", ([0.0, 0.6, 0.1, 0.6], [0.1] * 4)), "a", "half_hacked_step")
    assert dict(found.by_seed) == {1: 1}


def test_steps_are_taken_in_order_and_other_arms_left_alone():
    both = pd.concat([logs("a", RISING), logs("b", NEVER)]).sample(frac=1, random_state=0)
    assert dict(onset(both, "a", "half_hacked_step").by_seed) == {1: 3}
    assert dict(onset(both, "b", "half_hacked_step").by_seed) == {1: 5}


def test_runs_of_unequal_length_are_refused_within_an_arm_and_between_arms():
    short = ([0.1] * 3, [0.2] * 3)
    with pytest.raises(LabError, match="runs of 3, 5 steps"):
        onset(logs("a", RISING, short), "a", "half_hacked_step")
    one, other = (onset(logs("a", run), "a", "half_hacked_step") for run in (RISING, short))
    with pytest.raises(LabError, match="5 and 3 steps"):
        one.check_length(other)
    with pytest.raises(LabError, match="no run"):
        onset(logs("a", RISING), "b", "half_hacked_step")


def test_a_relapse_is_the_first_step_after_the_end_at_the_threshold():
    curve = [0.9, 0.1, 0.0, 0.2, 0.3, 0.6, 0.9, 0.8]
    found = relapse(curve, end=4, window=2)
    assert (found.before, found.after, found.step) == (pytest.approx(0.1), pytest.approx(0.85), 5)
    assert relapse(curve, end=4, window=2, threshold=0.95).step is None  # .9 before the end does not count
    assert relapse(curve, end=4, window=2, threshold=0.3).step == 4


@pytest.mark.parametrize(("end", "window"), [(1, 2), (7, 2), (4, 0), (4, 5)])
def test_a_relapse_needs_steps_on_both_sides(end, window):
    with pytest.raises(ValueError, match="on either side of the end"):
        relapse([0.0] * 8, end, window)
