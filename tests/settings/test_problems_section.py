"""`problems`: a file is named where one is read, and nowhere else."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from projected_grpo.settings.problems import ProblemsSettings

EMBEDDED = {"source": "embedded", "stages": 5, "train": 4, "test": 2, "loopholes": ["run_tests"], "seed": 0}


def test_the_file_is_optional_for_embedded_problems() -> None:
    assert ProblemsSettings.model_validate(EMBEDDED).path is None
    assert ProblemsSettings.model_validate({**EMBEDDED, "path": None}).path is None


def test_all_loopholes_may_be_in_use() -> None:
    from projected_grpo.problems.loopholes import LOOPHOLES

    settings = ProblemsSettings.model_validate(
        {**EMBEDDED, "source": "leetcode", "path": "p", "loopholes": [*LOOPHOLES]}
    )
    assert set(settings.loopholes) == set(LOOPHOLES)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"path": "p.jsonl"}, "must not be set where source is embedded"),
        ({"source": "leetcode"}, "must be set where source is leetcode"),
        ({"source": "leetcode", "path": ""}, "at least 1 character"),
        ({"source": "hub"}, "'embedded' or 'leetcode'"),
    ],
)
def test_source_and_file_must_fit(change: dict, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        ProblemsSettings.model_validate({**EMBEDDED, **change})
