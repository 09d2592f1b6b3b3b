"""`projected-grpo status`: what ran, what is stale and why, what `dvc repro` would do, and about how long it takes.

DVC tells which stages differ from what dvc.lock recorded. What depends on such a stage runs only if its result
turns out different, which nobody knows beforehand: these *follow*, and the time is an upper bound. Times of training
are those of the earlier runs, from data/provenance, a study's from its own; an arm that never ran is taken to cost
what the others did, in proportion to its steps. Other stages are not timed by anything: at scale micro they have
typical times, elsewhere none.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from projected_grpo.errors import LabError

# Seconds at scale micro on two cores, without training: prefix of a stage's name -> about.
TYPICAL = {
    "validate": 5, "prepare": 5, "base_model": 30, "extract": 25, "sample": 40, "grade": 12, "evaluate": 4,
    "compare": 20, "table": 20, "pool": 5,
}  # fmt: skip
MAIN = ""  # the main pipeline, where a study has its name
PIPELINE, STUDIES = "dvc.yaml", "study/dvc.yaml:"
TRAINING = ("grpo_", f"{STUDIES}train_")
SHOWN = 3  # reasons per stage


class State(StrEnum):
    CURRENT = "current"
    STALE = "stale"
    NEW = "never ran"
    FOLLOWS = "follows"


STYLES = {State.CURRENT: "green", State.STALE: "yellow", State.NEW: "cyan", State.FOLLOWS: "dim"}


@dataclass(frozen=True)
class StageStatus:
    """One stage, in run order. `seconds` is what a run takes, None if unknown; `measured` if earlier runs tell."""

    name: str
    state: State
    reasons: tuple[str, ...]
    seconds: float | None
    measured: bool

    def trains(self, study: str) -> bool:
        """Whether this is the training of one of the study's arms."""
        alone, among = f"{STUDIES}train_{study}@", f"@{study}-"  # its own stages, or those of several studies
        return self.name.startswith(alone) or (self.name.startswith(f"{STUDIES}train_") and among in self.name)


def read_status(root: Path = Path(), wanted: Sequence[str] = (MAIN,)) -> dict[str, list[StageStatus]]:
    """The stages of the main pipeline (`MAIN`) or of studies at `root`, by name, each in run order.

    A study's are all that `dvc repro study/dvc.yaml:table@<study>` goes through, those of the main pipeline included;
    a fold's, all of `study/dvc.yaml:folds`.
    Nothing is run or written but DVC's own caches.

    Raises:
        LabError: `root` is no DVC repository, its pipeline does not parse, or there is no such study.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    from projected_grpo.settings.loader import read_params

    try:
        # Under one lock, DVC keeps the pipeline that it has read; else `status` would read it again.
        with Repo(str(root)) as repo, lock_repo(repo), _parameters_parsed_once():
            stages = {stage.addressing: stage for stage in repo.index.stages}
            graph = repo.index.graph
            needs = {name: [other.addressing for other in graph.successors(stage)] for name, stage in stages.items()}
            main = [name for name, stage in stages.items() if stage.path_in_repo == PIPELINE]
            chosen = {name: main if name == MAIN else _of_study(name, needs) for name in wanted}
            # By file or by table: DVC reads its files again for each target.
            tables = [PIPELINE if name == MAIN else _table(name, needs) for name in wanted]
            changes = repo.status(targets=tables if len(tables) == 1 else None, with_deps=tables != [PIPELINE])
            new = {name for name, stage in stages.items() if not any(out.hash_info for out in stage.outs)}
    except DvcException as error:
        fix = "run it in the project's folder; `dvc status` tells more"
        raise LabError(setting="pipeline", value=str(root.resolve()), rule=str(error), fix=fix) from None
    params = read_params(root / "params.yaml")
    found = {}
    for name, members in chosen.items():
        seconds = _timed(root, name, members, params)
        found[name] = plan({each: needs[each] for each in stages if each in set(members)}, changes, new, seconds)
    return found


@contextmanager
def _parameters_parsed_once() -> Iterator[None]:
    """DVC parses the file of parameters anew for every stage that names some: most of the time of its `status`."""
    from dvc.dependency import param

    load = param.load_path
    param.load_path = functools.cache(load)
    try:
        yield
    finally:
        param.load_path = load


def study_line(study: str, stages: Sequence[StageStatus]) -> str:
    """A study in one line: what it still has to do, and about how long that takes."""
    sure = [stage for stage in stages if stage.state in (State.STALE, State.NEW)]
    arms = [stage for stage in stages if stage.trains(study)]
    waiting = [stage for stage in arms if stage in sure]
    if waiting:
        return f"{study}: {len(waiting)} of {len(arms)} arms to train, {about(sure)}"
    if sure:
        return f"{study}: trained; {len(sure)} of {len(stages)} stages to run, {about(sure)}"
    follow = sum(stage.state is State.FOLLOWS for stage in stages)
    return f"{study}: recorded, " + (f"{follow} stages may follow" if follow else "nothing stale")


def plan(
    needs: Mapping[str, Sequence[str]],
    changes: Mapping[str, Iterable[Any]],
    new: Collection[str],
    seconds: Mapping[str, tuple[float | None, bool]],
) -> list[StageStatus]:
    """needs: stage -> the stages it reads from. changes: as `dvc status` reports. new: stages that dvc.lock does
    not know. seconds: (value, measured).

    Stages come in run order: each after what it needs, otherwise in the given order.
    """
    found: dict[str, StageStatus] = {}
    for name in _run_order(needs):
        reasons = () if name in new else _reasons(changes.get(name, ()))
        moved = [need for need in needs[name] if found[need].state is not State.CURRENT]
        state = State.NEW if name in new else State.STALE if reasons else State.CURRENT
        if moved and state is State.CURRENT:
            state, reasons = State.FOLLOWS, (f"if the result differs of {_listed(moved)}",)
        found[name] = StageStatus(name, state, reasons, *seconds[name])
    return list(found.values())


def seconds_of(name: str, measured: Mapping[str, float], typical: bool = True) -> tuple[float | None, bool]:
    """About how long a stage takes, and whether that was measured. measured: arm -> seconds of its stage."""
    if name.startswith(TRAINING):
        arm = name.split("@")[-1].removeprefix("grpo_").rsplit("-", 1)[-1]  # a fold's is called <study>-<arm>
        if arm in measured:
            return measured[arm], True
        return (sum(measured.values()) / len(measured), False) if measured else (None, False)
    kind = name.removeprefix(STUDIES).split("@")[0]
    kind = kind if kind in TYPICAL else kind.split("_")[0]  # sample_core
    return (float(TYPICAL[kind]), False) if typical and kind in TYPICAL else (None, False)


def training_seconds(root: Path) -> dict[str, float]:
    """Arm -> seconds of its stage: its runs stood side by side, so the slowest counts. Unreadable records do not."""
    longest: dict[str, float] = {}
    for path in sorted(root.glob("*/*/provenance.json")):
        try:
            wall = float(json.loads(path.read_text(encoding="utf-8"))["wall_seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        arm = path.parents[1].name
        longest[arm] = max(longest.get(arm, 0.0), wall)
    return longest


def summary(stages: Sequence[StageStatus], study: str = MAIN) -> str:
    """The answer in one or two sentences."""
    command = f"dvc repro {stages[-1].name}" if study != MAIN else "dvc repro"
    sure = [stage for stage in stages if stage.state in (State.STALE, State.NEW)]
    maybe = [stage for stage in stages if stage.state is State.FOLLOWS]
    if not sure:
        return f"Everything is up to date: `{command}` has nothing to do."
    parts = [f"`{command}` runs {len(sure)} of {len(stages)} stages, {about(sure)}"]
    if maybe:
        parts.append(f"with all that may follow {len(sure) + len(maybe)}, {about([*sure, *maybe])}")
    return "; ".join(parts) + "."


def _table(study: str, needs: Mapping[str, Sequence[str]]) -> str:
    """The stage that shows a study: its table, or that of all folds."""
    table, folds = f"{STUDIES}table@{study}", f"{STUDIES}folds"
    if table in needs:
        return table
    if folds in needs and any(f"@{study}-" in name for name in needs):
        return folds
    known = [name.removeprefix(f"{STUDIES}table@") for name in needs if name.startswith(f"{STUDIES}table@")]
    fix = f"name one of {', '.join(known)}" if known else "this repository has no studies"
    raise LabError(setting="study", value=study, rule="must have a table in study/dvc.yaml", fix=fix)


def _of_study(study: str, needs: Mapping[str, Sequence[str]]) -> list[str]:
    """The stages that a study's table is made by."""
    found, waiting = set[str](), [_table(study, needs)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += needs[name]
    return sorted(found)


def _timed(
    root: Path, study: str, names: Iterable[str], params: Mapping[str, Any]
) -> dict[str, tuple[float | None, bool]]:
    """Stage -> (seconds, measured). A study's own runs come first, then the main pipeline's, for as many steps."""
    main, typical = training_seconds(root / "data" / "provenance"), params.get("scale") == "micro"
    if study == MAIN:
        return {name: seconds_of(name, main, typical) for name in names}
    own = training_seconds(root / "data" / "study" / study / "provenance")
    block = params["studies"][study]
    longer = _steps(params, params["studies"].get(block.get("of"), {}), block) / _steps(params)
    guessed = own or {arm: longer * seconds for arm, seconds in main.items()}
    found = {}
    for name in names:
        seconds, measured = seconds_of(name, (own or guessed) if name.startswith(STUDIES) else main, typical)
        found[name] = seconds, measured and (bool(own) or not name.startswith(STUDIES))
    return found


def _steps(params: Mapping[str, Any], *studies: Mapping[str, Any]) -> int:
    """Optimizer steps of a run: the active scale's, unless a study's block has its own; the last one counts."""
    found = dict(params["scales"][params["scale"]]["grpo"])
    for study in studies:
        found |= study.get("grpo", {})
    return int(found["steps"])


def table(stages: Sequence[StageStatus]) -> Table:
    """A rich table: stage, state, time (a plain figure was measured, ~ is typical), reasons."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in ("stage", "state", "takes"):
        shown.add_column(name, no_wrap=True, justify="right" if name == "takes" else "left")
    shown.add_column("why", no_wrap=True, overflow="ellipsis", ratio=1)
    for stage in stages:
        time = "?" if stage.seconds is None else f"{'' if stage.measured else '~'}{duration(stage.seconds)}"
        shown.add_row(stage.name, Text(stage.state.value, STYLES[stage.state]), time, Text("; ".join(stage.reasons)))
    return shown


def about(stages: Sequence[StageStatus]) -> str:
    """Their time in words: "about 12 min", "at least 12 min" if some are unknown, "time unknown"."""
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    if not known:
        return "time unknown"
    word = "about" if len(known) == len(stages) else "at least"
    return f"{word} {duration(sum(known))}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _run_order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    ordered: dict[str, None] = {}

    def visit(name: str) -> None:
        if name not in ordered:
            for need in needs[name]:
                visit(need)
            ordered[name] = None

    for name in needs:
        visit(name)
    return list(ordered)


def _reasons(changes: Iterable[Any]) -> tuple[str, ...]:
    """Why a stage is stale, one text per kind of change."""
    said: list[str] = []
    for change in changes:
        if isinstance(change, str):
            said.append(change)  # "changed command", "always changed"
            continue
        for kind, paths in change.items():
            missing = kind == "changed outs" and all(how in ("deleted", "not in cache") for how in paths.values())
            names = [name for path, how in paths.items() for name in (how if isinstance(how, dict) else [path])]
            said.append(f"{'missing' if missing else kind.removeprefix('changed ')}: {_listed(names)}")
    return tuple(said)


def _listed(names: Sequence[str]) -> str:
    shown = [name.removeprefix("src/projected_grpo/") for name in names[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
