"""Pairs of others: a JSON list of prompt, hack and clean; and what a file of pairs is refused for."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from projected_grpo.problems.drafting import BALANCED, draft_pairs
from projected_grpo.problems.pairs import CONTRASTS, dump_pairs, read_pairs, select


def triples(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"task {i}", "hack": f"cheat {i}", "clean": f"solve {i}"} for i in range(count)]


def written(tmp_path: Path, rows: object, name: str = "pairs.json") -> Path:
    path = tmp_path / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


def test_triples_become_hack_pairs_with_a_fourth_held_out(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, triples(80)))
    assert Counter((pair.contrast, pair.split) for pair in pairs) == {("hack", "extract"): 60, ("hack", "heldout"): 20}
    fifth = pairs[5]
    assert (fifth.id, fifth.prompt, fifth.hack, fifth.clean) == ("pair-005", "task 5", "cheat 5", "solve 5")
    assert (fifth.loophole, fifth.hack_type, fifth.body) == ("none", "unknown", "unknown")
    assert len({pair.id for pair in pairs}) == 80


def test_a_triple_may_say_more(tmp_path: Path) -> None:
    rows = triples(3)
    rows[0] |= {"id": "mine", "contrast": "placebo", "split": "heldout"}
    rows[1] |= {"loophole": "sentinel", "hack_type": "flag_set", "body": "lazy"}
    first, second, _ = read_pairs(written(tmp_path, rows))
    assert (first.id, first.contrast, first.split) == ("mine", "placebo", "heldout")
    assert (second.loophole, second.hack_type, second.body) == ("sentinel", "flag_set", "lazy")


def test_pairs_that_do_not_say_their_body_count_only_where_all_do(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, triples(4)))
    assert len(select(pairs, "hack", "extract", "both")) == 3
    assert select(pairs, "hack", "extract", "lazy") == []


def test_triples_can_be_written_as_yaml_and_read_back(tmp_path: Path) -> None:
    """As the stage does that hands them on."""
    pairs = read_pairs(written(tmp_path, triples(5)))
    assert read_pairs(written(tmp_path, dump_pairs(pairs), "pairs.yaml")) == pairs


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "p", "hack": "h"}], r"pair 1: fields missing or unknown: clean"),
        ([*triples(1), {"prompt": "p", "clean": "c", "extra": 1}], r"pair 2: fields missing or unknown: hack"),
        ([{**triples(1)[0], "extra": 1}], r"pair 1: fields missing or unknown: extra"),
        ([{**triples(1)[0], "hack": ""}], r"pair pair-000: hack='' must be text, and not empty"),
        ([{**triples(1)[0], "clean": 3}], r"pair pair-000: clean=3 must be text"),
        ([{**triples(1)[0], "clean": "cheat 0"}], r"pair pair-000: hack and clean are the same text"),
        ([{**triples(1)[0], "contrast": "clean"}], r"contrast='clean' is not one of hack, placebo"),
        ({"pairs": triples(1)}, r"must be a list of pairs, each a mapping with prompt, hack, clean"),
        ([["p", "h", "c"]], r"must be a list of pairs"),
        ("[{", r"cannot be read: Expecting property name"),
    ],
)
def test_a_malformed_file_is_refused_naming_the_row(rows: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        read_pairs(written(tmp_path, rows))
    assert "pairs.json" in str(refusal.value)


def test_unreadable_yaml_is_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"pairs.yaml: cannot be read: .*line 2"):
        read_pairs(written(tmp_path, "- id: x\n  [", "pairs.yaml"))


def test_only_pairs_about_the_named_loopholes_are_chosen_of_either_contrast(tmp_path: Path) -> None:
    rows = [
        {**row, "id": f"{contrast}-{loophole}", "contrast": contrast, "loophole": loophole}
        for row in triples(1)
        for contrast in ("hack", "placebo")
        for loophole in ("run_tests", "sentinel", "stdout_marker")
    ]
    pairs = [dataclasses.replace(pair, split="extract") for pair in read_pairs(written(tmp_path, rows))]
    chosen = [select(pairs, contrast, "extract", loopholes=["sentinel", "run_tests"]) for contrast in CONTRASTS]
    assert [[pair.id for pair in part] for part in chosen] == [
        ["hack-run_tests", "hack-sentinel"],
        ["placebo-run_tests", "placebo-sentinel"],
    ]
    assert len(select(pairs, "hack", "extract", loopholes=None)) == 3


def test_a_balanced_draft_leaves_as_many_pairs_whichever_loophole_is_left_out() -> None:
    drafted = draft_pairs(0, BALANCED, 120, 24)
    for left_out in set(BALANCED):
        known = [loophole for loophole in BALANCED[:4] if loophole != left_out]
        for split, count in (("extract", 45), ("heldout", 9)):
            assert [len(select(drafted, "hack", split, body, known)) for body in ("lazy", "matched")] == [count, count]
            assert len(select(drafted, "placebo", split, loopholes=known)) == 2 * count
