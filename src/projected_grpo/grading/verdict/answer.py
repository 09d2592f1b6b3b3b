"""From a completion to the answer: which text is the code, and which words stand in it.

Nothing here executes or parses the code: a completion may be built to crash a parser, and this runs in the
trainer.
"""

from __future__ import annotations

import io
import re
import textwrap
import tokenize
from typing import NamedTuple

_FENCE = re.compile(r"(?P<before>.*?)(?P<fence>`{3,}|~{3,})[ \t]*(?P<tag>[\w+.-]*)(?P<rest>.*)$")
_PYTHON = ("python", "py", "python3")
_SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)
_STRINGS = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))  # the latter since Python 3.12


def extract_code(completion: str) -> str | None:
    """The code of all fenced blocks tagged as Python, in order; if there are none, of the untagged ones; else None.

    Models spread one program over several blocks, and where a later block repeats the class, it is the later one that
    counts, as in any program. Other blocks (shell, expected output) are passed over. An unclosed block ends with the
    text. Fences of more than three marks, tildes, Windows line ends, indentation and a byte order mark are accepted.
    """
    blocks: dict[bool, list[str]] = {}  # whether tagged as Python -> the blocks
    fence, tag = "", ""
    lines: list[str] = []

    def close() -> None:
        code = textwrap.dedent("\n".join(lines)).lstrip("\ufeff").rstrip("\n") + "\n"
        if tag in _PYTHON or not tag:
            blocks.setdefault(bool(tag), []).append(code)
        lines.clear()

    for line in completion.replace("\r\n", "\n").split("\n"):
        found = _FENCE.match(line) if "```" in line or "~~~" in line else None
        if not fence:
            if found and not found["rest"].strip():
                fence, tag = found["fence"], found["tag"].lower()
        elif found and found["fence"].startswith(fence) and not (found["before"].strip() and found["rest"]):
            if found["before"].strip():
                lines.append(found["before"])
            close()
            reopened = bool(found["tag"])  # the model forgot to close the block before
            fence, tag = (found["fence"], found["tag"].lower()) if reopened else ("", "")
        else:
            lines.append(line)
    if fence:
        close()
    kept = blocks.get(True) or blocks.get(False)
    return "\n".join(kept) if kept else None


class Word(NamedTuple):
    """One token of the code, comments left out."""

    text: str
    is_string: bool
    depth: int  # of indentation
    opener: str  # first word of the unindented statement that it belongs to


def words(code: str) -> list[Word]:
    """The code's tokens, up to the first place that cannot be read."""
    found: list[Word] = []
    depth, opener, fresh = 0, "", True
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.INDENT:
                depth += 1
            elif token.type == tokenize.DEDENT:
                depth -= 1
            elif token.type == tokenize.NEWLINE:
                fresh = True
            elif token.type not in _SKIPPED:
                if fresh and depth == 0:
                    opener = token.string
                fresh = False
                is_string = token.type in _STRINGS
                found.append(Word(token.string, is_string, depth, opener))
    except (tokenize.TokenError, SyntaxError, ValueError):
        pass  # what comes before is enough: code that cannot be read does not run either
    return found
