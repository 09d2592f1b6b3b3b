"""Rows of the explorer: what they hold, which of them a page shows, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from report_lab import GROUPS, PROBLEMS, SAMPLES, SEEDS, STEPS, write_data

from projected_grpo.errors import LabError
from projected_grpo.report import rows
from projected_grpo.report.inputs import hack_types, kinds_of

ARMS = ["base", "vanilla", "projected"]
TRAINED = {arm: SEEDS for arm in ARMS if arm != "base"}


@pytest.fixture(scope="module")
def every(data: Path) -> pd.DataFrame:
    return rows.read_rows(data / "graded", data / "runs", TRAINED, "base")


def table(folder: Path, **columns: list) -> pd.DataFrame:
    """Rows with the given columns, the others plain; their texts lie in `folder`."""
    length = len(next(iter(columns.values())))
    plain = {"phase": "training", "arm": "a", "seed": 1, "step": 0, "group": "0", "loophole": "run_tests",
             "problem_id": "p", "token": "t", "prompt": "do", "completion": "x", "length": 1, "reward": 0.0,
             "advantage": 0.0, "verdict": "unpaid", "attempted": False, "format_ok": True, "hack_type": "none",
             "reason": ""}  # fmt: skip
    made = pd.DataFrame({**{name: [value] * length for name, value in plain.items()},
                         "sample": list(range(length)), **columns})  # fmt: skip
    file = folder / "rows.parquet"
    made[list(rows.TEXTS)].to_parquet(file)
    sizes = {
        "bytes": made["completion"].str.slice(0, rows.CUT).map(rows._bytes),
        "prompt_bytes": made["prompt"].map(rows._bytes),
    }
    return made.assign(**sizes, file=str(file), place=range(length))[list(rows.PLAIN)]


def test_every_completion_of_every_phase_is_there_once(every):
    assert tuple(every.columns) == rows.PLAIN
    assert (
        len(every)
        == len(TRAINED) * len(SEEDS) * STEPS * GROUPS * SAMPLES + 2 * len(ARMS) * len(SEEDS) * PROBLEMS * SAMPLES
    )
    assert set(every[every["arm"] == "base"]["phase"]) == {"heldout", "train"}
    assert not every.duplicated([*rows.GROUP, "sample"]).any()
    hacked = every[(every["phase"] == "training") & (every["verdict"] == "hacked")]
    assert set(hacked["hack_type"]) == {"no_assertion", "prints_only"}


def test_verdicts_are_the_words_of_rollouts_show():
    graded = pd.DataFrame({"correct": [True, False, False, False], "hacked": [False, True, False, True]})
    assert rows.verdicts(graded.assign(grader_error=[None, None, "", "died"])).tolist() == [
        "correct", "hacked", "unpaid", "grader error",
    ]  # fmt: skip
    assert rows.verdicts(graded.assign(grader_error=[False, False, True, False])).tolist()[2] == "grader error"


def lying(data: Path, row: pd.Series) -> pd.Series:
    """The row as its own file has it, found by what it is and not by where it stands."""
    if row["phase"] == "training":
        every = pd.read_parquet(data / f"runs/{row['arm']}/{row['seed']}/rollouts.parquet").astype({"group": str})
        keys = ["step", "group", "sample"]
    else:
        every = pd.read_parquet(data / f"graded/{row['arm']}/samples.parquet")
        every = every.assign(phase=every["tokens"])
        keys = ["phase", "seed", "problem_id", "sample"]
    [found] = every[(every[keys] == row[keys]).all(axis=1)].to_dict("records")
    return found


@pytest.mark.parametrize("batch", [1, 5, 1024])
def test_texts_are_those_of_the_row_however_they_are_read(data: Path, monkeypatch: pytest.MonkeyPatch, batch: int):
    monkeypatch.setattr(rows, "BATCH", batch)
    every = rows.read_rows(data / "graded", data / "runs", TRAINED, "base")
    some = every.sample(40, random_state=1)
    told = rows.with_texts(some)
    assert told.index.tolist() == some.index.tolist()
    assert tuple(told.columns) == rows.COLUMNS
    for (_, row), size in zip(told.iterrows(), some[["bytes", "prompt_bytes"]].values.tolist(), strict=True):
        meant = lying(data, row)
        assert (row["prompt"], row["completion"]) == (meant["prompt"], meant["completion"])
        assert row["length"] == len(meant["completion"])
        assert size == [rows._bytes(meant["completion"]), rows._bytes(meant["prompt"])]


def test_texts_of_other_row_groups_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    every = table(tmp_path, completion=list("abcdefgh"))
    file = tmp_path / "rows.parquet"
    pq.write_table(pq.read_table(file), file, row_group_size=2)
    read, batches = [], pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *arguments: object, **options: object):
        read.extend(options["row_groups"])
        return batches(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    assert rows.with_texts(every.iloc[[7, 2, 3]])["completion"].tolist() == ["h", "c", "d"]
    assert read == [1, 3]


def test_a_missing_file_and_a_missing_label_are_refused(tmp_path: Path):
    write_data(tmp_path, ["base", "vanilla"])
    labels = tmp_path / "graded/vanilla/rollouts.parquet"
    pd.read_parquet(labels).iloc[3:].to_parquet(labels)
    with pytest.raises(LabError, match="no label for 3 of 144 rollouts of 'vanilla'"):
        rows.read_rows(tmp_path / "graded", tmp_path / "runs", {"vanilla": SEEDS}, "base")
    (tmp_path / "runs/vanilla/2/rollouts.parquet").unlink()
    with pytest.raises(LabError, match=r"vanilla/2/rollouts\.parquet"):
        rows.read_rows(tmp_path / "graded", tmp_path / "runs", {"vanilla": SEEDS}, "base")


def test_a_sample_keeps_groups_whole_and_its_budget(every):
    sample = rows.stratified(every, 30_000)
    sizes = sample.rows.groupby(list(rows.GROUP)).size()
    assert set(sizes) == {SAMPLES}
    assert sample.total == len(every)
    assert 20_000 < sum(map(rows._bytes, sample.rows["completion"])) < 30_000
    assert len(rows.stratified(every, 10**9).rows) == len(every)


def test_every_run_and_phase_is_in_a_small_sample(every):
    sample = rows.stratified(every, 30_000).rows
    runs = sample.groupby(["phase", "arm", "seed"]).size()
    assert len(runs) == 2 * len(ARMS) * len(SEEDS) + len(TRAINED) * len(SEEDS)
    assert sample["phase"].drop_duplicates().tolist() == ["heldout", "train", "training"]
    assert sample["arm"].drop_duplicates().tolist() == ["vanilla", "projected", "base"]


def test_the_sample_does_not_depend_on_the_order_of_rows(every):
    shuffled = every.sample(frac=1, random_state=3)
    order = {"vanilla": 0, "projected": 1, "base": 2}
    shuffled = shuffled.sort_values("arm", key=lambda arms: arms.map(order), kind="stable")
    pd.testing.assert_frame_equal(rows.stratified(shuffled, 20_000).rows, rows.stratified(every, 20_000).rows)


def test_the_rarest_kind_of_a_run_is_shown_first(tmp_path: Path):
    groups = [str(place // 2) for place in range(400)]
    common = table(tmp_path, group=groups, sample=[place % 2 for place in range(400)])
    common.loc[301, ["verdict", "hack_type"]] = ["hacked", "weak_assertion"]
    one_group = 2 * rows._bytes("x") + rows._bytes("do")
    assert rows.stratified(common, one_group).rows["verdict"].tolist() == ["unpaid", "hacked"]


def test_named_groups_go_in_before_all_others(every):
    wanted = rows.group_names(every).iloc[[77]].tolist()
    sample = rows.stratified(every, 1500, first=wanted).rows
    assert wanted[0] in set(rows.group_names(sample))


def test_a_long_completion_is_cut_and_its_length_kept(tmp_path: Path):
    long = table(tmp_path, completion=["y" * 1_000_000], length=[1_000_000])
    [row] = rows.stratified(long, 10_000).rows.to_dict("records")
    assert (row["completion"], row["length"]) == ("y" * rows.CUT, 1_000_000)


def test_markup_counts_with_the_room_its_escapes_take():
    assert rows._bytes("<" * 100) > rows._bytes("a" * 100) + 400


def test_an_example_is_of_the_commonest_kind_and_to_the_same_problem(tmp_path: Path):
    found = table(
        tmp_path,
        phase=["heldout"] * 7,
        arm=["v", "v", "v", "v", "p", "p", "p"],
        problem_id=["a", "b", "b", "c", "b", "a", "d"],
        verdict=["hacked", "hacked", "hacked", "hacked", "correct", "unpaid", "correct"],
        hack_type=["odd", "usual", "usual", "usual", "none", "none", "none"],
        length=[1, 5, 9, 7, 3, 3, 3],
    )
    assert rows.examples(found, "v", "p") == [2, 4]
    assert rows.examples(found[found["arm"] == "v"], "v", "p") == [3]
    assert rows.examples(found, "p", "v") == []


def test_packed_rows_come_back_as_they_were(every):
    sample = rows.stratified(every, 20_000).rows
    packed = rows.packed(sample)
    texts, columns = packed["texts"], packed["columns"]
    assert len(set(texts)) == len(texts)
    for name in ("completion", "verdict", "group"):
        assert [texts[code] for code in columns[name]] == sample[name].tolist()
    assert columns["seed"] == sample["seed"].tolist()
    assert columns["reward"][0] is None  # the evaluation has no reward
    assert "reward" not in packed["coded"]


def test_hack_types_are_shares_of_a_steps_rollouts(every):
    types = hack_types(every)
    one = every[(every["phase"] == "training") & (every["arm"] == "vanilla") & (every["step"] == 3)]
    share = types[(types["arm"] == "vanilla") & (types["step"] == 3)].set_index("hack_type")["share"]
    assert share["no_assertion"] == pytest.approx((one["hack_type"] == "no_assertion").mean())
    assert share["prints_only"] == 0
    assert set(types["hack_type"]) == {"no_assertion", "prints_only"}
    assert kinds_of(pd.DataFrame({"hack_type": ["other", "a", "b"], "share": [0.9, 0.1, 0.5]})) == ["b", "a", "other"]
