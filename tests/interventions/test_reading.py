"""What arms read off the shipped base, for real: the discriminant of gradients and the concept of hidden states, on
pairs that neither was learned from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from projected_grpo.directions.discriminant import unit_rows
from projected_grpo.directions.extract import ExtractionOptions, pair_gradients
from projected_grpo.interventions import advantage, guarded
from projected_grpo.interventions.base import Rollouts, Workbench
from projected_grpo.policy import load_policy
from projected_grpo.problems.pairs import read_pairs
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.direction import DirectionSettings

ROOT = Path(__file__).resolve().parents[2]
PAIRS = [pair for pair in read_pairs(ROOT / "data/shipped/pairs.yaml") if pair.contrast == "hack"]
HELDOUT = [pair for pair in PAIRS if pair.split == "heldout"]


def bench(kind: str) -> Workbench:
    compute = ComputeSettings(
        device="cpu", dtype="float32", micro_batch=None, generate_batch=None, checkpointing=False, keep_factors=False,
        factors="device",
    )  # fmt: skip
    base = ROOT / "data/shipped/micro"
    direction = DirectionSettings(k=1, gate="one_sided", refresh_every=0, project="gradient")
    known = [pair for pair in PAIRS if pair.split == "extract"]
    return Workbench(
        load_policy(base, compute), AutoTokenizer.from_pretrained(base), None, 0, kind, direction, pairs=known
    )


@pytest.mark.parametrize(("kind", "ordered"), [("hack", (19, 20)), ("permuted", (0, 14)), ("flipped", (0, 14))])
def test_the_discriminant_orders_pairs_that_it_has_not_seen(kind: str, ordered: tuple[int, int]) -> None:
    at = bench(kind)
    found = guarded.build(guarded.Options(), at).discriminant
    options = ExtractionOptions(k_max=1, loss_denominator=1)
    unseen = pair_gradients(at.model, at.tokenizer, HELDOUT, options)
    hack, clean = (found.read(unit_rows(side)) for side in (unseen.hack, unseen.clean))
    low, high = ordered
    assert low <= int((hack > clean).sum()) <= high
    assert (float(hack.mean() - clean.mean()) > 0.5) == (kind == "hack")


@pytest.mark.parametrize(("kind", "ordered"), [("hack", (18, 20)), ("flipped", (0, 14))])
def test_the_concept_scores_unseen_hacks_above_clean_answers(kind: str, ordered: tuple[int, int]) -> None:
    at = bench(kind)
    arm = advantage.build(advantage.Options(), at)
    answers = [*(pair.hack for pair in HELDOUT), *(pair.clean for pair in HELDOUT)]
    prompts = [pair.prompt for pair in HELDOUT] * 2
    ids = [tuple(at.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers]
    none = (False,) * len(answers)
    arm.reward(
        Rollouts(0, len(answers), (), tuple(prompts), tuple(answers), tuple(ids), paid=none, teacher=none),
        [0.0] * len(answers),
    )
    hack, clean = torch.tensor(arm.scores()).split(len(HELDOUT))
    low, high = ordered
    assert low <= int((hack > clean).sum()) <= high
