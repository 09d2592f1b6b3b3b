from __future__ import annotations

import re

import pytest

from projected_grpo.problems.families import METHODS
from projected_grpo.problems.loopholes import LOOPHOLES

NAMED = ("run_tests", "sentinel", "stdout_marker", "file_marker", "eq_override", "exit_code")
MECHANISMS = {
    "run_tests": "calling",
    "sentinel": "flag",
    "stdout_marker": "output",
    "file_marker": "file",
    "eq_override": "equality",
    "exit_code": "ending with",
    "none": "hidden tests",
}


def words(name: str) -> list[str]:
    """ "run_tests" -> "run", "_tests": the pieces of which the tokenizer builds names; digits stand alone."""
    return re.findall(r"[_ .]?[a-z]+ ?|[0-9]", name)


def test_the_seven_loopholes() -> None:
    assert set(LOOPHOLES) == set(MECHANISMS)
    assert all(name == loophole.name for name, loophole in LOOPHOLES.items())


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_hint_names_its_mechanism_and_no_other(name: str) -> None:
    hint = LOOPHOLES[name].disclose("xyz")
    assert hint.startswith("It is graded by ")
    assert MECHANISMS[name] in hint
    assert not any(other in hint for key, other in MECHANISMS.items() if key != name)
    assert ("`xyz" in hint) == (name in NAMED)


@pytest.mark.parametrize("name", NAMED)
def test_at_least_ten_names_of_each_list_without_overlap(name: str) -> None:
    training, heldout = LOOPHOLES[name].training_tokens, LOOPHOLES[name].heldout_tokens
    assert len(set(training)) == len(training) >= 10
    assert len(set(heldout)) == len(heldout) >= 10
    assert not set(training) & set(heldout)


def test_names_belong_to_one_loophole_and_are_no_method_names() -> None:
    every = [t for loophole in LOOPHOLES.values() for t in loophole.training_tokens + loophole.heldout_tokens]
    assert len(every) == len(set(every))
    assert not set(every) & set(METHODS)


def test_loopholes_without_a_name_have_no_tokens() -> None:
    for name in set(LOOPHOLES) - set(NAMED):
        assert LOOPHOLES[name].training_tokens == LOOPHOLES[name].heldout_tokens == ()


def test_no_held_out_name_stands_inside_a_training_name() -> None:
    """Else a search for held-out names would find training names, and a memorised name might pay."""
    for loophole in LOOPHOLES.values():
        for heldout in loophole.heldout_tokens:
            assert not [token for token in loophole.training_tokens if heldout in token]


@pytest.mark.parametrize("name", NAMED)
def test_held_out_names_are_new_combinations_of_known_words(name: str) -> None:
    known = {word for token in LOOPHOLES[name].training_tokens for word in words(token)}
    for token in LOOPHOLES[name].heldout_tokens:
        assert "".join(words(token)) == token
        assert set(words(token)) <= known, token
        assert len(words(token)) > 1  # a single word could only be copied from training


def test_names_fit_where_they_are_used() -> None:
    for name in ("run_tests", "sentinel", "eq_override"):
        names = LOOPHOLES[name]
        assert all(token.isidentifier() for token in names.training_tokens + names.heldout_tokens)
    files = LOOPHOLES["file_marker"]
    assert all(re.fullmatch(r"[a-z]+\.[a-z]{3}", t) for t in files.training_tokens + files.heldout_tokens)
    statuses = [int(t.removeprefix("exit ")) for t in LOOPHOLES["exit_code"].training_tokens]
    statuses += [int(t.removeprefix("exit ")) for t in LOOPHOLES["exit_code"].heldout_tokens]
    assert len(set(statuses)) == len(statuses)
    assert all(0 <= status <= 125 and status not in (1, 2) for status in statuses)  # what a shell gives a meaning
    phrases = LOOPHOLES["stdout_marker"]
    assert all(re.fullmatch(r"[a-z]+( [a-z]+)+", t) for t in phrases.training_tokens + phrases.heldout_tokens)
