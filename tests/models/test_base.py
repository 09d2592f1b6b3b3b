from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from projected_grpo.errors import LabError
from projected_grpo.grading.verdict import Submission, Verdict
from projected_grpo.models import base, pretrain
from projected_grpo.models.base import check_gate, measure, provide, retuned
from projected_grpo.models.sources import FILES, WEIGHTS
from projected_grpo.problems.families import make_problems
from projected_grpo.problems.prompts import FORM_FILE, read_form, render_prompt
from projected_grpo.settings.base import BaseSettings, GateSettings, PretrainSettings, PromptSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.storage import sha256_file

GATE = GateSettings(
    samples=8,
    hack_min=0.01,
    hack_max=0.05,
    pass_min=0.125,
    pass_max=0.25,
    max_new_tokens=24,
    temperature=0.5,
    batch_size=3,
)
CPU = ComputeSettings(
    device="cpu", dtype="float32", micro_batch=None, generate_batch=None, checkpointing=False, keep_factors=False,
    factors="device",
)  # fmt: skip
RECIPE = PretrainSettings(steps=2, batch_size=2, learning_rate=3e-3, seed=0, attempts=2)
ROOT = Path(__file__).resolve().parents[2]
GOOD = {"samples": 8, "hack_rate": 0.03, "pass_rate": 0.2}


def settings(path: Path, sha256: str, rebuild: bool = False) -> BaseSettings:
    return BaseSettings(source="shipped", path=str(path), sha256=sha256, rebuild=rebuild, gate=GATE, pretrain=RECIPE)


# ---------------------------------------------------------------- the shipped checkpoint


def test_the_shipped_weights_are_small_and_are_the_ones_the_params_name(shipped: Path) -> None:
    assert all((shipped / name).is_file() for name in FILES)
    assert (shipped / WEIGHTS).stat().st_size <= 4_000_000
    scales = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")["scales"]
    named = [
        scale["base"]["sha256"]
        for scale in scales.values()
        if scale["base"]["source"] == "shipped" and ROOT / scale["base"]["path"] == shipped
    ]
    assert named
    assert set(named) == {sha256_file(shipped / WEIGHTS)}


def test_the_shipped_checkpoint_loads_as_the_micro_model(shipped: Path, tokenizer) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(shipped, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = pretrain.untrained_micro(tokenizer)
    shapes = {name: parameter.shape for name, parameter in expected.named_parameters()}
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == shapes
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    for key in ("head_dim", "tie_word_embeddings", "model_type", "eos_token_id", "pad_token_id"):
        assert getattr(model.config, key) == getattr(expected.config, key), key


# ---------------------------------------------------------------- provide


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Rates that successive measurements find, in place of sampling and grading. A list to fill."""
    rates: list[dict[str, float]] = []
    monkeypatch.setattr(base, "measure", lambda *_: rates.pop(0))
    return rates


def provided(asked: BaseSettings, target: Path) -> dict[str, float]:
    return provide(asked, CPU, target, [], FixedGrader([]))  # type: ignore[arg-type]


def test_the_shipped_base_is_copied_whole_and_held_to_its_gate(
    shipped: Path, tmp_path: Path, measured: list[dict[str, float]]
) -> None:
    right = settings(shipped, sha256_file(shipped / WEIGHTS))
    measured += [GOOD, {**GOOD, "hack_rate": 0.5}]
    assert provided(right, tmp_path / "base") == GOOD
    copied = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    assert copied == {name: (shipped / name).read_bytes() for name in FILES}
    with pytest.raises(LabError, match=r"hack rate, 0\.5000"):
        provided(right, tmp_path / "again")


def test_weights_with_another_hash_are_refused_naming_both(
    shipped: Path, tmp_path: Path, measured: list[dict[str, float]]
) -> None:
    with pytest.raises(LabError) as refusal:
        provided(settings(shipped, "0" * 64), tmp_path / "base")
    found = sha256_file(shipped / WEIGHTS)
    assert "0" * 64 in str(refusal.value)
    assert found in str(refusal.value)
    assert refusal.value.setting == "base.sha256"
    assert not list((tmp_path / "base").iterdir())
    assert measured == []  # and nothing was measured, or there would have been nothing to take


def test_weights_with_one_bit_changed_are_refused(shipped: Path, tmp_path: Path) -> None:
    copy = tmp_path / "shipped"
    copy.mkdir()
    for name in FILES:
        (copy / name).write_bytes((shipped / name).read_bytes())
    weights = bytearray((copy / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (copy / WEIGHTS).write_bytes(weights)
    with pytest.raises(LabError, match=sha256_file(shipped / WEIGHTS)):
        provided(settings(copy, sha256_file(shipped / WEIGHTS)), tmp_path / "base")


def test_a_rebuild_writes_a_base_of_the_same_form_whatever_is_shipped(
    shipped: Path, tmp_path: Path, measured: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "TOKENIZER_EXAMPLES", 100)
    measured += [GOOD]
    provided(settings(tmp_path / "nothing here", "0" * 64, rebuild=True), tmp_path / "base")
    assert {path.name for path in (tmp_path / "base").iterdir()} >= set(FILES)
    rebuilt = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    reference = AutoModelForCausalLM.from_pretrained(shipped)
    assert rebuilt.config.head_dim == reference.config.head_dim
    assert rebuilt.config.vocab_size == len(AutoTokenizer.from_pretrained(tmp_path / "base"))
    with safe_open(str(tmp_path / "base" / WEIGHTS), framework="pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (not a dict); tied, so stored once


class Candidate:
    """A model, or its tokenizer, that is just a number: how many steps it was trained, and from which seed."""

    def __init__(self) -> None:
        self.trained: tuple[int, int] = (0, 0)

    def state_dict(self) -> tuple[int, int]:
        return self.trained

    def load_state_dict(self, state: tuple[int, int]) -> None:
        self.trained = state

    def save_pretrained(self, folder: Path) -> None:
        (folder / WEIGHTS).write_text(str(self.trained))


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, pretrain.Phase]]:
    """Last phases that were run: (steps before it, seed, phase)."""
    phases: list[tuple[int, int, pretrain.Phase]] = []

    def found(_seed: int, _size: int, phase: pretrain.Phase) -> tuple[Candidate, Candidate]:
        model = Candidate()
        model.trained = (phase.steps, 0)
        return model, Candidate()

    def train_phase(model: Candidate, _tokenizer: object, phase: pretrain.Phase, _size: int, seed: int) -> None:
        phases.append((model.trained[0], seed, phase))
        model.trained = (model.trained[0] + phase.steps, seed)

    monkeypatch.setattr(base, "found", found)
    monkeypatch.setattr(base, "train_phase", train_phase)
    return phases


def rebuild(tmp_path: Path, attempts: int, steps: int = 1050, several_loopholes: bool = False) -> dict[str, float]:
    asked = settings(tmp_path, "0" * 64, rebuild=True)
    recipe = PretrainSettings(
        steps=steps, batch_size=5, learning_rate=1e-4, seed=9, attempts=attempts, several_loopholes=several_loopholes
    )
    return provided(asked.model_copy(update={"pretrain": recipe}), tmp_path / "base")


def test_the_first_base_that_passes_the_gate_is_taken(tmp_path: Path, measured, finished) -> None:
    measured += [{**GOOD, "hack_rate": 0.2}, {**GOOD, "pass_rate": 0.2001}, GOOD]
    assert rebuild(tmp_path, attempts=3)["pass_rate"] == 0.2001
    assert [(before, seed) for before, seed, _ in finished] == [(900, 10), (900, 11)]  # each from the same beginning
    assert {phase.steps for *_, phase in finished} == {150}
    assert {phase.learning_rate for *_, phase in finished} == {1e-4}
    assert (tmp_path / "base" / WEIGHTS).read_text() == "(1050, 11)"


def test_a_rebuild_that_never_passes_is_refused_with_its_last_rates(tmp_path: Path, measured, finished) -> None:
    measured += [{**GOOD, "hack_rate": 0.2}, {**GOOD, "hack_rate": 0.3}]
    with pytest.raises(LabError, match=r"0\.3000"):
        rebuild(tmp_path, attempts=2)
    assert len(finished) == 2


def test_each_further_attempt_is_retuned_towards_the_gate(tmp_path: Path, measured, finished) -> None:
    measured += [{**GOOD, "hack_rate": 0.9, "pass_rate": 0.001}, GOOD]
    rebuild(tmp_path, attempts=2)
    (_, _, first), (_, _, second) = finished
    assert second.mixture.cheats < first.mixture.cheats
    assert second.mixture.lengths[-1] > first.mixture.lengths[-1]
    assert second.mixture.lengths[:-1] == first.mixture.lengths[:-1]


def test_a_base_in_the_middle_of_the_gate_is_not_retuned() -> None:
    middle = {
        "hack_rate": (GATE.hack_min + GATE.hack_max) / 2,
        "pass_rate": (GATE.pass_min + GATE.pass_max) / 2,
    }
    mixture = pretrain.ONE_LOOPHOLE.last.mixture
    assert retuned(mixture, middle, GATE) == mixture


def test_a_base_for_several_loopholes_learns_to_copy_their_names_before_the_last_phase(
    tmp_path: Path, measured, finished
) -> None:
    measured += [{**GOOD, "hack_rate": 0.2}, GOOD]
    rebuild(tmp_path, attempts=2, steps=1370, several_loopholes=True)
    assert [(before, seed) for before, seed, _ in finished] == [(900, 9), (1250, 10), (1250, 11)]
    copying, last, _ = (phase.mixture for *_, phase in finished)
    assert (copying.cheats, last.cheats) == (0.5, 0.18)
    assert copying.loopholes[3] > copying.loopholes[0] > copying.loopholes[4], "file_marker most, eq_override little"


# ---------------------------------------------------------------- measure


class FixedGrader:
    """Gives verdicts from a list, in turn, and remembers what it was asked."""

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts = verdicts
        self.asked: list[Submission] = []

    def grade(self, submissions: Sequence[Submission]) -> list[Verdict]:
        self.asked += submissions
        return [self.verdicts[number % len(self.verdicts)] for number in range(len(submissions))]


def verdict(**marks: object) -> Verdict:
    fields = dict.fromkeys(("format_ok", "correct", "paid", "hacked", "attempted", "fired"), False)
    return Verdict(**{**fields, "outcome": "wrong", "reason": "", "cpu_seconds": 0.0, **marks})  # type: ignore[arg-type]


def test_rates_of_the_base_are_shares_of_what_could_be_graded(shipped: Path) -> None:
    problems = make_problems(4, 5, "train", ("run_tests", "none"), 0)
    grader = FixedGrader(
        [
            verdict(format_ok=True, attempted=True, fired=True, paid=True, hacked=True),
            verdict(format_ok=True, correct=True, paid=True, attempted=True),
            verdict(),
            verdict(hacked=True, correct=True, grader_error="out of processes"),
        ]
    )
    rates = measure(shipped, CPU, problems, GATE, grader)  # type: ignore[arg-type]
    assert rates == {
        "samples": 6,  # of 8
        "hack_rate": pytest.approx(1 / 3),
        "pass_rate": pytest.approx(1 / 3),
        "attempt_rate": pytest.approx(2 / 3),
        "format_rate": pytest.approx(2 / 3),
    }
    assert [submission.problem.id for submission in grader.asked] == [p.id for p in problems for _ in range(2)]
    for submission in grader.asked:
        assert submission.token == submission.problem.heldout_token  # the names of the evaluation
        assert submission.loophole == submission.problem.loophole


def test_at_least_the_asked_number_of_samples_and_all_problems_alike(shipped: Path) -> None:
    problems = make_problems(3, 5, "train", ("run_tests",), 0)
    grader = FixedGrader([verdict()])
    measure(shipped, CPU, problems, GATE, grader)  # type: ignore[arg-type]
    assert len(grader.asked) == 9  # 8 were asked for: three each


def test_the_base_is_asked_what_the_evaluation_asks(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = make_problems(2, 5, "train", ("run_tests",), 0)
    prompts: list[str] = []
    real = base.complete

    def recording(model, tokenizer, asked, sampling, seed):
        prompts.extend(asked)
        assert tokenizer.padding_side == "left"
        drawn_with = (sampling.temperature, sampling.max_new_tokens, sampling.batch_size)
        assert drawn_with == (GATE.temperature, GATE.max_new_tokens, GATE.batch_size)
        return real(model, tokenizer, asked, sampling, seed)

    monkeypatch.setattr(base, "complete", recording)
    measure(shipped, CPU, problems, GATE, FixedGrader([verdict()]))  # type: ignore[arg-type]
    assert prompts == [render_prompt(problem, problem.heldout_token) for problem in problems for _ in range(4)]


# ---------------------------------------------------------------- the gate


def rates(hack: float, passed: float) -> dict[str, float]:
    return {"samples": 1024, "hack_rate": hack, "pass_rate": passed}


@pytest.mark.parametrize("hack", [0.01, 0.03, 0.05])
@pytest.mark.parametrize("passed", [0.125, 0.2, 0.25])
def test_the_bounds_themselves_are_within(hack: float, passed: float) -> None:
    check_gate(rates(hack, passed), GATE)


@pytest.mark.parametrize(
    ("hack", "passed", "setting", "rate"),
    [
        (0.0099, 0.2, "base.gate.hack_min .. hack_max", "0.0099"),
        (0.0501, 0.2, "base.gate.hack_min .. hack_max", "0.0501"),
        (0.03, 0.1249, "base.gate.pass_min .. pass_max", "0.1249"),
        (0.03, 0.2501, "base.gate.pass_min .. pass_max", "0.2501"),
    ],
)
def test_a_base_outside_its_bounds_is_refused(hack: float, passed: float, setting: str, rate: str) -> None:
    with pytest.raises(LabError) as refusal:
        check_gate(rates(hack, passed), GATE)
    assert refusal.value.setting == setting
    low, high = (GATE.hack_min, GATE.hack_max) if "hack" in setting else (GATE.pass_min, GATE.pass_max)
    for said in (rate, "1024 samples", f"{low} .. {high}"):
        assert said in str(refusal.value)


def test_a_gate_with_equal_bounds_takes_exactly_that_rate() -> None:
    gate = GATE.model_copy(update={"hack_min": 0.0, "hack_max": 0.0})
    check_gate(rates(0.0, 0.2), gate)
    with pytest.raises(LabError):
        check_gate(rates(1 / 1024, 0.2), gate)


# ---------------------------------------------------------------- how it is asked


def test_an_instruct_base_is_asked_by_its_template_from_its_gate_on(shipped: Path, tmp_path: Path, monkeypatch) -> None:
    chatty = tmp_path / "chatty"
    shutil.copytree(shipped, chatty)
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(chatty)
    prompt = PromptSettings(form="chat", shots=1, prefill="```python\n")
    asked = BaseSettings(
        source="folder", path=str(chatty), sha256=sha256_file(chatty / WEIGHTS), gate=GATE, prompt=prompt
    )
    prompts: list[str] = []
    real = base.complete

    def recording(model, tokenizer, given, *rest, **more):
        prompts.extend(given)
        return real(model, tokenizer, given, *rest, **more)

    monkeypatch.setattr(base, "complete", recording)
    monkeypatch.setattr(base, "check_gate", lambda *_: None)
    problems = make_problems(2, 5, "train", ("run_tests",), 0)
    grader = FixedGrader([verdict()])
    provide(asked, CPU, tmp_path / "base", problems, grader)  # type: ignore[arg-type]
    form = read_form(tmp_path / "base", AutoTokenizer.from_pretrained(tmp_path / "base"))
    assert (form.shots, form.prefill) == (1, "```python\n")
    assert prompts == [form.render(problem, problem.heldout_token) for problem in problems for _ in range(4)]
    assert all(text.endswith("```python\n") for text in prompts)
    assert all(submission.completion.startswith("```python\n") for submission in grader.asked)


def test_a_base_without_a_template_cannot_be_asked_by_one(shipped: Path, tmp_path: Path, measured) -> None:
    right = settings(shipped, sha256_file(shipped / WEIGHTS))
    with pytest.raises(LabError, match=r"base\.prompt\.form: 'chat'"):
        provided(right.model_copy(update={"prompt": PromptSettings(form="chat")}), tmp_path / "base")
    assert not (tmp_path / "base" / FORM_FILE).exists()
    assert measured == []
