"""The templates of `dvc plots` (.dvc/plots) and the CSV files fit each other."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from dvc_render.vega import VegaRenderer

from projected_grpo.report.curves import alignment_table, read_steps, training_table
from projected_grpo.report.tables import arms_table, seeds_table

TEMPLATES = Path(__file__).parents[2] / ".dvc" / "plots"
PLOTS = [  # file, template, x, y
    ("training", "arms_line", "step", "hack_rate"),
    ("training", "arms_line", "step", "pass_rate"),
    ("alignment", "arms_line", "step", "alignment_signed"),
    ("alignment", "arms_line", "step", "share_removed"),
    ("alignment", "arms_line", "step", "alignment"),
    ("alignment", "arms_line", "step", "alignment_null"),
    ("alignment", "arms_line", "step", "leak"),
    ("types", "arms_types", "step", "share"),
    ("arms", "arms_plane", "hack_rate", "pass_rate"),
    ("seeds", "arms_dots", "hack_rate", "arm"),
    ("seeds", "arms_dots", "pass_rate", "arm"),
]


@pytest.fixture(scope="module")
def tables(runs, results, cast, found, inputs) -> dict[str, pd.DataFrame]:
    steps = read_steps(runs, {arm: (1, 2, 3) for arm in cast if arm != "base"})
    return {
        "training": training_table(steps),
        "alignment": alignment_table(steps),
        "types": inputs.types,
        "arms": arms_table(found.rates, found.roles, found.arms),
        "seeds": seeds_table({arm: result.rates for arm, result in results.items()}, cast),
    }


@pytest.mark.parametrize(("name", "template", "x", "y"), PLOTS)
def test_a_template_fills_from_its_csv(tables, name, template, x, y):
    text = tables[name].to_csv(index=False)
    points = pd.read_csv(io.StringIO(text), dtype=str).assign(rev="workspace").to_dict("records")
    renderer = VegaRenderer(points, name, template=template, template_dir=str(TEMPLATES), x=x, y=y)
    spec = renderer.get_filled_template()
    assert "<DVC_METRIC" not in str(spec)
    assert spec["data"]["values"] == points
    read = {step["calculate"].split("'")[1] for step in spec["transform"] if "'" in step.get("calculate", "")}
    assert read <= set(tables[name].columns)
    assert len(tables[name]) > 0
    assert {x} <= read
    assert ({f"{y}_low", f"{y}_high"} <= read) is (template == "arms_line")
