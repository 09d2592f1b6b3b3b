"""Stage `overview` of study/dvc.yaml: every arm of every study in one table.

Reads metrics/study/<study>.json of each study that has a table of its own, which is each but the folds, and
benchmarks/arms.json. A missing study or arm is an error. Writes plots/study/overview.{csv,md}.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from projected_grpo.errors import LabError, exit_status
from projected_grpo.report import overview as report
from projected_grpo.settings.loader import CHANGEABLE, read_params
from projected_grpo.storage import write_text

METRICS, PLOTS, COSTS = Path("metrics/study"), Path("plots/study"), Path("benchmarks/arms.json")


def rows_of(study: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Arm -> its row, in the study's order.

    Raises:
        LabError: the study's table has not been made, or lacks an arm.
    """
    path = METRICS / f"{study}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    missing = [arm for arm in block["arms"] if arm not in found]
    if missing:
        value = f"no {', '.join(missing)}" if found else "no such file"
        fix = f"run `dvc repro study/dvc.yaml:table@{study}`"
        raise LabError(setting=str(path), value=value, rule="every arm of the study must be measured", fix=fix)
    return {arm: found[arm] for arm in block["arms"]}


def measured_costs() -> dict[str, dict[str, float]]:
    """Arm -> what it costs, see `benchmarks/arms.py`.

    Raises:
        LabError: nobody has measured it.
    """
    if not COSTS.is_file():
        rule, fix = "what arms cost must be measured", f"run `python benchmarks/arms.py --out {COSTS}`"
        raise LabError(setting=str(COSTS), value="no such file", rule=rule, fix=fix)
    found: dict[str, dict[str, float]] = json.loads(COSTS.read_text(encoding="utf-8"))
    return found


def changed(block: Mapping[str, Any]) -> str:
    """What a study changes of the scale, in words."""
    parts = [f"{name} {json.dumps(block[name])}" for name in CHANGEABLE if name in block and name != "base"]
    return "; ".join((["a base of its own"] if "base" in block else []) + parts) or "the default pipeline's settings"


def main() -> None:
    # A study that starts from another is a fold, and has no table of its own.
    studies = {name: block for name, block in read_params()["studies"].items() if "of" not in block}
    found = {name: rows_of(name, block) for name, block in studies.items()}
    costs = measured_costs()
    write_text(PLOTS / "overview.csv", report.table(found, costs).to_csv(index=False, lineterminator="\n"))
    settings = {name: changed(block) for name, block in studies.items()}
    write_text(PLOTS / "overview.md", report.markdown(found, settings, costs))
    print(f"{sum(map(len, found.values()))} arms of {len(found)} studies are in {PLOTS}/overview.md")


if __name__ == "__main__":
    sys.exit(exit_status(main))
