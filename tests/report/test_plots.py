"""Figures: drawn without a display, the same bytes for the same data, and different for different data."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from projected_grpo.evaluation.hypothesis import H1Bounds, Role, bounds
from projected_grpo.report import plots, style
from projected_grpo.report.curves import read_steps
from projected_grpo.report.nulls import Null, Nulls
from projected_grpo.settings.hypotheses import read_hypotheses

H1 = read_hypotheses(Path(__file__).resolve().parents[2] / "hypotheses.yaml").primary

NULLS = Nulls(
    alignment=(Null(0.18, 8, ("vanilla", "projected", "random", "placebo", "rl_baseline")),),
    leak=(Null(0.09, 2, ("random",)), Null(0.18, 8, ("projected", "placebo"))),
    removed=(Null(0.13, 2, ("random",)), Null(0.26, 8, ("projected", "placebo"))),
)
TRAINED = ("vanilla", "projected", "random", "placebo", "rl_baseline")


@pytest.fixture(scope="module")
def steps(runs: Path) -> pd.DataFrame:
    return read_steps(runs, dict.fromkeys(TRAINED, (1, 2, 3)))


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def ink(png: bytes) -> float:
    """Share of pixels that are not white."""
    from io import BytesIO

    from matplotlib.image import imread

    return float((np.asarray(imread(BytesIO(png)))[..., :3].min(axis=-1) < 0.98).mean())


def test_training_figure_is_drawn_and_repeats_byte_for_byte(steps, cast):
    figure = plots.training_figure(steps, cast)
    assert size(figure) == (1400, 630)
    assert 0.03 < ink(figure) < 0.5
    assert plots.training_figure(steps, cast) == figure
    assert plots.training_figure(steps.assign(hacked=0.0), cast) != figure


def test_the_training_figure_says_that_an_honest_grader_pays_no_hack(steps, cast):
    said = b"rl_baseline cannot be paid for a hack (honest grader): 0 by construction."
    assert said in plots.training_figure(steps, cast, "svg")
    flawed = steps[steps["arm"] != "rl_baseline"]
    assert b"cannot be paid" not in plots.training_figure(flawed, cast, "svg")


def test_alignment_figure_has_a_second_panel_only_where_something_was_removed(steps, cast):
    both = plots.alignment_figure(steps, cast, NULLS)
    assert size(both) == (1400, 630)
    assert 0.03 < ink(both) < 0.5
    measuring = steps[steps["arm"].isin(["vanilla", "rl_baseline"])]
    assert size(plots.alignment_figure(measuring, cast, NULLS)) == (952, 630)


def test_each_null_is_a_line_with_the_axes_and_the_arms_that_it_is_of(steps, cast):
    removed = plots.alignment_figure(steps, cast, NULLS, "svg")
    leak = plots.leak_figure(steps, cast, NULLS, "svg")
    for figure in (removed, leak):
        assert b"<!-- null, k = 2 (random) -->" in figure
        assert b"<!-- null, k = 8 (projected, placebo) -->" in figure
    assert b"<!-- null, k = 8 -->" in leak  # of alignment: one ruler for every arm
    assert b"<!-- null, k = 8 -->" not in removed
    lower = Nulls(NULLS.alignment, leak=(Null(0.06, 1, ("projected", "random", "placebo")),))
    assert b"<!-- null, k = 1 -->" in plots.leak_figure(steps, cast, lower, "svg")
    assert b"<!-- null, " not in plots.alignment_figure(steps, cast, Nulls(), "svg")


def test_arms_figure_grows_by_a_row_per_arm(results, cast):
    rates = {arm: result.rates for arm, result in results.items()}
    limits = bounds(rates["vanilla"], rates["base"], H1)
    figure = plots.arms_figure(rates, cast, limits)
    assert 0.01 < ink(figure) < 0.5
    fewer = {arm: role for arm, role in cast.items() if role is not Role.CONTROL}
    assert size(plots.arms_figure(rates, fewer, limits))[1] < size(figure)[1]
    assert plots.arms_figure(rates, cast, H1Bounds(0.5, 0.2, 0.8)) != figure


def test_bounds_off_the_scale_are_still_drawn(results, cast):
    rates = {arm: result.rates for arm, result in results.items()}
    assert ink(plots.arms_figure(rates, cast, H1Bounds(hack_max=-0.2, pass_min=-0.1, format_min=0.0))) > 0.01


def test_a_run_of_one_step_without_any_gradient_still_has_its_figures(steps, cast):
    first = steps[steps["step"] == 1].assign(alignment_signed=np.nan, alignment=np.nan, share_removed=0.0)
    assert ink(plots.training_figure(first, cast)) > 0.01
    assert ink(plots.alignment_figure(first, cast, NULLS)) > 0.005


@pytest.mark.parametrize(("count", "window"), [(1, 1), (8, 1), (16, 3), (40, 5), (200, 25)])
def test_the_smoothing_window_is_odd_and_about_an_eighth_of_the_run(count, window):
    assert plots.smoothing_window(pd.DataFrame({"step": range(count)})) == window


def test_colours_belong_to_roles_and_differ_between_arms(cast):
    colours = style.colours(cast)
    assert len(set(colours.values())) == len(cast)
    renamed = {f"{arm}_2": role for arm, role in cast.items()}
    assert list(style.colours(renamed).values()) == list(colours.values())
    dashed = {arm for arm, line in style.dashes(cast).items() if line != "-"}
    assert dashed == {"random", "placebo"}


@pytest.mark.parametrize(
    ("positions", "placed"),
    [
        ([0.2, 0.8], [0.2, 0.8]),  # room enough: nothing moves
        ([0.5, 0.5], [0.45, 0.55]),  # apart, about their mean
        ([0.52, 0.5, 0.51], [0.61, 0.41, 0.51]),  # order is kept
        ([0.0, 0.01], [0.0, 0.1]),  # not below the axis
        ([1.0, 1.0, 0.99], [0.9, 1.0, 0.8]),  # nor above it
        ([0.0, 0.02, 0.12], [0.0, 0.1, 0.2]),  # a block pushes its neighbour
    ],
)
def test_labels_are_moved_apart_as_little_as_needed(positions, placed):
    assert style.spread_out(positions, gap=0.1, low=0.0, high=1.0) == pytest.approx(placed)
