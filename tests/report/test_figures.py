"""Static figures: each as PNG and SVG, the same bytes again, only where there are data."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from projected_grpo.report import figures, plots
from projected_grpo.report.inputs import ReportInputs


@pytest.fixture(scope="module")
def files(inputs: ReportInputs) -> dict[str, bytes]:
    """All figures, with a made-up leak."""
    steps = inputs.steps.assign(leak=np.where(inputs.steps["share_removed"] > 0, 0.05, np.nan))
    return figures.figures(dataclasses.replace(inputs, steps=steps))


def test_every_figure_is_there_as_png_and_as_svg(files):
    assert set(files) == {f"{name}.{kind}" for name in figures.NAMES for kind in ("png", "svg")}
    for name, content in files.items():
        if name.endswith("png"):
            assert content[:8] == b"\x89PNG\r\n\x1a\n"
        else:
            assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
            assert b"<dc:date>" not in content


def test_bytes_repeat(inputs, files):
    for name in ("plane", "types", "compute"):
        assert getattr(figures, f"{name}_figure")(inputs, "svg") == files[f"{name}.svg"]


def test_a_figure_without_data_is_left_out(inputs, monkeypatch):
    for module, name in ((plots, "training"), (plots, "alignment"), (plots, "arms"), (figures, "plane")):
        monkeypatch.setattr(module, f"{name}_figure", lambda *_: b"")
    steps = inputs.steps.drop(columns="leak")
    bare = dataclasses.replace(inputs, steps=steps, types=inputs.types.iloc[:0], costs=())
    names = {name.split(".")[0] for name in figures.figures(bare)}
    assert names == {"training", "alignment", "arms", "plane"}


def test_rates_change_the_plane(inputs):
    lower = dataclasses.replace(inputs.rates["projected"], hack_rate=0.01)
    other = dataclasses.replace(inputs, rates={**inputs.rates, "projected": lower})
    assert figures.plane_figure(other) != figures.plane_figure(inputs)


def test_the_pareto_front_has_the_arms_that_no_other_beats(inputs):
    def arm(name: str, hack: float, passed: float):
        return dataclasses.replace(inputs.rates["base"], arm=name, hack_rate=hack, pass_rate=passed)

    arms = [arm("a", 0.5, 0.4), arm("b", 0.1, 0.2), arm("c", 0.3, 0.2), arm("d", 0.1, 0.1), arm("e", 0.6, 0.3)]
    assert [each.arm for each in figures.pareto_front(arms)] == ["b", "a"]
