"""How a base is asked: the bare text, or a chat with examples and a beginning of the answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from projected_grpo.problems.families import make_problems
from projected_grpo.problems.pairs import read_pairs
from projected_grpo.problems.prompts import (
    FORM_FILE,
    PLAIN,
    PromptForm,
    read_form,
    render_prompt,
    worked_examples,
    write_form,
)

ROOT = Path(__file__).resolve().parents[2]
PREFILL = "```python\nclass Solution:\n    def"
# ChatML, with a template's own system message, and thinking as Qwen3's template switches it off.
TEMPLATE = """{%- if messages[0].role != 'system' %}{{ '<s>of the template</s>' }}{% endif -%}
{%- for m in messages %}{{ '<' ~ m.role ~ '>' ~ m.content ~ '</' ~ m.role ~ '>' }}{% endfor -%}
{%- if add_generation_prompt %}{{ '<assistant>' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif -%}"""
[PROBLEM] = make_problems(1, 5, "test", ("run_tests",), 0)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    found = AutoTokenizer.from_pretrained(ROOT / "data/shipped/micro")
    found.chat_template = TEMPLATE
    return found


def test_the_plain_form_changes_nothing() -> None:
    [pair, *_] = read_pairs(ROOT / "data/shipped/pairs.yaml")
    assert PLAIN.render(PROBLEM, "verify") == render_prompt(PROBLEM, "verify")
    assert PLAIN.pair(pair) == pair
    assert (PLAIN.answer("x"), PLAIN.written("x")) == ("x", "x")


def test_a_chat_ends_where_the_policy_goes_on(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = PromptForm(tokenizer, prefill=PREFILL).render(PROBLEM, "verify")
    question = render_prompt(PROBLEM, "verify").strip()
    assert asked == f"<s>of the template</s><user>{question}</user><assistant><think></think>{PREFILL}"


def test_examples_stand_before_the_problem_and_are_honest(tokenizer: PreTrainedTokenizerBase) -> None:
    form = PromptForm(tokenizer, system="Be brief.", shots=2)
    asked = form.wrap("THE QUESTION\n")
    assert asked.startswith("<system>Be brief.</system><user>")
    assert "of the template" not in asked
    assert asked.endswith("<user>THE QUESTION</user><assistant><think></think>")
    assert asked.count("<user>") == 3
    for task in worked_examples(2):
        assert f"<assistant>```python\n{task.solution.strip()}\n```</assistant>" in asked
    for name in ("run_tests", "check", "verify"):
        assert name not in asked, "an example discloses a loophole"


def test_examples_are_always_the_same_and_all_different() -> None:
    tasks = worked_examples(8)
    assert tasks[:3] == worked_examples(3)
    assert len({task.composition for task in tasks}) == 8
    assert {len(task.operations) for task in tasks} == {2}


def test_a_start_token_stands_once(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    class Starting:
        """A tokenizer that puts its start token before every text, as its template does."""

        bos_token, bos_token_id, chat_template = "<s>", 7, TEMPLATE

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [7, *range(len(text))]}

        def apply_chat_template(self, *args: object, **kwargs: object) -> str:
            return str(tokenizer.apply_chat_template(*args, **kwargs))  # type: ignore[arg-type]

    starting = PromptForm(Starting())  # type: ignore[arg-type]
    assert starting.wrap("q") == "of the template</s><user>q</user><assistant><think></think>"
    monkeypatch.setattr(Starting, "__call__", lambda *_: {"input_ids": [1]})
    assert starting.wrap("q").startswith("<s>of the template")


@pytest.mark.parametrize("name", ["pairs.yaml", "pairs_balanced.yaml"])
def test_the_answers_of_the_shipped_pairs_begin_as_every_answer_does(
    tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    form = PromptForm(tokenizer, prefill=PREFILL)
    for pair in read_pairs(ROOT / "data/shipped" / name):
        asked = form.pair(pair)
        assert asked.prompt == form.wrap(pair.prompt)
        assert (PREFILL + asked.hack, PREFILL + asked.clean) == (pair.hack, pair.clean)


def test_an_answer_that_begins_otherwise_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ValueError, match=r"must begin with base\.prompt\.prefill"):
        PromptForm(tokenizer, prefill=PREFILL).written("def f(): ...")


def test_the_form_lies_beside_the_base(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    assert read_form(tmp_path, tokenizer) is PLAIN
    write_form(tmp_path, "Be brief.", 2, PREFILL)
    assert read_form(tmp_path, tokenizer) == PromptForm(tokenizer, "Be brief.", 2, PREFILL)
    first = (tmp_path / FORM_FILE).read_bytes()
    write_form(tmp_path, "Be brief.", 2, PREFILL)
    assert (tmp_path / FORM_FILE).read_bytes() == first
