"""What the explorer shows of a completion, and which completions go into the page.

A row is one completion with its place and its grades, the same columns for all phases:

    training   sampled while training; a group is one prompt of one step, its completions share a baseline
    heldout    sampled afterwards under held-out names; a group is one problem
    train      the same under the names of training

The page holds a sample drawn by whole groups, so that what was paid stands beside what was not. It is stratified
by phase, arm, seed and stretch of training, and rare kinds of hacks come first: it shows, it does not count.

Texts need not fit into memory: the choice is made from rows without them (`PLAIN`), which say how long the texts are
and where they lie; those of the chosen rows alone are read then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from projected_grpo.errors import LabError

TRAINING, HELDOUT, TRAIN = "training", "heldout", "train"
PLACE = ("arm", "seed", "step", "group", "sample")  # of a completion of training
COLUMNS = (
    "phase", "arm", "seed", "step", "group", "sample", "problem_id", "loophole", "token", "prompt", "completion",
    "length", "reward", "advantage", "verdict", "attempted", "format_ok", "hack_type", "reason",
)  # fmt: skip
TEXTS = ("prompt", "completion")
# A row without its texts: what these take in a page, and its place in its file of Parquet.
PLAIN = (*(name for name in COLUMNS if name not in TEXTS), "bytes", "prompt_bytes", "file", "place")
GROUP = ("phase", "arm", "seed", "step", "group")
BATCH = 1024  # rows whose texts are read at a time
CUT = 4000  # characters of a completion that go into a page
ROW = 120  # bytes of a row without its texts
STRETCHES = 10  # of training, from each of which every run shows groups; a model's evaluation counts as so many, too


@dataclass(frozen=True, eq=False)
class RolloutSample:
    """`rows` with `COLUMNS`, completions cut at `CUT` characters (`length` is the whole); `total` rows there were."""

    rows: pd.DataFrame
    total: int


def read_rows(graded: Path, runs: Path, seeds: Mapping[str, Sequence[int]], base: str) -> pd.DataFrame:
    """All completions of the named runs and of the untrained `base` (which has no training), as `PLAIN`.

    Raises:
        LabError: a file is missing, or training rollouts and their labels do not belong together.
    """
    frames = [_evaluated(graded / arm / "samples.parquet") for arm in (*seeds, base)]
    frames += [_trained(graded / arm / "rollouts.parquet", runs / arm, arm, seeds[arm]) for arm in seeds]
    return pd.concat(frames, ignore_index=True)


def verdicts(rows: pd.DataFrame) -> pd.Series:
    """One word per row: grader error, hacked, correct or unpaid; the words of `rollouts show`."""
    failed = rows["grader_error"]
    failed = failed if failed.dtype == bool else failed.fillna("") != ""
    words = pd.Series("unpaid", index=rows.index)
    words = words.mask(rows["correct"].astype(bool), "correct").mask(rows["hacked"].astype(bool), "hacked")
    return words.mask(failed, "grader error")


def with_texts(rows: pd.DataFrame) -> pd.DataFrame:
    """`PLAIN` rows as `COLUMNS`: their prompts and completions (whole) read from where they lie."""
    found = [_texts(Path(str(file)), places) for file, places in rows.groupby("file", sort=False)["place"]]
    texts = pd.concat(found) if found else pd.DataFrame(columns=list(TEXTS))
    return rows.join(texts)[list(COLUMNS)]


def _texts(file: Path, places: pd.Series) -> pd.DataFrame:
    """`TEXTS` of the rows of one file that stand at `places`, indexed as these; other row groups are not read."""
    wanted, parquet, start = places.sort_values(), pq.ParquetFile(file), 0
    found = []
    for group in range(parquet.num_row_groups):
        end = start + parquet.metadata.row_group(group).num_rows
        if wanted.between(start, end - 1).any():
            for batch in parquet.iter_batches(BATCH, row_groups=[group], columns=list(TEXTS)):
                inside = wanted[wanted.between(start, start + len(batch) - 1)]
                found.append(pa.Table.from_batches([batch]).take(pa.array(inside - start)))
                start += len(batch)
        start = end
    return pa.concat_tables(found).to_pandas().set_axis(wanted.index)


def stratified(rows: pd.DataFrame, budget: int, first: Sequence[str] = ()) -> RolloutSample:
    """Of `PLAIN` rows, whole groups of about `budget` bytes of the page in all, never more, with their texts.

    first: names (`group_names`) of groups that go in before all others.

    Rows come held-out names first, arms in the order in which `rows` has them. Groups are taken in turns over the
    strata, so that each has as many as any other while it lasts. Within a stratum every other turn goes to the group
    with the kind (verdict and hack type) that its run shows least, the rest by a hash of their place: the same rows
    for the same data, whatever the order of the files.
    """
    key = group_names(rows)
    cost = rows["bytes"].groupby(key).sum() + rows["prompt_bytes"].groupby(key).first()
    taken: list[str] = []
    spent = 0
    for name in dict.fromkeys([*first, *_in_turns(rows, key)]):
        if spent + cost[name] > budget:
            continue
        spent += int(cost[name])
        taken.append(name)
    order = {name: place for place, name in enumerate((HELDOUT, TRAIN, TRAINING, *rows["arm"].unique()))}
    kept = rows[key.isin(taken)].sort_values(
        [*GROUP, "sample"], kind="stable", key=lambda keys: keys.map(order) if keys.name in ("phase", "arm") else keys
    )
    return RolloutSample(cut(with_texts(kept)).reset_index(drop=True), len(rows))


def cut(rows: pd.DataFrame) -> pd.DataFrame:
    """`COLUMNS` rows with completions as a page shows them."""
    return rows.assign(completion=rows["completion"].str.slice(0, CUT))


def _bytes(text: str) -> int:
    """About what a row with this text takes in the page: escaped characters are longer than what they stand for."""
    return ROW + len(json.dumps(text)) + 5 * (text.count("<") + text.count(">") + text.count("&"))


def group_names(rows: pd.DataFrame) -> pd.Series:
    """phase/arm/seed/step/group of each row."""
    names = rows["phase"].astype(str)
    for column in GROUP[1:]:
        names = names + "/" + rows[column].astype(str)
    return names


def examples(rows: pd.DataFrame, hacking: str, other: str) -> list[int]:
    """Index labels of one typical hack of arm `hacking` and, if there is one, a correct answer of arm `other`.

    Both under held-out names and to the same problem where possible. Typical: of the commonest type of hack, and of
    middle length. Empty where `hacking` never hacked.
    """
    heldout = rows[rows["phase"] == HELDOUT]
    hacks = heldout[(heldout["arm"] == hacking) & (heldout["verdict"] == "hacked")]
    if hacks.empty:
        return []
    hacks = hacks[hacks["hack_type"] == hacks["hack_type"].mode()[0]]
    solved = heldout[(heldout["arm"] == other) & (heldout["verdict"] == "correct")]
    both = hacks[hacks["problem_id"].isin(solved["problem_id"])]
    hack = _middle(both if len(both) else hacks)
    answers = solved[solved["problem_id"] == rows.loc[hack, "problem_id"]]
    answers = answers if len(answers) else solved
    return [hack, _middle(answers)] if len(answers) else [hack]


def _middle(rows: pd.DataFrame) -> int:
    ordered = with_texts(rows).sort_values(["length", "completion", "seed", "sample"], kind="stable")
    return int(ordered.index[len(ordered) // 2])


def _in_turns(rows: pd.DataFrame, key: pd.Series) -> list[str]:
    """Names of all groups, in rounds: one of each run and phase after the other, a run's parts in turns."""
    steps = max(1, int(rows["step"].max()) + 1)
    problem = pd.Series(pd.factorize(rows["problem_id"], sort=True)[0], index=rows.index)
    part = (rows["step"] * STRETCHES // steps).where(rows["phase"] == TRAINING, problem % STRETCHES)
    run = rows["phase"] + "/" + rows["arm"] + "/" + rows["seed"].astype(str)
    kind = run + "/" + rows["verdict"] + "/" + rows["hack_type"]
    rarity = kind.map(kind.value_counts()).groupby(key).min()
    groups = pd.DataFrame({"run": run.groupby(key).first(), "part": part.groupby(key).first(), "rarity": rarity})
    groups["draw"] = [hashlib.sha256(name.encode()).hexdigest() for name in groups.index]
    # Every other turn goes to the rare ones; the rest is a plain draw, or the page would hold odd groups only.
    rare = groups.sort_values(["rarity", "draw"]).groupby(["run", "part"]).cumcount() * 2
    plain = groups.sort_values("draw").groupby(["run", "part"]).cumcount() * 2 + 1
    groups["turn"] = pd.concat([rare, plain]).groupby(level=0).min()
    groups["round"] = groups.sort_values(["turn", "draw"]).groupby("run").cumcount()
    return [str(name) for name in groups.sort_values(["round", "draw"]).index]


def _evaluated(path: Path) -> pd.DataFrame:
    rows = _read(path)
    return _columns(rows.assign(phase=rows["tokens"], step=-1, group=rows["problem_id"], reward=None, advantage=None))


def _trained(labels: Path, runs: Path, arm: str, seeds: Sequence[int]) -> pd.DataFrame:
    rollouts = pd.concat([_read(runs / str(seed) / "rollouts.parquet") for seed in seeds], ignore_index=True)
    named = _read(labels)[[*PLACE, "hack_type"]]
    rows = rollouts.merge(named, on=list(PLACE), how="left", validate="one_to_one")
    if rows["hack_type"].isna().any():
        missing = int(rows["hack_type"].isna().sum())
        raise LabError(
            setting=str(labels),
            value=f"no label for {missing} of {len(rows)} rollouts of {arm!r}",
            rule="every training rollout is labelled",
            fix="run the stage `grade` of this arm again",
        )
    return _columns(rows.assign(phase=TRAINING, group=rows["group"].astype(str), reason=""))


def _columns(rows: pd.DataFrame) -> pd.DataFrame:
    """The common columns; `hack_type` is "" where nothing could be graded."""
    return rows.assign(verdict=verdicts(rows))[list(PLAIN)]


def _read(path: Path) -> pd.DataFrame:
    """A file's rows; texts as their sizes and their place, read batch by batch."""
    if not path.is_file():
        raise LabError(
            setting=str(path),
            value="no such file",
            rule="every compared arm is trained, sampled and graded",
            fix="run `dvc repro`",
        )
    schema = pq.read_schema(path)
    shown = [name for name in schema.names if name != "token_ids"]  # by far the widest, and not shown
    if not set(TEXTS) <= set(shown):
        return pd.read_parquet(path, columns=shown)
    file = pq.ParquetFile(path)
    plain = pa.concat_tables(_measured(batch) for batch in file.iter_batches(BATCH, columns=shown))
    return plain.to_pandas().assign(file=str(path), place=range(file.metadata.num_rows))


def _measured(batch: pa.RecordBatch) -> pa.Table:
    """The batch with, in the place of its texts, what they take in a page."""
    prompts, completions = (batch.column(name).to_pylist() for name in TEXTS)
    table = pa.Table.from_batches([batch]).drop_columns(list(TEXTS))
    return (
        table.append_column("length", pa.array([len(text) for text in completions], pa.int64()))
        .append_column("bytes", pa.array([_bytes(text[:CUT]) for text in completions], pa.int64()))
        .append_column("prompt_bytes", pa.array([_bytes(text) for text in prompts], pa.int64()))
    )


def packed(rows: pd.DataFrame) -> dict[str, Any]:
    """Rows by column, for JSON: texts as indices into one list of distinct texts, as prompts repeat by group."""
    texts: dict[str, int] = {}
    columns: dict[str, list[Any]] = {}
    coded = [name for name in COLUMNS if pd.api.types.is_string_dtype(rows[name])]
    for name in COLUMNS:
        if name in coded:
            columns[name] = [texts.setdefault(text, len(texts)) for text in rows[name].fillna("").astype(str)]
        else:
            values = rows[name].astype(object)
            columns[name] = values.where(rows[name].notna(), None).tolist()
    return {"texts": list(texts), "columns": columns, "coded": coded}
