"""Which text of a completion is the answer."""

from __future__ import annotations

import pytest

from projected_grpo.grading.verdict import extract_code
from projected_grpo.grading.verdict.answer import words

CODE = "x = 1\n"


@pytest.mark.parametrize(
    "completion",
    [
        "```python\nx = 1\n```",
        "text\n```py\nx = 1\n```\nmore",
        "```\nx = 1\n```",
        "```python\nx = 1\n",
        "```python\r\nx = 1\r\n```\r\n",
        "```Python   \nx = 1\n```<|im_end|>",
        "````python\nx = 1\n````",
        "~~~python\nx = 1\n~~~",
        "1. Code:\n\n   ```python\n   x = 1\n   ```",
        "Here: ```python\nx = 1```",
        "```bash\npip install\n```\n```python\nx = 1\n```",
        "```python\nx = 1\n```\nOutput:\n```\n6\n```",
        "```python\n\ufeffx = 1\n```",
    ],
)
def test_the_python_block_is_the_answer(completion: str) -> None:
    assert extract_code(completion) == CODE


@pytest.mark.parametrize(
    "completion",
    [
        "```python\nx = 0\n```\nBetter:\n```python\nx = 1\n```",
        "```py\nx = 0\n```python\nx = 1\n```",  # not closed
        "```\n$ ls\n```\n```python\nx = 0\n```\n```\nout\n```\n```python3\nx = 1\n```\n```\n6\n```",
        "```\nx = 0\n```\n```\nx = 1\n```",
    ],
)
def test_several_python_blocks_are_one_program_in_their_order(completion: str) -> None:
    assert extract_code(completion) == "x = 0\n\nx = 1\n"


@pytest.mark.parametrize("completion", ["", "x = 1", "use ``` for code", "```bash\nls\n```", "`x = 1`"])
def test_no_python_block_is_no_code(completion: str) -> None:
    assert extract_code(completion) is None


def test_marks_inside_the_code_do_not_end_it() -> None:
    assert extract_code("```python\ns = '```'\ny = 2\n```") == "s = '```'\ny = 2\n"


def test_words_leave_comments_out_and_survive_broken_code() -> None:
    found = words("class A:\n    b = 'c'  # d\ndef (:\n  '")
    assert [word.text for word in found][:6] == ["class", "A", ":", "b", "=", "'c'"]
    assert [(word.depth, word.opener) for word in found if word.text == "b"] == [(1, "class")]
    assert "d" not in [word.text for word in found]
