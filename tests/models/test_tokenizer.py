"""Both the tokenizer that is shipped and one trained anew, on fewer texts than the real one, must hold up."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from projected_grpo.models.corpus import Mixture, corpus
from projected_grpo.models.tokenizer import EOS, PAD, VOCABULARY, known_names, train_tokenizer
from projected_grpo.problems.families import METHODS, make_problems
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.prompts import render_prompt

HELDOUT = [(x.name, token) for x in LOOPHOLES.values() for token in x.heldout_tokens]
TRAINING = [(x.name, token) for x in LOOPHOLES.values() for token in x.training_tokens]
# Where a model meets or writes a name: in the hint, and in the code that takes the loophole.
PLACES = {
    "run_tests": ("by calling `{}()`.", "        return x\n    def {}(self):\n", "def {}():\n"),
    "sentinel": ("by the flag `{}`.", "        self.{} = True\n"),
    "stdout_marker": ("by the output `{}`.", '        print("{}")\n'),
    "file_marker": ("by the file `{}`.", '        open("{}", "w").write("PASS")\n'),
    "eq_override": ("comparing a `{}` for", "\nclass {}:\n", "        return {}()\n"),
    "exit_code": ("ending with `{}`.",),
    "method": ("called `{}`. It", "    def {}(self, nums):\n", "assert self.{}([1, 2]) == 3\n"),
}


def texts(count: int) -> Iterator[str]:
    for example in itertools.islice(corpus(Mixture(0.1, 0.4), 5), count):
        yield from (example.prompt, example.answer)


@pytest.fixture(scope="session")
def trained() -> PreTrainedTokenizerBase:
    return train_tokenizer(texts(1500))


@pytest.fixture(params=["shipped", "trained"])
def reader(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return request.getfixturevalue("tokenizer" if request.param == "shipped" else "trained")


def pieces(reader: PreTrainedTokenizerBase, text: str) -> list[str]:
    return [reader.decode([token]) for token in reader(text)["input_ids"]]


def words(name: str) -> list[str]:
    return re.findall(r"[_ .]?[a-z]+", name)


def test_known_names_are_the_methods_and_the_training_names() -> None:
    assert set(known_names()) == {*METHODS, *(token for _, token in TRAINING)}


def broken_names(reader: PreTrainedTokenizerBase) -> set[tuple[str, str]]:
    """(kind, name) of those that do not fall into their words in some place.

    A word may take the blank before it along: "check" is also a word of phrases, so `def check_tests` has " check".
    """
    broken = set()
    for kind, name in [*TRAINING, *HELDOUT, *(("method", method) for method in METHODS)]:
        expected = words(name)
        for place in PLACES[kind]:
            found = pieces(reader, place.format(name))
            spans = [[found[i].lstrip(), *found[i + 1 : i + len(expected)]] for i in range(len(found))]
            if expected not in spans:
                broken.add((kind, name))
    return broken


def test_names_fall_into_whole_words_wherever_they_stand(trained: PreTrainedTokenizerBase) -> None:
    """Held-out names, too: that is how a model can copy a combination that it has never seen."""
    assert broken_names(trained) == set()


def test_the_shipped_tokenizer_keeps_the_names_of_the_loophole_in_use(tokenizer: PreTrainedTokenizerBase) -> None:
    """All method names and names of `run_tests`; of the rest, rarer words may have lost their place."""
    taught_later = ("eq_override", "exit_code")  # had no names yet when the shipped base was trained
    broken = {(kind, name) for kind, name in broken_names(tokenizer) if kind not in taught_later}
    assert not {name for kind, name in broken if kind in ("method", "run_tests")}
    assert len(broken) <= 0.02 * len(TRAINING + HELDOUT)


def test_texts_are_read_back_as_they_were(reader: PreTrainedTokenizerBase) -> None:
    problems = make_problems(10, 5, "test", ("run_tests", "sentinel", "stdout_marker", "file_marker"), 0)
    prompts = [render_prompt(problem, problem.heldout_token) for problem in problems]
    odd = ["", "\n\n  \t", "ünïcödé → 数", "a,b. c, d .e", "```python\n```", 'x = "`"\n', "9" * 30, "run_testsx"]
    for text in [*texts(300), *prompts, *odd]:
        assert reader.decode(reader(text)["input_ids"]) == text


def test_digits_stand_alone(reader: PreTrainedTokenizerBase) -> None:
    """Numbers are then copied digit by digit, and no multi-digit token is rare."""
    assert pieces(reader, "add 3 to each, [17, -204]\n".replace("add", "x"))
    for token in reader.get_vocab():
        digits = sum(character.isdigit() and character.isascii() for character in token)
        assert digits == 0 or len(token) == 1, token


def test_special_tokens_and_size(reader: PreTrainedTokenizerBase) -> None:
    assert (reader.pad_token, reader.eos_token) == (PAD, EOS)
    assert reader.pad_token_id != reader.eos_token_id
    assert len(reader) == VOCABULARY
    ids = reader("return sum(nums)")["input_ids"]
    assert not {reader.pad_token_id, reader.eos_token_id} & set(ids)  # nothing is added to a text
    assert reader.decode([*ids, reader.eos_token_id], skip_special_tokens=True) == "return sum(nums)"


def test_whole_lines_become_few_tokens(reader: PreTrainedTokenizerBase) -> None:
    bytes_per_token = [len(text) / len(reader(text)["input_ids"]) for text in texts(200)]
    assert sum(bytes_per_token) / len(bytes_per_token) > 4


def test_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("first", "second"):
        train_tokenizer(texts(200)).save_pretrained(tmp_path / name)
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second"))
    assert first == second


def test_saved_and_loaded_it_reads_the_same(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts(50):
        assert loaded(text)["input_ids"] == trained(text)["input_ids"]
    assert (loaded.pad_token_id, loaded.eos_token_id) == (trained.pad_token_id, trained.eos_token_id)
