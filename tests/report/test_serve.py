"""`rollouts serve`: the same answers as the data, whatever a request holds, and nothing beyond the named files."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from report_lab import SAMPLES, SEEDS, write_data

from projected_grpo.errors import LabError
from projected_grpo.report import rows

duckdb = pytest.importorskip("duckdb", reason="the extra `explore` is not installed")
from projected_grpo.report.serve import MOST, Rollouts, find, server  # noqa: E402

ARMS = ["base", "vanilla", "projected"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_data(tmp_path_factory.mktemp("it's data"), ARMS)
    path = root / "graded/vanilla/samples.parquet"
    samples = pd.read_parquet(path)
    samples.loc[0, "completion"] = "<script>" + "z" * 1_000_000
    samples.to_parquet(path)
    return root


@pytest.fixture(scope="module")
def rollouts(root: Path) -> Rollouts:
    return Rollouts(root)


@pytest.fixture(scope="module")
def every(root: Path) -> pd.DataFrame:
    return rows.with_texts(rows.read_rows(root / "graded", root / "runs", dict.fromkeys(ARMS[1:], SEEDS), "base"))


@pytest.fixture(scope="module")
def address(root: Path) -> Iterator[str]:
    with server(root) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def get(url: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


@pytest.mark.parametrize(
    ("asked", "condition"),
    [
        ({}, "seed > 0"),
        ({"arm": "vanilla", "verdict": "hacked"}, "arm == 'vanilla' and verdict == 'hacked'"),
        ({"phase": "heldout", "seed": "2"}, "phase == 'heldout' and seed == 2"),
        ({"hack_type": "prints_only", "from": "2", "to": "4"}, "hack_type == 'prints_only' and 2 <= step <= 4"),
        ({"to": "1"}, "0 <= step <= 1"),
        ({"q": "DEF RUN_CHECKS"}, "completion.str.contains('def run_checks')"),
        ({"q": "p3. it is"}, "prompt.str.contains('p3. It is')"),
    ],
)
def test_a_query_counts_what_the_files_hold(rollouts, every, asked, condition):
    answer = rollouts.query({**asked, "limit": "5"})
    wanted = every.query(condition)
    assert answer["total"] == len(wanted) > 0
    assert len(answer["rows"]) == 5
    first = {name: answer["rows"][0][name] for name in ("phase", "arm", "seed", "step", "group", "sample")}
    assert len(wanted.query(" and ".join(f"{name} == {value!r}" for name, value in first.items()))) == 1


def test_rows_have_the_keys_and_values_of_the_page(rollouts, every):
    [answer] = rollouts.query({"phase": "training", "arm": "vanilla", "limit": "1"})["rows"]
    assert set(answer) == set(rows.COLUMNS)
    place = [answer[name] for name in (*rows.GROUP, "sample")]
    [mine] = every[(every[[*rows.GROUP, "sample"]] == place).all(axis=1)].to_dict("records")
    assert {key: mine[key] for key in ("verdict", "hack_type", "completion", "length", "attempted")} == {
        key: answer[key] for key in ("verdict", "hack_type", "completion", "length", "attempted")
    }
    assert answer["advantage"] == pytest.approx(mine["advantage"], abs=1e-5)


def test_pages_follow_each_other_and_an_answer_is_never_long(rollouts, every):
    first, second = (rollouts.query({"offset": offset, "limit": "10"})["rows"] for offset in ("0", "10"))
    assert len({json.dumps(row) for row in (*first, *second)}) == 20
    assert len(rollouts.query({"limit": "1000000"})["rows"]) == min(MOST, len(every))
    assert rollouts.query({"offset": "99999999999999999999"})["rows"] == []


def test_a_group_is_whole(rollouts):
    [row] = rollouts.query({"phase": "training", "limit": "1"})["rows"]
    group = rollouts.group("/".join(str(row[name]) for name in rows.GROUP))["rows"]
    assert [each["sample"] for each in group] == list(range(SAMPLES))
    assert len({each["problem_id"] for each in group}) == 1


@pytest.mark.parametrize("text", ["x' OR 1=1 --", "'; DROP TABLE every; --", "%", "\\", '"'])
def test_what_is_asked_is_a_value_and_never_sql(rollouts, every, text):
    assert rollouts.query({"arm": text})["total"] == 0
    assert rollouts.query({"q": text})["total"] == every["completion"].str.contains(text, regex=False).sum()
    assert rollouts.group(f"training/{text}/1/0/0")["rows"] == []


def test_only_the_named_files_can_be_read(rollouts, tmp_path: Path):
    other = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    for statement in (f"SELECT * FROM '{other}'", "SELECT * FROM read_text('/etc/hostname')", "INSTALL httpfs",
                      f"COPY (SELECT 1) TO '{tmp_path}/out.csv'", "SET enable_external_access = true"):  # fmt: skip
        with pytest.raises(duckdb.Error):
            rollouts._connection.execute(statement)


def test_long_completions_are_cut(rollouts):
    [row] = rollouts.query({"q": "zzzz"})["rows"]
    assert (len(row["completion"]), row["length"]) == (rows.CUT, 1_000_008)


def test_the_page_may_ask_its_own_server_only(address):
    status, content, headers = get(address + "/")
    assert status == 200
    assert b"connect-src &#x27;self&#x27;" in content or b"connect-src 'self'" in content
    assert headers["Content-Type"].startswith("text/html")
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_answers_are_json_and_faults_are_told(address, every):
    status, content, _ = get(address + "/api/rollouts?arm=projected&limit=2")
    assert status == 200
    assert json.loads(content)["total"] == (every["arm"] == "projected").sum()
    for path in ("/api/rollouts?limit=x", "/api/group?id=a/b", "/api/rollouts?from=1e3"):
        status, content, _ = get(address + path)
        assert status == 400
        assert "bad request" in json.loads(content)["error"]
    assert get(address + "/etc/passwd")[0] == 404


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("localhost:1", 200), ("127.0.0.1", 200)])
def test_another_name_for_this_machine_is_refused(address, host, status):
    assert get(address + "/api/rollouts?limit=1", Host=host)[0] == status


def test_a_folder_without_results_and_a_taken_port_are_refused(root: Path, tmp_path: Path, address: str):
    with pytest.raises(LabError, match="must hold graded"):
        find(tmp_path)
    with pytest.raises(LabError, match="--port"):
        server(root, int(address.rsplit(":", 1)[1]))
