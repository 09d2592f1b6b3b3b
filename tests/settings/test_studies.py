"""Studies: what they change, what they start from, and where their files lie."""

from typing import Any

import pytest

from projected_grpo.errors import ParamsError
from projected_grpo.settings.loader import in_study, section
from projected_grpo.settings.params import check
from projected_grpo.settings.seeds import Seeds
from projected_grpo.settings.studies import paths_of

PARAMS: dict[str, Any] = {
    "scale": "s",
    "scales": {"s": {"seeds": [1, 2], "base": {"path": "a", "sha256": "x"}, "extract": {"k": 4, "bodies": "both"}}},
    "studies": {
        "plain": {"arms": ["vanilla"], "seeds": [7]},
        "other": {"arms": ["vanilla"], "base": {"path": "b"}, "extract": {"k": 8}},
        "fold": {"of": "other", "arms": ["projected"], "extract": {"bodies": "lazy"}},
        "longer": {"of": "plain", "arms": ["projected"]},
        "chain": {"of": "fold", "arms": ["projected"]},
        "orphan": {"of": "ohter", "arms": ["projected"]},
    },
}


def test_a_study_writes_over_what_it_starts_from():
    block = in_study(PARAMS, "fold")["scales"]["s"]
    assert block["base"] == {"path": "b", "sha256": "x"}
    assert block["extract"] == {"k": 8, "bodies": "lazy"}
    assert section(in_study(PARAMS, "longer"), "seeds", Seeds).root == (7,)
    assert PARAMS["scales"]["s"]["extract"] == {"k": 4, "bodies": "both"}, "the scale itself stays"


def folders(study: str | None) -> dict[str, str]:
    paths = paths_of(PARAMS, study)
    return {name: str(getattr(paths, name)) for name in ("base", "problems", "directions", "runs")}


def test_base_and_data_are_those_of_what_a_study_starts_from_unless_it_changes_them():
    main = {"base": "data/base", "problems": "data/problems", "directions": "data/directions"}
    assert folders(None) == {**main, "runs": "data/runs"}
    assert folders("plain") == {**main, "runs": "data/study/plain/runs"}
    assert folders("longer") == {**main, "runs": "data/study/longer/runs"}
    own = {name: f"data/study/other/{name}" for name in ("base", "problems", "directions", "runs")}
    assert folders("other") == own
    fold = {name: f"data/study/fold/{name}" for name in ("problems", "directions", "runs")}
    assert folders("fold") == {**fold, "base": "data/study/other/base"}


@pytest.mark.parametrize(
    ("study", "said"),
    [("chain", "must not itself start from another study"), ("orphan", "did you mean `other`?")],
)
def test_what_a_study_starts_from_is_one_that_starts_from_none(study, said):
    with pytest.raises(ParamsError, match=f"studies.{study}.of") as caught:
        in_study(PARAMS, study)
    assert said in str(caught.value)


def test_a_faulty_origin_is_refused_with_all_other_faults(lab):
    lab.params["studies"]["core"]["of"] = "nothing"
    lab.params["studies"]["long"]["grpo"]["stepz"] = 3
    with pytest.raises(ParamsError) as caught:
        check(lab.write())
    assert {fault.setting for fault in caught.value.faults} == {"studies.core.of", "studies.long.grpo.stepz"}


def test_the_hash_of_a_studys_own_base_is_checked(lab):
    lab.params["studies"]["four_loopholes"]["base"]["sha256"] = "0" * 64
    with pytest.raises(ParamsError) as caught:
        check(lab.write())
    assert [fault.setting for fault in caught.value.faults] == ["studies.four_loopholes.base.sha256"], "folds share it"
