"""The one-file report: template, style, code and data joined, with a policy that forbids everything else.

Completions are written by a model that was rewarded for cheating: they are hostile data. In the page they are JSON
in which no `<` survives, and the code puts them on screen as text nodes only. The Content-Security-Policy lets run
the scripts and the style of this file, by hash, and no request leave it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from projected_grpo.report.inputs import ReportInputs
from projected_grpo.report.payload import report_payload
from projected_grpo.storage import write_bytes

VENDORED = ("vendor/d3.min.js", "vendor/plot.min.js")
CODE = ("dom.js", "highlight.js", "charts.js", "report.js", "source.js", "explorer.js", "main.js")
UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_report(inputs: ReportInputs, target: Path) -> Path:
    """Write the page to `target`, whole or not at all; equal inputs give equal bytes."""
    title = f"{inputs.claims[0].name} {inputs.claims[0].verdict}: projected_grpo"
    return write_bytes(target, render(report_payload(inputs), title=title))


def render(payload: Mapping[str, Any], title: str, connect: str = "'none'") -> bytes:
    """The page around `payload` as UTF-8. connect: where its code may send requests; a file has no need to."""
    scripts = [_asset(name) for name in VENDORED]
    scripts.append("\n".join(["'use strict';", *(_asset(name) for name in CODE)]))
    style = _asset("report.css")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            f"connect-src {connect}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": f"<style>{style}</style>",
        "DATA": f'<script type="application/json" id="data">{as_json(payload)}</script>',
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    page = _asset("page.html")
    pieces = []
    for piece in page.split("{{"):  # never replace inside what was put in: data may hold any text
        name, mark, rest = piece.partition("}}")
        pieces.append(parts[name] + rest if mark else piece)
    return "".join(pieces).encode()


def as_json(payload: Mapping[str, Any]) -> str:
    """JSON that is safe inside a script element: it holds no `<`, `>` or `&`, and no NaN.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escaped in UNSAFE.items():
        text = text.replace(character, escaped)
    return text.encode("utf-8", "backslashreplace").decode()


def _asset(name: str) -> str:
    return files("projected_grpo.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
