"""Was the analysis fixed before the numbers? What `projected-grpo freeze` writes, and `compare` and the study stage
`folds` hold a run against.

hypotheses.lock holds two hashes, of hypotheses.yaml and of the code that turns graded samples into verdicts, and
the Git revision in which both can be read. It is committed; its own history tells when and how often it was
frozen. It proves nothing to someone who does not trust the repository's history: for that, publish the revision.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projected_grpo.errors import ABSENT, LabError
from projected_grpo.settings.comparison import ComparisonSettings
from projected_grpo.settings.hypotheses import HYPOTHESES, Hypotheses, read_hypotheses
from projected_grpo.settings.loader import Params
from projected_grpo.storage import sha256_file, write_json

LOCK = "hypotheses.lock"
PACKAGE = Path(__file__).resolve().parents[1]
# What a verdict depends on, of this package; a table's or a picture's looks do not count.
ANALYSIS = (
    "evaluation/comparison.py",
    "evaluation/folds.py",
    "evaluation/hypothesis.py",
    "evaluation/intervals.py",
    "evaluation/metrics.py",
    "evaluation/onset.py",
    "evaluation/statistics.py",
    "settings/hypotheses.py",
)
SHOWN = 12  # digits of a hash or revision that a person sees


@dataclass(frozen=True)
class Lock:
    """The content of hypotheses.lock: sha256 of the file and of the code, and the revision that holds both."""

    hypotheses: str
    analysis: str
    revision: str


@dataclass(frozen=True)
class Registration:
    """How a run stands to what was frozen. `changed` names what is not as frozen, `departures` where the run's
    settings are not those of hypotheses.yaml. `revision` is None if nothing was frozen."""

    hypotheses: str
    analysis: str
    revision: str | None
    changed: tuple[str, ...]
    departures: tuple[str, ...]

    @property
    def as_frozen(self) -> bool:
        return self.revision is not None and not self.changed and not self.departures

    def sentence(self) -> str:
        """The same in words."""
        if self.revision is None:
            first = "Nothing was frozen beforehand (`projected-grpo freeze`)"
        elif self.changed:
            first = f"This is not the frozen analysis: {' and '.join(self.changed)} changed since {self._short()}"
        else:
            first = f"The analysis is the one frozen at {self._short()}"
        if self.departures:
            first += f"; the run departs from {HYPOTHESES}: {'; '.join(self.departures)}"
        return f"{first}."

    def row(self) -> dict[str, str | bool | int]:
        """`registration` of `metrics/compare.json`."""
        return {
            "analysis": self.analysis[:SHOWN],
            "as_frozen": self.as_frozen,
            "departures": len(self.departures),
            "frozen_at": self._short() if self.revision else "never",
            "hypotheses": self.hypotheses[:SHOWN],
        }

    def _short(self) -> str:
        return (self.revision or "")[:SHOWN]


def analysis_hash(package: Path = PACKAGE) -> str:
    """Hex sha256 over the names and the bytes of the files of `ANALYSIS`."""
    lines = (f"{name}\0{sha256_file(package / name)}\n" for name in ANALYSIS)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def registration(departures: Sequence[str], root: Path = Path()) -> Registration:
    """Hold a run, with what `departures` found, against the files under `root`.

    Raises:
        LabError: hypotheses.lock cannot be read.
    """
    lock, now = _read_lock(root / LOCK), (sha256_file(root / HYPOTHESES), analysis_hash())
    changed = []
    if lock is not None:
        pairs = {HYPOTHESES: (lock.hypotheses, now[0]), "the analysis code": (lock.analysis, now[1])}
        changed = [name for name, (frozen, current) in pairs.items() if frozen != current]
    return Registration(*now, lock.revision if lock else None, tuple(changed), tuple(departures))


def departures(
    hypotheses: Hypotheses, params: Params, seeds: Sequence[int], comparison: ComparisonSettings | None = None
) -> list[str]:
    """Where a run's settings are not those of hypotheses.yaml, in words. comparison: the arms of H1; None: the claims
    on folds, whose arms are the registered ones."""
    primary, analysis = hypotheses.primary, hypotheses.analysis
    registered: dict[str, tuple[object, object]] = {}
    if comparison is not None:
        registered |= {
            "treatment": (comparison.treatment, primary.treatment),
            "reference": (comparison.reference, primary.reference),
            "controls": (_listed(sorted(comparison.controls)), _listed(sorted(primary.controls))),
        }
    registered |= {
        "confidence": (_setting(params, "comparison.confidence"), analysis.confidence),
        "seeds": (_listed(sorted(seeds)), _listed(sorted(analysis.seeds))),
    }
    settings = analysis.settings if comparison is not None else {**analysis.settings, **analysis.folds}
    registered |= {
        name: (_setting(params, name), ABSENT if wanted is None else wanted) for name, wanted in settings.items()
    }
    return [f"{name} {ran} instead of {wanted}" for name, (ran, wanted) in registered.items() if ran != wanted]


def freeze(root: Path = Path()) -> Lock:
    """Write hypotheses.lock under `root`, a Git checkout; commit it afterwards.

    Raises:
        LabError: hypotheses.yaml breaks a rule, `root` is no Git checkout, or what would be frozen is not committed
            (the revision would not hold it).
    """
    read_hypotheses(root / HYPOTHESES)
    files = [HYPOTHESES, *(str(Path("src/projected_grpo", name)) for name in ANALYSIS)]
    changed = _git(root, "status", "--porcelain", "--", *files)
    if changed:
        raise LabError(
            setting="freeze",
            value=", ".join(line[3:] for line in changed.splitlines()),
            rule="what is frozen must be committed: the lock names the revision that holds it",
            fix="commit these files, then freeze",
        )
    package = root / "src/projected_grpo"
    lock = Lock(sha256_file(root / HYPOTHESES), analysis_hash(package), _git(root, "rev-parse", "HEAD").strip())
    write_json(root / LOCK, vars(lock))
    return lock


def _setting(params: Params, name: str) -> object:
    """The value at a dotted name, or that it is not set."""
    block: Any = params
    for key in name.split("."):
        if not isinstance(block, Mapping) or key not in block:
            return ABSENT
        block = block[key]
    return block


def _read_lock(path: Path) -> Lock | None:
    if not path.is_file():
        return None
    try:
        lock = Lock(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        lock = None
    if lock is None or not all(re.fullmatch(r"[0-9a-f]{40,64}", str(value)) for value in vars(lock).values()):
        rule, fix = "must be as `projected-grpo freeze` wrote it", "restore it from Git, or freeze again"
        raise LabError(setting=str(path), value="(unreadable)", rule=rule, fix=fix)
    return lock


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        rule, fix = "must be a Git checkout with a commit", "run from the root of the repository"
        raise LabError(setting="freeze", value=str(root.resolve()), rule=f"{rule} ({done.stderr.strip()})", fix=fix)
    return done.stdout


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
