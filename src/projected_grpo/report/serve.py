"""`projected-grpo rollouts serve`: the explorer over all completions on disk, through DuckDB, on loopback only.

The page is the report's explorer, fed by two read-only answers in JSON instead of a sample in the file. DuckDB reads
the Parquet files in place; it may open these files and nothing else. Everything that comes from a request is a
parameter of a statement, never part of one. Requests that name another host are refused: a page elsewhere that
resolves its own name to 127.0.0.1 must not read along.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from projected_grpo.errors import LabError
from projected_grpo.report import page, rows

LOOPBACK = "127.0.0.1"
MOST = 200  # rows of one answer
FILTERS = ("phase", "arm", "seed", "verdict", "hack_type", "loophole")
STEPS = 2**31 - 1  # largest step; a request may hold any number
# Arms of the default pipeline look as in the report.
LOOKS = {"base": "base", "vanilla": "reference", "projected": "treatment", "rl_baseline": "honest"}
# One table from three kinds of files; columns as in `rows.COLUMNS`. `?` are lists of files.
VIEW = """
    WITH labels AS (SELECT arm, seed, step, "group", sample, hack_type FROM read_parquet(?, union_by_name => true)),
    trained AS (
        SELECT 'training' AS phase, r.arm, r.seed, r.step, r."group", r.sample, r.problem_id, r.loophole, r.token,
               r.prompt, r.completion, r.reward, r.advantage, r.attempted, r.format_ok, r.correct, r.hacked,
               coalesce(r.grader_error, '') <> '' AS failed, coalesce(l.hack_type, '') AS hack_type, '' AS reason
        FROM read_parquet(?, union_by_name => true) r LEFT JOIN labels l USING (arm, seed, step, "group", sample)
    ),
    evaluated AS (
        SELECT tokens AS phase, arm, seed, -1 AS step, problem_id AS place, sample, problem_id, loophole, token, prompt,
               completion, NULL::FLOAT AS reward, NULL::FLOAT AS advantage, attempted, format_ok, correct, hacked,
               grader_error AS failed, hack_type, reason
        FROM read_parquet(?, union_by_name => true)
    ),
    every AS (
        SELECT * EXCLUDE ("group"), "group"::VARCHAR AS "group" FROM trained
        UNION ALL BY NAME SELECT * EXCLUDE (place), place AS "group" FROM evaluated
    )
    SELECT phase, arm, seed::INTEGER AS seed, step::INTEGER AS step, "group", sample::INTEGER AS sample, problem_id,
           loophole, token, prompt, completion, length(completion) AS length, reward, advantage,
           CASE WHEN failed THEN 'grader error' WHEN hacked THEN 'hacked' WHEN correct THEN 'correct' ELSE 'unpaid' END
               AS verdict, attempted, format_ok, hack_type, reason
    FROM every
"""


@dataclass(frozen=True)
class Files:
    """Parquet files of a data folder, by kind."""

    labels: tuple[str, ...]
    rollouts: tuple[str, ...]
    samples: tuple[str, ...]


def find(root: Path) -> Files:
    """What `root` (a folder like data/) holds: graded/<arm>/*.parquet and runs/<arm>/<seed>/rollouts.parquet.

    Raises:
        LabError: it holds no graded samples, or no rollouts with their labels.
    """
    patterns = ("graded/*/rollouts.parquet", "runs/*/*/rollouts.parquet", "graded/*/samples.parquet")
    found = Files(*(tuple(sorted(str(path.resolve()) for path in root.glob(pattern))) for pattern in patterns))
    if not (found.labels and found.rollouts and found.samples):
        raise LabError(
            setting="data folder",
            value=str(root),
            rule="must hold graded/<arm>/samples.parquet, graded/<arm>/rollouts.parquet and runs/<arm>/<seed>/",
            fix="run `dvc repro`, or name the folder of a study that ran",
        )
    return found


class Rollouts:
    """Queries over the files. Threads take turns: one connection, one lock."""

    def __init__(self, root: Path) -> None:
        files = find(root)
        self._connection = _database(files)
        self._lock = threading.Lock()
        self._view = f"({VIEW})"
        self._sources = [list(files.labels), list(files.rollouts), list(files.samples)]
        self.total = int(self._ask(f"SELECT count(*) AS n FROM {self._view}", [])[0]["n"])

    def facets(self) -> dict[str, list[str]]:
        """Values of each filter, as text, sorted."""
        wanted = ", ".join(f"list(DISTINCT {name}::VARCHAR) AS {name}" for name in FILTERS)
        [found] = self._ask(f"SELECT {wanted} FROM {self._view}", [])
        return {name: sorted(value for value in found[name] if value) for name in FILTERS}

    def query(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """The page's query: filters, `from`, `to` (steps), `q` (text), `offset`, `limit`.

        Raises:
            ValueError: a number is none.
        """
        conditions: list[str] = ["TRUE"]
        values: list[Any] = []
        for name in FILTERS:
            if asked.get(name):
                conditions.append(f"{name}::VARCHAR = ?")
                values.append(asked[name])
        for name, condition in (("from", "step >= ?"), ("to", "step BETWEEN 0 AND ?")):
            if asked.get(name):
                conditions.append(condition)
                values.append(_number(asked[name]))
        if asked.get("q"):
            conditions.append("(contains(lower(completion), lower(?)) OR contains(lower(prompt), lower(?)))")
            values += [asked["q"], asked["q"]]
        where = " AND ".join(conditions)
        [counted] = self._ask(f"SELECT count(*) AS n FROM {self._view} WHERE {where}", values)
        limit = min(MOST, max(1, _number(asked.get("limit", str(MOST)))))
        offset = max(0, _number(asked.get("offset", "0")))
        place = 'phase, arm, seed, step, "group", sample'
        ordered = f"SELECT * FROM {self._view} WHERE {where} ORDER BY {place} LIMIT ? OFFSET ?"
        return {"total": int(counted["n"]), "rows": self._rows(ordered, [*values, limit, offset])}

    def group(self, name: str) -> dict[str, Any]:
        """Completions of one group, `phase/arm/seed/step/group`.

        Raises:
            ValueError: the name has other parts.
        """
        phase, arm, seed, step, place = name.split("/", 4)
        where = 'phase = ? AND arm = ? AND seed = ? AND step = ? AND "group" = ?'
        values = [phase, arm, _number(seed), _number(step), place]
        return {"rows": self._rows(f"SELECT * FROM {self._view} WHERE {where} ORDER BY sample LIMIT {MOST}", values)}

    def _rows(self, statement: str, values: list[Any]) -> list[dict[str, Any]]:
        shown = ("completion", "prompt")
        return [row | {name: row[name][: rows.CUT] for name in shown} for row in self._ask(statement, values)]

    def _ask(self, statement: str, values: list[Any]) -> list[dict[str, Any]]:
        with self._lock:
            cursor = self._connection.execute(statement, [*self._sources, *values])
            names = [column[0] for column in cursor.description]
            found = cursor.fetchall()
        return [{name: _json(value) for name, value in zip(names, row, strict=True)} for row in found]


def _number(text: str) -> int:
    return min(max(int(text), -STEPS), STEPS)


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _database(files: Files) -> Any:
    """A DuckDB in memory that may read `files` and touch nothing else.

    Raises:
        LabError: duckdb is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise LabError(
            setting="rollouts serve",
            value="duckdb is not installed",
            rule="it queries the Parquet files",
            fix="pip install -c requirements.lock -e '.[explore]'; plots/report.html needs nothing",
        ) from None
    connection = duckdb.connect(":memory:")
    connection.execute("SET autoinstall_known_extensions = false; SET autoload_known_extensions = false")
    paths = [path.replace("'", "''") for path in (*files.labels, *files.rollouts, *files.samples)]
    allowed = ", ".join(f"'{path}'" for path in paths)
    connection.execute(f"SET allowed_paths = [{allowed}]; SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def served_page(rollouts: Rollouts) -> bytes:
    """The explorer's page for the server; colours by the usual names of arms, controls in turn."""
    facets = rollouts.facets()
    others = [arm for arm in facets["arm"] if arm not in LOOKS]
    looks = {arm: LOOKS.get(arm) or f"control-{others.index(arm) % 4}" for arm in facets["arm"]}
    arms = [{"name": arm, "look": looks[arm], "role": ""} for arm in facets["arm"]]
    payload = {"kind": "served", "arms": arms, "facets": facets, "total": rollouts.total}
    return page.render(payload, title="Rollouts: projected_grpo", connect="'self'")


def server(root: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server on loopback, ready for `serve_forever`; port 0 takes a free one.

    Raises:
        LabError: duckdb is missing, `root` holds no results, or the port is taken.
    """
    rollouts = Rollouts(root)
    content = served_page(rollouts)
    try:
        return _Server((LOOPBACK, port), rollouts, content)
    except OSError as error:
        raise LabError(
            setting="--port", value=port, rule=f"must be free ({error.strerror})", fix="name another, or 0 for any"
        ) from None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], rollouts: Rollouts, content: bytes) -> None:
        super().__init__(address, _Handler)
        self.rollouts = rollouts
        self.content = content


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "projected-grpo"
    sys_version = ""

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (LOOPBACK, "localhost"):
            return self._answer(403, b"only for this machine", "text/plain")
        asked = urlsplit(self.path)
        query = dict(parse_qsl(asked.query))
        try:
            if asked.path == "/":
                return self._answer(200, self.server.content, "text/html; charset=utf-8")
            if asked.path == "/api/rollouts":
                return self._json(200, self.server.rollouts.query(query))
            if asked.path == "/api/group":
                return self._json(200, self.server.rollouts.group(query.get("id", "")))
        except (ValueError, OverflowError) as error:
            return self._json(400, {"error": f"bad request: {error}"})
        return self._answer(404, b"nothing here", "text/plain")

    def _json(self, status: int, content: Mapping[str, Any]) -> None:
        self._answer(status, json.dumps(content, allow_nan=False).encode(), "application/json")

    def _answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "frame-ancestors 'none'")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:  # a line per request helps nobody
        return
