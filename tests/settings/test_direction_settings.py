"""The direction block: its refinements are off unless named, and none that would be ignored is accepted."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.extract import ExtractSettings

BLOCK = {"k": 8, "gate": "one_sided", "refresh_every": 10, "project": "gradient"}
EXTRACT = {"pairs": "p.yaml", "k_max": 16, "bodies": "both", "direction_file": None}


def test_refinements_are_off_unless_named() -> None:
    made = DirectionSettings.model_validate(BLOCK)
    assert made.model_dump() == {
        **BLOCK,
        "overshoot": 1.0,
        "preserve_magnitude": False,
        "purge_moments": False,
        "noise_floor": 0.0,
        "mean_diff": False,
        "random_match": "rank",
        "random_redraw": True,
    }
    assert ExtractSettings.model_validate(EXTRACT).model_dump() == {
        **EXTRACT,
        "loss": "fixed",
        "tau_axis": 0.0,
        "centred": False,
        "control_seed": 0,
        "loopholes": None,
    }


def test_refinements_go_together() -> None:
    changes = {"overshoot": 1.1, "preserve_magnitude": True, "purge_moments": True, "noise_floor": 0.25}
    assert DirectionSettings.model_validate({**BLOCK, **changes}).noise_floor == 0.25
    assert DirectionSettings.model_validate({**BLOCK, "k": 1, "mean_diff": True}).mean_diff


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        (DirectionSettings, {"mean_diff": True}, "must be 1 where mean_diff is true"),
        (DirectionSettings, {"k": 1, "mean_diff": True, "noise_floor": 0.1}, "must be 0 where mean_diff is true"),
        (DirectionSettings, {"purge_moments": True, "refresh_every": 0}, "must be false where refresh_every is 0"),
        (DirectionSettings, {"gate": "reverse", "preserve_magnitude": True}, "must be false where gate is reverse"),
        (DirectionSettings, {"random_match": "energy", "preserve_magnitude": True}, "must be rank where preserve"),
        (DirectionSettings, {"random_redraw": False, "refresh_every": 0}, "must be true where refresh_every is 0"),
        (DirectionSettings, {"overshoot": -0.5}, "greater than or equal to 0"),
        (DirectionSettings, {"overshoot": 11.0}, "less than or equal to 10"),
        (DirectionSettings, {"noise_floor": 1.0}, "less than 1"),
        (DirectionSettings, {"random_match": "norm"}, "'rank' or 'energy'"),
        (DirectionSettings, {"preserve_magnitude": 1}, "valid boolean"),
        (ExtractSettings, {"loss": "sum"}, "'fixed' or 'token_mean'"),
        (ExtractSettings, {"tau_axis": 1.0}, "less than 1"),
        (ExtractSettings, {"control_seed": -1}, "greater than or equal to 0"),
    ],
)
def test_what_is_refused(model: Any, changes: dict[str, object], said: str) -> None:
    block = BLOCK if model is DirectionSettings else EXTRACT
    with pytest.raises(ValidationError, match=said):
        model.model_validate({**block, **changes})


@pytest.mark.parametrize(
    ("direction", "contrast"),
    [
        ("hack", "hack"),
        ("permuted", "hack"),
        ("flipped", "hack"),
        ("clean", "hack"),
        ("placebo", "placebo"),
        ("random", None),
    ],
)
def test_which_pairs_an_arm_is_extracted_from(direction: str, contrast: str | None) -> None:
    arm = ArmSettings.model_validate({"intervention": "erase", "direction": direction})
    assert arm.contrast == contrast


def test_an_arm_that_acts_on_nothing_needs_no_pairs() -> None:
    assert ArmSettings.model_validate({"intervention": "measure"}).contrast is None
