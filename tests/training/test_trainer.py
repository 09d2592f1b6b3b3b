"""Real steps of the real stack (TRL, PEFT, sandbox) on the shipped micro model, against what they should be."""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import importlib
import importlib.util
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from training_lab import Lab, LengthBonus, Watched, Watcher, policy_gradient, rollouts, silent, train_with, watch
from transformers import AutoModelForCausalLM, PreTrainedModel

from projected_grpo.directions.algebra import cosine, total_norm
from projected_grpo.interventions import erase, measure  # noqa: F401  (loaded, so that run keys agree in this process)
from projected_grpo.interventions.base import Rollouts
from projected_grpo.problems.schema import read_problems
from projected_grpo.settings.arms import TeacherSettings
from projected_grpo.spectral import deltas
from projected_grpo.storage import SCRATCH_VARIABLE, sha256_tree
from projected_grpo.training import run as run_module
from projected_grpo.training.run import STEP_COLUMNS, WITHOUT_EFFECT, curriculum, locked, run_key, train_run
from projected_grpo.training.runlog import ROLLOUTS
from projected_grpo.training.spec import INPUTS, RunSpec

# ---------------------------------------------------------------- a watched run


@pytest.fixture(scope="module")
def watched(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    probe = torch.arange(10, 34).reshape(2, 12)
    return watch(lab.spec("vanilla", steps=3, save_every=100), Watcher(probe), tmp_path_factory.mktemp("watched"))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_gradient_is_the_policy_gradient_of_the_logged_rollouts(watched: Watched, step: int) -> None:
    """Step 0 has delta = 0, later ones have not."""
    expected = policy_gradient(watched, step, watched.rows(step))
    reached = watched.watcher.gradients[step]
    assert reached.keys() == expected.keys()
    assert total_norm(expected) > 0
    assert cosine(reached, expected) > 0.9999
    assert total_norm(reached) == pytest.approx(total_norm(expected), rel=1e-3)


@pytest.mark.parametrize("sample", [0, 5])
def test_a_rollout_is_read_by_its_own_gradient(watched: Watched, sample: int) -> None:
    """TRL shuffles the batch between scoring and the loss: a row must still be the rollout it is logged with."""
    row = watched.rows(2)[sample]
    expected = policy_gradient(watched, 2, [row])
    hooks = watched.trainer.update_hooks
    got = {module: gradients[sample] for module, gradients in hooks.rollouts.items()}
    assert cosine(got, expected) > 0.9999
    assert total_norm(got) == pytest.approx(total_norm(expected), rel=1e-3)
    reading = hooks.gauge.read(expected)
    assert row["alignment"] == pytest.approx(reading["alignment"], rel=1e-3)
    assert row["alignment_signed"] == pytest.approx(reading["alignment_signed"], abs=1e-4)


def test_rollouts_add_up_to_the_gradient(watched: Watched) -> None:
    total = {module: rows.sum(0) for module, rows in watched.trainer.update_hooks.rollouts.items()}
    reached = watched.watcher.gradients[2]
    assert total.keys() == reached.keys()
    assert all(torch.allclose(total[m], reached[m], rtol=1e-4, atol=1e-6) for m in total)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_model_computes_with_the_weights_of_its_step(watched: Watched, step: int) -> None:
    """A folded weight that outlived an optimizer step (fused ones raise no version counter) would show here."""
    moved = max(delta.abs().max().item() for delta in watched.watcher.deltas[step].values())
    assert (moved > 0.01) == (step > 0)
    with torch.no_grad():
        logits = watched.dense(step)(watched.watcher.probe).logits
    assert torch.allclose(watched.watcher.logits[step], logits, rtol=0, atol=1e-5 * logits.abs().max().item())


@pytest.mark.parametrize("step", [1, 2])
def test_completions_are_sampled_from_the_updated_policy(watched: Watched, step: int) -> None:
    """With the same random numbers the dense policy of this step writes the same tokens, that of the last does not."""

    def written(model: PreTrainedModel) -> list[list[int]]:
        tokenizer = copy.deepcopy(watched.trainer.processing_class)
        batch = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True, padding_side="left")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.set_rng_state(watched.watcher.random_states[step])
            ids = model.eval().generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                generation_config=copy.deepcopy(watched.trainer.generation_config),
            )
        width = batch["input_ids"].shape[1]
        eos = tokenizer.eos_token_id
        tails = ids[:, width:].tolist()
        return [tail[: tail.index(eos) + 1] if eos in tail else tail for tail in tails]

    rows = watched.rows(step)
    logged = [row["token_ids"] for row in rows]
    assert written(watched.dense(step)) == logged
    assert written(watched.dense(step - 1)) != logged


def test_advantages_are_rewards_less_the_mean_of_their_group(watched: Watched) -> None:
    rows = watched.rows(1)
    size = watched.spec.grpo.samples
    assert [(row["group"], row["sample"]) for row in rows] == [divmod(i, size) for i in range(len(rows))]
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        assert len({row["prompt"] for row in group}) == 1
        mean = sum(row["reward"] for row in group) / size
        assert [row["advantage"] for row in group] == pytest.approx([r["reward"] - mean for r in group], abs=1e-5)


def test_problems_come_in_the_order_of_the_curriculum(watched: Watched) -> None:
    grpo = watched.spec.grpo
    problems = read_problems(watched.spec.problems)
    order = curriculum(problems, grpo.prompts, grpo.steps, watched.spec.seed)
    heads = [row["problem_id"] for row in rollouts(watched.folder) if row["sample"] == 0]
    assert heads == [problem.id for problem in order]


# ---------------------------------------------------------------- screening, penalty, faults


class Screen(LengthBonus):
    """Keeps the first sample of every group out."""

    def __init__(self, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size

    def reward(self, rollouts: Rollouts, rewards: list[float]) -> list[float | None]:
        given = super().reward(rollouts, rewards)
        return [None if i % self.group_size == 0 else reward for i, reward in enumerate(given)]


def test_a_screened_sample_is_in_neither_baseline_nor_update(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = lab.spec("vanilla", steps=1, save_every=100)
    size = spec.grpo.samples
    train_with(spec, Screen(size), tmp_path, monkeypatch)
    rows = rollouts(tmp_path)
    assert len(rows) == spec.grpo.prompts * size
    for start in range(0, len(rows), size):
        screened, *kept = rows[start : start + size]
        assert (screened["reward"], screened["weight"], screened["advantage"]) == (None, 0.0, 0.0)
        mean = sum(row["reward"] for row in kept) / len(kept)
        assert [row["advantage"] for row in kept] == pytest.approx([r["reward"] - mean for r in kept], abs=1e-5)
        assert {row["weight"] for row in kept} == {1.0}


def test_a_kl_penalty_leaves_one_trained_adapter(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL puts a frozen copy of the adapter beside ours as its reference: it must stay at the base."""
    spec = lab.spec("vanilla", steps=2, kl_beta=0.1, save_every=100)
    trainer = train_with(spec, LengthBonus(), tmp_path, monkeypatch)
    figures = trainer.run_log.figures("steps")
    assert figures["kl"][0] == pytest.approx(0, abs=1e-6)
    assert figures["kl"][1] > 1e-4
    reference = deltas(trainer.model, "ref")
    assert all(not delta.any() and not delta.requires_grad for delta in reference.values())
    assert all(delta.any() for delta in deltas(trainer.model).values())


class Explode(LengthBonus):
    def advantage(self, advantages: Tensor) -> Tensor:
        return advantages * math.inf


def test_a_figure_that_is_not_finite_stops_the_run(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FloatingPointError, match=r"step 0: .*loss.* not finite: lower grpo.learning_rate"):
        train_with(lab.spec("vanilla", steps=2), Explode(), tmp_path, monkeypatch)


# ---------------------------------------------------------------- whole runs


@dataclasses.dataclass(frozen=True)
class Runs:
    """Result folders of smoke runs, each in a scratch store of its own, and the steps that were heard of."""

    vanilla: Path
    projected: Path
    again: Path  # projected once more
    heard: dict[str, list[int]]


@pytest.fixture(scope="module")
def runs(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    heard: dict[str, list[int]] = {}

    def trained(name: str, arm: str) -> Path:
        steps = heard.setdefault(name, [])
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path_factory.mktemp(name)))
            return train_run(lab.spec(arm), lambda step, _: steps.append(step))

    return Runs(trained("vanilla", "vanilla"), trained("projected", "projected"), trained("again", "projected"), heard)


def test_equal_runs_give_equal_bytes(runs: Runs) -> None:
    assert sha256_tree(runs.projected / "run") == sha256_tree(runs.again / "run")
    assert sha256_tree(runs.projected / "run") != sha256_tree(runs.vanilla / "run")


def test_a_run_holds_what_later_stages_read(runs: Runs) -> None:
    files = {path.relative_to(runs.vanilla).as_posix() for path in runs.vanilla.rglob("*") if path.is_file()}
    assert files == {
        "run/adapter/adapter_config.json", "run/adapter/adapter_model.safetensors", "run/rollouts.parquet",
        "run/steps.csv", "provenance/provenance.json", "provenance/sampler.parquet", "provenance/timings.parquet",
    }  # fmt: skip
    assert pq.read_schema(runs.vanilla / "run/rollouts.parquet").equals(ROLLOUTS)


def test_steps_csv_has_its_columns_in_order(runs: Runs, lab: Lab) -> None:
    header, *lines = (runs.projected / "run/steps.csv").read_text().splitlines()
    assert header == ",".join(STEP_COLUMNS)
    assert [line.split(",")[0] for line in lines] == [str(step) for step in range(lab.spec("vanilla").grpo.steps)]


def test_rates_of_a_step_are_means_over_its_rollouts(runs: Runs) -> None:
    steps = pd.read_csv(runs.vanilla / "run/steps.csv")
    rows = pd.read_parquet(runs.vanilla / "run/rollouts.parquet")
    names = ["reward", "paid", "correct", "hacked", "attempted", "format_ok"]
    means = rows.groupby("step")[names].mean().astype(float).reset_index(drop=True)
    pd.testing.assert_frame_equal(steps[names].astype(float), means, rtol=1e-6)
    assert steps["n"].tolist() == rows.groupby("step").size().tolist()


def test_arms_start_from_the_same_rollouts(runs: Runs) -> None:
    """Same seed, same base: the first step differs in nothing but the arm's name."""
    first, second = (
        pd.read_parquet(folder / "run/rollouts.parquet").query("step == 0").drop(columns="arm")
        for folder in (runs.vanilla, runs.projected)
    )
    pd.testing.assert_frame_equal(first, second)


def test_a_finished_run_is_not_trained_again(runs: Runs, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert runs.heard["vanilla"] == list(range(lab.spec("vanilla").grpo.steps))
    monkeypatch.setenv(SCRATCH_VARIABLE, str(runs.vanilla.parents[2]))
    heard: list[int] = []
    assert train_run(lab.spec("vanilla"), lambda step, _: heard.append(step)) == runs.vanilla
    assert heard == []


def test_a_run_cut_between_last_step_and_result_ends_the_same(
    runs: Runs, lab: Lab, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "write_result", cut)
        with pytest.raises(KeyboardInterrupt):
            train_run(lab.spec("projected"), silent)
    assert not list(scratch.rglob("result"))
    heard: list[int] = []
    result = train_run(lab.spec("projected"), lambda step, _: heard.append(step))
    assert heard == []  # the last checkpoint holds the last step
    assert sha256_tree(result / "run") == sha256_tree(runs.projected / "run")


def test_provenance_says_what_a_run_came_from(runs: Runs, lab: Lab) -> None:
    spec = lab.spec("projected")
    said = json.loads((runs.projected / "provenance/provenance.json").read_text())
    assert said["settings"] == spec.resolved()
    assert said["inputs"] == {
        name: sha256_tree(getattr(spec, name)) for name in ("base", "problems", "gauge", "own_direction", "pairs")
    }
    assert said["versions"]["torch"] == torch.__version__
    assert said["threads"] == 1
    assert min(said["wall_seconds"], said["cpu_seconds"], said["peak_memory_mb"]) > 0
    timings = pd.read_parquet(runs.projected / "provenance/timings.parquet")
    assert timings["step"].tolist() == list(range(spec.grpo.steps))
    disjoint = timings.drop(columns=["step", "step_total", "forward"])
    assert (disjoint >= 0).all(axis=None)
    assert (disjoint.sum(axis=1) <= timings["step_total"]).all()
    assert timings["refresh"][1] > 10 * timings["refresh"][0]  # refresh_every 1: not before the first step


def test_a_run_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path), open(tmp_path / ".lock") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(tmp_path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_direction_of_another_base_is_refused(lab: Lab, tmp_path: Path, scratch: Path) -> None:  # noqa: ARG001
    base = shutil.copytree(lab.root / "data/base", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(base)
    with pytest.raises(ValueError, match="direction 'hack' was extracted from base"):
        train_run(dataclasses.replace(lab.spec("vanilla"), base=base), silent)


# ---------------------------------------------------------------- the key of a run

OTHER: dict[str, dict[str, Any]] = {
    "settings": {
        "intervention": "measure", "direction": "placebo", "grader": "honest", "axes": {"k": 2}, "options": {"x": 1},
        "teacher": TeacherSettings(pool="pool.parquet", mix=0.5),
    },
    "grpo": {
        "steps": 9, "prompts": 9, "samples": 9, "max_new_tokens": 9, "temperature": 0.9, "learning_rate": 0.9,
        "adam_beta1": 0.8, "adam_beta2": 0.8, "weight_decay": 0.9, "kl_beta": 0.9, "max_grad_norm": 0.9,
        "reward_format": 0.9, "reward_paid": 0.9, "measure_k": 2, "rollout_gradients": False, "probe_every": 2,
    },
    "sandbox": {"cpu_seconds": 1.5, "wall_seconds": 9.0, "memory_mb": 100, "output_kb": 9},
    "direction": {
        "k": 2, "gate": "reverse", "refresh_every": 9, "project": "both", "overshoot": 1.1, "preserve_magnitude": True,
        "purge_moments": True, "noise_floor": 0.1, "mean_diff": True, "random_match": "energy", "random_redraw": False,
    },
}  # fmt: skip
NO_RESULT = {  # what decides how fast and how patiently, and no number
    "grpo": {"save_every": 99},
    "sandbox": {"workers": 2, "max_error_share": 0.9, "allow_weak": False},
}


def changed(spec: RunSpec, section: str, **values: Any) -> RunSpec:
    return dataclasses.replace(spec, **{section: getattr(spec, section).model_copy(update=values)})


def test_every_setting_that_can_change_a_result_is_in_the_key(lab: Lab) -> None:
    """A new setting has to be added to one of the two tables above."""
    spec = lab.spec("projected")
    for section, values in OTHER.items():
        known = {*values, *NO_RESULT.get(section, {})}
        assert known == set(type(getattr(spec, section)).model_fields)
    variants = [spec, dataclasses.replace(spec, seed=2), dataclasses.replace(spec, arm="another")]
    variants += [changed(spec, section, **{f: v}) for section, values in OTHER.items() for f, v in values.items()]
    assert len({str(variant.resolved()) for variant in variants}) == len(variants)


def test_a_teacher_counts_by_all_but_the_place_of_its_pool(lab: Lab) -> None:
    spec = lab.spec("vanilla")

    def taught(**changes: Any) -> str:
        teacher = TeacherSettings.model_validate({"pool": "pool.parquet", "mix": 0.5} | changes)
        return str(changed(spec, "settings", teacher=teacher).resolved())

    others: list[dict[str, Any]] = [
        {"mix": 0.25}, {"until_step": 3}, {"loopholes": ("sentinel",)}, {"problems": "all"}, {"known_only": True}
    ]  # fmt: skip
    assert {"pool", *(name for other in others for name in other)} == set(TeacherSettings.model_fields)
    assert len({taught(), *(taught(**other) for other in others)}) == 6
    assert taught(pool="elsewhere.parquet") == taught()


@pytest.mark.parametrize("section", sorted(NO_RESULT))
def test_settings_that_change_no_result_are_not_in_the_key(lab: Lab, section: str) -> None:
    spec = lab.spec("projected")
    assert changed(spec, section, **NO_RESULT[section]) != spec
    assert changed(spec, section, **NO_RESULT[section]).resolved() == spec.resolved()


def test_the_key_changes_with_settings_seed_and_libraries(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lab.spec("projected")
    keys = [run_key(s) for s in (spec, dataclasses.replace(spec, seed=2), changed(spec, "grpo", temperature=0.9))]
    monkeypatch.setattr(run_module.importlib.metadata, "version", lambda _: "0")
    assert len({*keys, run_key(spec)}) == 4


@pytest.mark.parametrize("name", INPUTS)
def test_the_key_changes_with_the_content_of_an_input_and_not_with_its_place(
    lab: Lab, tmp_path: Path, name: str
) -> None:
    spec = dataclasses.replace(lab.spec("projected"), pool=lab.root / "params.yaml")  # any file: it counts by content
    source: Path = getattr(spec, name)
    moved = tmp_path / "elsewhere"
    (shutil.copytree if source.is_dir() else shutil.copyfile)(source, moved)
    spec_moved = dataclasses.replace(spec, **{name: moved})
    assert run_key(spec_moved) == run_key(spec)
    file = moved / "config.json" if moved.is_dir() else moved
    file.write_bytes(file.read_bytes() + b" ")
    assert run_key(spec_moved) != run_key(spec)


@pytest.mark.parametrize(("arm", "module"), [("projected", "erase"), ("vanilla", "measure")])
def test_the_key_covers_the_code_of_the_arm(lab: Lab, monkeypatch: pytest.MonkeyPatch, arm: str, module: str) -> None:
    """It is loaded by name: a process that has not done so yet must count it all the same."""
    name = f"projected_grpo.interventions.{module}"
    monkeypatch.delitem(run_module.sys.modules, name)
    assert name not in run_module.source_hashes()
    run_key(lab.spec(arm))
    assert {name, "projected_grpo.training.trainer", "projected_grpo.grading.sandbox.child"} <= set(
        run_module.source_hashes()
    )


def test_the_key_covers_detectors_that_are_loaded_no_sooner_than_they_are_used(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "projected_grpo.grading.labels.detectors"
    monkeypatch.delitem(run_module.sys.modules, name, raising=False)
    flags = {"intervention": "monitored", "options": {"monitor": "flags"}}
    run_key(lab.spec("own", block=flags))
    assert name not in run_module.source_hashes()
    run_key(lab.spec("own", block=flags | {"options": {"monitor": "flags", "flag": "stub_passes"}}))
    assert name in run_module.source_hashes()


@pytest.mark.parametrize(
    ("module", "counts"),
    [
        ("projected_grpo.training.trainer", True),
        ("projected_grpo.training.spec", True),
        ("projected_grpo.interventions.base", True),
        ("projected_grpo.grading.verdict", True),
        ("projected_grpo.settings.arms", False),
        ("projected_grpo.errors", False),
        ("projected_grpo.training.display", False),
        ("projected_grpo.training.seeds", False),
    ],
)
def test_the_key_changes_with_code_that_can_change_a_result_alone(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, counts: bool
) -> None:
    loaded = importlib.import_module(module)
    spec = lab.spec("vanilla")
    before = run_key(spec)
    reworded = tmp_path / Path(str(loaded.__file__)).name
    reworded.write_text(Path(str(loaded.__file__)).read_text() + "\n# another word\n")
    monkeypatch.setattr(loaded, "__file__", str(reworded))
    assert (run_key(spec) != before) == counts


def test_what_is_left_out_of_the_key_is_there() -> None:
    """A name that moves must move in the list as well."""
    for name in WITHOUT_EFFECT:
        assert importlib.util.find_spec(name) is not None
    assert "projected_grpo.interventions.registry" in run_module.sys.modules
    assert "projected_grpo.interventions.registry" not in run_module.source_hashes()


# ---------------------------------------------------------------- the order of problems


def test_a_curriculum_is_whole_passes_in_another_order_each(lab: Lab) -> None:
    problems = read_problems(lab.spec("vanilla").problems)
    order = [problem.id for problem in curriculum(problems, 4, 10, seed=1)]
    size = len(problems)
    assert len(order) == 40
    assert sorted(order[:size]) == sorted(order[size : 2 * size]) == sorted(problem.id for problem in problems)
    assert order[:size] != order[size : 2 * size]
    assert order == [problem.id for problem in curriculum(problems, 4, 10, seed=1)]
    assert order != [problem.id for problem in curriculum(problems, 4, 10, seed=2)]
    assert order[:20] == [problem.id for problem in curriculum(problems, 4, 5, seed=1)]
