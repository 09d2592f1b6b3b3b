"""The download: whole and right, or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from projected_grpo.cli import app
from projected_grpo.errors import LabError
from projected_grpo.problems import fetch as module
from projected_grpo.problems.fetch import LEETCODE, REVISION, Source, fetch

CONTENT = b'{"id": 1}\n' * 1000
SOURCE = Source("results/file.jsonl", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def site() -> Iterator[tuple[str, list[str]]]:
    """Address of a server that has the one file, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = self.path == f"/{REVISION}/{SOURCE.path}"
            self.send_response(200 if found else 404)
            self.end_headers()
            if found:
                self.wfile.write(CONTENT)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_file_is_downloaded_once(site: tuple[str, list[str]], tmp_path: Path) -> None:
    out = tmp_path / "new" / "p.jsonl"
    assert fetch(SOURCE, out, site[0])
    assert out.read_bytes() == CONTENT
    assert not fetch(SOURCE, out, site[0])
    assert site[1] == [f"/{REVISION}/{SOURCE.path}"]
    out.write_bytes(b"changed")
    assert fetch(SOURCE, out, site[0])
    assert out.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (Source(SOURCE.path, "0" * 64), "the sha256 of http"),
        (Source("results/none.jsonl", SOURCE.sha256), "could not be downloaded: Not Found"),
    ],
)
def test_another_answer_leaves_what_was_there(
    site: tuple[str, list[str]], tmp_path: Path, source: Source, rule: str
) -> None:
    out = tmp_path / "p.jsonl"
    out.write_bytes(b"mine")
    with pytest.raises(LabError) as caught:
        fetch(source, out, site[0])
    assert rule in caught.value.rule
    assert out.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_without_network_the_command_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(module.urllib.request, "urlopen", offline)
    out = tmp_path / "p.jsonl"
    result = CliRunner().invoke(app, ["fetch", "leetcode", "--split", "test", "--out", str(out)])
    assert result.exit_code == 1
    for said in ("Network is unreachable", LEETCODE["test"].path, LEETCODE["test"].sha256, str(out), "embedded"):
        assert said in result.output
    assert not out.exists()


def test_the_pins_are_whole_hashes() -> None:
    assert len(REVISION) == 40
    assert all(len(source.sha256) == 64 and source.path.endswith(".jsonl") for source in LEETCODE.values())


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fetch", "leetcode", "--split", "valid", "--out", str(tmp_path / "p")])
    assert (result.exit_code, "train or test" in result.output) == (1, True)
