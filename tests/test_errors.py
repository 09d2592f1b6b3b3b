"""A refusal is the same wherever it was raised."""

import pickle

from projected_grpo.errors import LabError, ParamsError


def test_a_refusal_comes_back_from_another_process_as_it_was() -> None:
    one = LabError(setting="a.b", value=3, rule="must be 2", fix="set 2")
    back = pickle.loads(pickle.dumps(one))
    assert type(back) is LabError
    assert (str(back), back.value) == (str(one), 3)
    several = ParamsError([one, LabError(setting="c", value=None, rule="must be set", fix="set it")])
    returned = pickle.loads(pickle.dumps(several))
    assert type(returned) is ParamsError
    assert (str(returned), len(returned.faults)) == (str(several), 2)
