from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from projected_grpo.directions import extract
from projected_grpo.directions.algebra import Bases
from projected_grpo.directions.extract import PairGradients
from projected_grpo.directions.options import ExtractionOptions
from projected_grpo.directions.sources import ExtractedSource
from projected_grpo.directions.store import Direction
from projected_grpo.errors import ParamsError
from projected_grpo.interventions import trusted
from projected_grpo.interventions.base import DEFAULT, StepGradients, Vectors, Workbench
from projected_grpo.interventions.registry import check_arms
from projected_grpo.problems.pairs import Pair
from projected_grpo.settings.arms import ArmSettings
from projected_grpo.settings.direction import DirectionSettings

AXES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
GRADIENT = {"a": torch.tensor([2.0, -3.0, 5.0])}
STEP = StepGradients(GRADIENT, {}, {}, torch.zeros(0))


@dataclasses.dataclass
class Turning:
    independent: bool = True

    def initial(self) -> Bases:
        return {"a": AXES}

    def refreshed(self, step: int) -> Bases:
        del step
        return {"a": torch.tensor([[0.0, 0.0, 1.0]])}


def made(kind: str = "clean", strength: float = 1.0, **changes: object) -> trusted.Trusted:
    fields = {"k": 2, "gate": "one_sided", "refresh_every": 0, "project": "gradient", **changes}
    bench = Workbench(None, None, None, 0, kind=kind, direction=DirectionSettings(**fields), source=Turning())
    return trusted.build(trusted.Options(strength=strength), bench)


def stepped(arm: trusted.Trusted) -> Vectors:
    parts = arm.gradient(STEP)
    assert parts.keys() == {DEFAULT}
    return parts[DEFAULT]


def test_only_what_lies_in_the_span_is_learned_on_both_sides_of_it() -> None:
    assert stepped(made())["a"].tolist() == [2.0, -3.0, 0.0]
    assert stepped(made(strength=0.5))["a"].tolist() == [2.0, -3.0, 2.5]
    assert GRADIENT["a"].tolist() == [2.0, -3.0, 5.0]


def test_updates_are_restricted_in_the_same_way() -> None:
    both = made(project="both")
    assert stepped(both)["a"].tolist() == both.update(DEFAULT, GRADIENT)["a"].tolist() == [2.0, -3.0, 0.0]
    late = made(project="update")
    assert stepped(late) is GRADIENT
    assert late.update(DEFAULT, GRADIENT)["a"].tolist() == [2.0, -3.0, 0.0]
    assert made().update(DEFAULT, GRADIENT) is GRADIENT


@pytest.mark.parametrize("project", ["gradient", "update", "both"])
def test_at_strength_nothing_everything_is_handed_back_as_it_is(project: str) -> None:
    arm = made(strength=0.0, project=project)
    assert stepped(arm) is GRADIENT
    assert arm.update(DEFAULT, GRADIENT) is GRADIENT


def test_the_span_is_refreshed_and_survives_a_checkpoint() -> None:
    arm = made(refresh_every=2)
    arm.start_step(2)
    assert stepped(arm)["a"].tolist() == [0.0, 0.0, 5.0]
    assert arm.figures() == {"basis_overlap": 0.0, "axes": 1.0, "bare_modules": 0.0, "overshoot": 1.0, "flagged": 0.0}
    resumed = made(refresh_every=2)
    resumed.load_state(arm.state())
    assert stepped(resumed)["a"].tolist() == [0.0, 0.0, 5.0]


def answers_gradients(
    model: object, tokenizer: object, pairs: Sequence[Pair], options: ExtractionOptions
) -> PairGradients:
    """In place of backward passes: an answer `1 0 0` has the gradient (1, 0, 0)."""
    del model, tokenizer, options
    sides = ([getattr(pair, side).split() for pair in pairs] for side in ("hack", "clean"))
    hack, clean = (torch.tensor([[float(number) for number in row] for row in rows]) for rows in sides)
    return PairGradients({"a": hack}, {"a": clean})


def test_the_hacks_own_span_is_that_of_the_other_side_of_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first step as at a refresh, and not the stored span of the clean answers."""
    monkeypatch.setattr(extract, "pair_gradients", answers_gradients)
    texts = [("0 0 3", "1 1 0"), ("0 2 0", "1 -1 0")]  # hacks span the last two axes, clean answers the first two
    pairs = [Pair(str(i), "hack", "extract", "", "", "lazy", "", *sides) for i, sides in enumerate(texts)]
    options = ExtractionOptions(k_max=2, loss_denominator=1, rows="clean")
    stored = Direction("clean", "", "", -1.0, extract.extract_modules(None, None, pairs, options), options)
    source = ExtractedSource(stored, 2, None, None, pairs, options)
    settings = DirectionSettings(k=2, gate="one_sided", refresh_every=2, project="gradient")
    bench = Workbench(None, None, None, 0, "clean", settings, source)
    for answers, kept in (("clean", [2.0, -3.0, 0.0]), ("hack", [0.0, -3.0, 5.0])):
        arm = trusted.build(trusted.Options(answers=answers), bench)
        for step in (0, 2):
            arm.start_step(step)
            torch.testing.assert_close(stepped(arm)["a"], torch.tensor(kept))
        assert arm.figures()["basis_overlap"] == pytest.approx(1.0)


def faults(shared: dict[str, object] | None = None, **block: object) -> list[str]:
    arm = ArmSettings.model_validate({"intervention": "trusted", "direction": "clean", **block})
    fields = {"k": 2, "gate": "one_sided", "refresh_every": 1, "project": "gradient", **(shared or {})}
    try:
        check_arms({"own": arm}, DirectionSettings.model_validate(fields))
    except ParamsError as refusal:
        return [fault.setting for fault in refusal.faults]
    return []


def test_directions_and_refinements_with_no_meaning_here_are_refused() -> None:
    for kind in ("clean", "random", "permuted", "placebo"):
        assert faults(direction=kind) == []
    for kind in ("hack", "flipped"):
        assert faults(direction=kind) == ["arms.own.direction"]
    refused = {"overshoot": 1.5, "preserve_magnitude": True, "random_match": "energy", "purge_moments": True}
    for name, value in refused.items():
        assert faults(axes={name: value}) == [f"arms.own.axes.{name}"]
        assert faults({name: value}) == [f"arms.own.axes.{name}"]
        assert faults({name: value}, axes={name: trusted.UNUSED[name]}) == []  # what the refusal advises
    assert faults(axes={"gate": "both_sides"}) == ["arms.own.axes.gate"]


def test_the_hacks_answers_are_those_of_the_clean_directions_pairs() -> None:
    hacks = {"answers": "hack"}
    assert faults(options=hacks) == []
    for kind in ("random", "permuted", "placebo"):
        assert faults(direction=kind, options=hacks) == ["arms.own.direction"]
