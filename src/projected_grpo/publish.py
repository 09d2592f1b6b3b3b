"""A trained run as a folder for a model hub: its adapter as a stock LoRA, and a card that says what was measured.

Every figure of the card is read from what the pipeline wrote: rates from the graded samples, which must be those that
the metrics file reports; settings, hashes of inputs and versions from the run's provenance. Nothing leaves this machine
unless `push` is called.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from projected_grpo.errors import LabError
from projected_grpo.evaluation.metrics import ArmRates, measure, read_samples
from projected_grpo.export import Export, export_lora
from projected_grpo.model_card import Facts, render
from projected_grpo.problems.prompts import FORM_FILE
from projected_grpo.settings.hypotheses import PRIMARY, read_hypotheses
from projected_grpo.storage import atomic_directory, sha256_file, sha256_tree, write_text

BASE = "base"  # the untrained model, among the arms of metrics/compare.json
TELLING = ("hack_rate", "pass_rate", "seeds", "samples")  # figures of an arm that every metrics file holds
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Run:
    """A finished run and where the pipeline put what belongs to it: `<data>/runs/<arm>/<seed>`, `<data>/graded/<arm>`,
    `<data>/provenance/<arm>/<seed>`; its metrics, and those that hold the untrained base and H1; the file that says how
    the base is asked."""

    folder: Path
    arm: str
    seed: int
    graded: Path
    provenance: Path
    metrics: Path
    main_metrics: Path
    form: Path

    @classmethod
    def at(cls, folder: Path) -> Run:
        """
        Raises:
            LabError: the path does not look like `data/runs/<arm>/<seed>`, or holds no adapter.
        """
        shaped = len(folder.parts) > 3 and folder.parts[-3] == "runs" and folder.name.isdigit()
        if not shaped or not (folder / "adapter" / WEIGHTS).is_file():
            raise LabError(
                setting="RUN_DIR",
                value=str(folder),
                rule="must be a finished run, <data>/runs/<arm>/<seed>, with its adapter",
                fix="name one such as data/runs/projected/1, or run `dvc repro` first",
            )
        data, arm = folder.parents[2], folder.parent.name
        study = data.name if data.parent.name == "study" else None
        metrics = (data.parents[2] if study else data.parent) / "metrics"
        return cls(
            folder=folder,
            arm=arm,
            seed=int(folder.name),
            graded=data / "graded",
            provenance=data / "provenance" / arm / folder.name / "provenance.json",
            metrics=metrics / "study" / f"{study}.json" if study else metrics / "compare.json",
            main_metrics=metrics / "compare.json",
            form=(data.parents[1] if study else data) / "base" / FORM_FILE,
        )


def publish(
    run_dir: Path, out: Path, base: str | None = None, licence: str = "mit", repo: str | None = None
) -> tuple[Export, Facts]:
    """Write LoRA and card of the run to the new folder `out`.

    Args:
        base: folder or hub name of the base model, which is loaded from there; None: the one that the adapter names.
        licence: the hub's identifier of the licence, such as "apache-2.0".
        repo: name that the card's example loads the adapter from; None: the name of `out`.

    Raises:
        LabError: `out` exists, the run or its records are incomplete, the metrics are missing, lack the arm or are of
            other samples, the base is not the one that the run was trained from, or the adapter cannot be exported.
    """
    if out.exists():
        raise LabError(setting="--out", value=str(out), rule="must be a new folder", fix="move it away first")
    run = Run.at(run_dir)
    facts = gather(run)
    with atomic_directory(out) as folder:
        lora = folder / "lora"
        export = export_lora(run.folder / "adapter", lora, base)
        source = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        _check_base(source, facts.recorded)
        for file in lora.iterdir():
            file.rename(folder / file.name)
        lora.rmdir()
        if facts.chat:
            shutil.copy(run.form, folder)
        write_text(folder / "README.md", render(facts, export, source, licence, repo or out.name, folder / WEIGHTS))
    return export, facts


def push(folder: Path, repo: str, private: bool = False, api: HfApi | None = None) -> str:
    """Upload a published folder to the model repository `repo`, made if need be; returns the address of the commit.

    Files of other names that are already there stay.

    Raises:
        LabError: the hub refuses, or cannot be reached.
    """
    api = api or HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Adapter and model card")
    except HFValidationError as error:
        raise LabError(setting="--repo", value=repo, rule=str(error), fix="such as name/projected-1") from None
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        rule = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        fix = f"check the name and the token (`hf auth login`), then `hf upload {repo} {folder}`: the folder is written"
        raise LabError(setting="--push", value=repo, rule=f"the hub answered: {rule}", fix=fix) from None
    return str(commit.commit_url)


# ---------------------------------------------------------------- gathering


def gather(run: Run) -> Facts:
    """Everything measured and recorded about a run.

    Raises:
        LabError: see `publish`.
    """
    metrics, main = _read(run.metrics, "metrics"), _read(run.main_metrics, "metrics")
    figures = metrics.get("arms", metrics)  # a study's file holds its arms alone
    if run.arm not in figures:
        raise LabError(
            setting=str(run.metrics),
            value=", ".join(figures),
            rule=f"must hold the arm of the run, {run.arm!r}",
            fix="add it to `comparison` or to the study in params.yaml and run `dvc repro`",
        )
    for name in ("arms", "h1", "registration"):
        if name not in main or BASE not in main["arms"]:
            rule = "must hold the untrained base, H1 and its registration"
            raise LabError(setting=str(run.main_metrics), value=", ".join(main), rule=rule, fix="run `dvc repro`")
    recorded = _read(run.provenance, "provenance")
    settings = recorded["settings"]
    if (settings["arm"], settings["seed"]) != (run.arm, run.seed):
        raise LabError(
            setting=str(run.provenance),
            value=f"{settings['arm']}, seed {settings['seed']}",
            rule=f"must be of {run.arm}, seed {run.seed}",
            fix="run `dvc repro`, which puts runs and their records where they belong",
        )
    rates = measure(read_samples(run.graded, run.arm), run.arm).rates
    _check_samples(run, rates, figures[run.arm])
    hypotheses = read_hypotheses(run.main_metrics.parents[1] / "hypotheses.yaml")
    return Facts(
        arm=run.arm,
        seed=run.seed,
        rates=rates,
        base=main["arms"][BASE],
        h1=main["h1"],
        registration=main["registration"],
        claim=hypotheses.claims[PRIMARY],
        recorded=recorded,
        adapter=sha256_file(run.folder / "adapter" / WEIGHTS),
        matched=_check_lock(run),
        chat=run.form.is_file(),
    )


def _read(path: Path, kind: str) -> dict[str, Any]:
    if not path.is_file():
        rule = f"the card reports {kind}, which a finished pipeline writes"
        raise LabError(setting=str(path), value="no such file", rule=rule, fix="run `dvc repro`, or `dvc pull`")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _check_samples(run: Run, rates: ArmRates, reported: Mapping[str, float]) -> None:
    """The metrics must be what the graded samples give, and these must hold the run's seed."""
    row = rates.row()
    other = [name for name in TELLING if row[name] != reported[name]]
    if other or run.seed not in [each.seed for each in rates.by_seed]:
        shown = ", ".join(f"{name} {reported[name]} here, {row[name]} in the samples" for name in other)
        raise LabError(
            setting=str(run.metrics),
            value=shown or f"no samples of seed {run.seed}",
            rule=f"must report the samples of this run, {run.graded / run.arm}",
            fix="run `dvc repro`",
        )


def _check_lock(run: Run) -> bool:
    """Whether run, samples, verdicts and metrics are those that dvc.lock records of one pass; False if it cannot tell.

    Code that changed since does not count: what was measured was measured.
    """
    data = run.graded.parent
    chain = [data / "runs" / run.arm, data / "samples" / run.arm, run.graded / run.arm, run.metrics]
    try:
        with Repo(str(run.main_metrics.parents[1])) as repo:
            status = repo.status(targets=[str(path.resolve()) for path in chain])
    except DvcException:
        return False
    found = {
        (Path(path).resolve(), state)
        for changes in status.values()
        for entry in changes
        if isinstance(entry, dict)
        for paths in entry.values()
        for path, state in paths.items()
    }
    moved = [path for path in chain if (path.resolve(), "modified") in found]
    if moved:
        raise LabError(
            setting="dvc.lock",
            value=f"{', '.join(map(str, moved))} changed since",
            rule="the metrics must be of this very run",
            fix="run `dvc repro`",
        )
    return not any((path.resolve(), state) in found for path in chain for state in ("deleted", "new"))


def _check_base(source: str, recorded: Mapping[str, Any]) -> None:
    if Path(source).is_dir() and sha256_tree(source) != recorded["inputs"]["base"]:
        raise LabError(
            setting="base model",
            value=source,
            rule="must be the one that the run was trained from (its hash stands in the run's provenance)",
            fix="run `dvc repro`, or `dvc checkout`",
        )
