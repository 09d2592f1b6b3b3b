"""The spectral adapter against stock LoRA and against its own naive form: time and memory, as ratios within one run.

    python benchmarks/adapter.py                  CPU: hidden 1024, MLP 3072, 4 layers, vocabulary 4096, 4096 tokens
    python benchmarks/adapter.py --device cuda    Qwen3-4B's shapes in bfloat16
    python benchmarks/adapter.py --quick          small shapes, under 50 s; the ratios mean little

Weights are random, and so is the orthonormal basis: nothing timed here depends on their values. An update is a
forward and a backward pass and the optimizer's step. Variants take turns; a ratio is the median over the rounds of
its ratio within a round. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from live_bytes import LiveBytes, previous_prime
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from projected_grpo.directions.algebra import alignment, erase_all, haar_basis, removed_share, total_norm
from projected_grpo.directions.extract import ExtractionOptions, completion_gradients
from projected_grpo.problems.pairs import read_pairs
from projected_grpo.spectral import GradientCollector, SpectralConfig, SpectralLayer, deltas, factors, spectral_layers
from projected_grpo.spectral.basis import Basis
from projected_grpo.spectral.kernels import Shape

ROOT = Path(__file__).resolve().parents[1]
LORA_RANK, SMALL_RANK, MODULES, AXES = 32, 128, 252, 12
BARS = {
    "folded_vs_lora": 1.5, "folded_vs_naive": 0.75, "factored_vs_lora": 1.15, "by_source": 1.05,
    "by_rollout_factored": 1.05, "by_rollout_full": 1.4, "memory_vs_lora": 1.15, "extraction_vs_serial": 0.6,
    "projection_share": 0.02,
}  # fmt: skip
GPU_BARS = BARS | {"folded_vs_naive": 0.6, "extraction_vs_serial": 0.35}


@dataclass(frozen=True)
class Shapes:
    """A Qwen3 model and a batch of rows x length tokens."""

    hidden: int = 1024
    mlp: int = 3072
    layers: int = 4
    vocab: int = 4096
    heads: int = 8
    kv_heads: int = 4
    rows: int = 16
    length: int = 256
    pairs: int = 60
    rounds: int = 3

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(d_out, d_in) of the adapted matrices of one layer."""
        q, kv = 128 * self.heads, 128 * self.kv_heads
        return [(q, self.hidden), (kv, self.hidden), (kv, self.hidden), (self.hidden, q),
                (self.mlp, self.hidden), (self.mlp, self.hidden), (self.hidden, self.mlp)]  # fmt: skip


QUICK = Shapes(hidden=256, mlp=768, layers=2, vocab=1024, heads=2, kv_heads=1, rows=8, length=128, pairs=8, rounds=7)
QWEN3_4B = Shapes(2560, 9728, 36, 151_936, 32, 8, rows=8, length=1024, rounds=5)


def make_base(shapes: Shapes, device: str) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shapes.vocab,
        hidden_size=shapes.hidden,
        intermediate_size=shapes.mlp,
        num_hidden_layers=shapes.layers,
        num_attention_heads=shapes.heads,
        num_key_value_heads=shapes.kv_heads,
        head_dim=128,
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    return model.to(torch.bfloat16 if device == "cuda" else torch.float32).train()


def twin(base: nn.Module) -> nn.Module:
    """Another model with the same parameters, not copies of them: variants share the frozen weights."""
    return copy.deepcopy(base, memo={id(parameter): parameter for parameter in base.parameters()})


def random_basis(weight: Tensor, rank: int | None, cache: Any = None, dtype: torch.dtype = torch.float32) -> Basis:
    """Stands in for the SVD, which would take longer than the measurement: orthonormal factors of the same shapes."""
    d_out, d_in = weight.shape
    r = min(d_out, d_in, rank or d_in)
    with torch.random.fork_rng(devices=[]):
        U = torch.linalg.qr(torch.randn(d_out, r, device=weight.device))[0].to(dtype)
        Vh = torch.linalg.qr(torch.randn(d_in, r, device=weight.device))[0].T.to(dtype)
    basis = Basis(U.cpu().contiguous(), torch.ones(r), Vh.cpu().contiguous())
    if cache is not None:  # mapped from its file, as the real one
        save_file(basis._asdict(), path := Path(cache) / f"{id(weight)}.safetensors")
        basis = Basis(**load_file(path))
    return basis


def spectral(base: nn.Module, **settings: Any) -> nn.Module:
    if next(base.parameters()).is_cuda:
        settings["factors_dtype"] = "bfloat16"
    return get_peft_model(base, SpectralConfig(task_type="CAUSAL_LM", **settings))


def stock_lora(base: nn.Module) -> nn.Module:
    """In the dtype of the base: PEFT would keep A and B in float32, and multiply in it, which flatters us on a GPU."""
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, config, autocast_adapter_dtype=False)


class NaiveLinear(nn.Module):
    """y = W x + U (delta * Vh x), as written, through autograd."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.base_layer, self.delta = layer.base_layer, layer.spectral_delta["default"]
        self.U, self.Vh = layer.factors.on(self.delta.device)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + linear(linear(x, self.Vh) * self.delta.to(x.dtype), self.U)


def naive(base: nn.Module) -> nn.Module:
    model = spectral(base, mode="folded")
    for name, layer in spectral_layers(model).items():
        model.get_base_model().set_submodule(name, NaiveLinear(layer))
    return model


# ---------------------------------------------------------------- updates


def make_update(model: nn.Module, shapes: Shapes, sources: int = 0, rollouts: bool = False) -> Callable[[], None]:
    """One training step on random tokens; with a collector if sources or rollouts are asked for."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(shapes.vocab, (shapes.rows, shapes.length), generator=generator).to(device)
    targets = ids.roll(-1, 1)
    weights = torch.randn(shapes.rows, generator=generator).to(device)  # advantages
    partition = torch.randint(max(sources, 1), (shapes.rows,), generator=generator)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    collector = GradientCollector(model, rollouts=rollouts, sources=sources) if sources or rollouts else None

    def update() -> None:
        with collector or nullcontext():
            if collector is not None and sources:
                collector.rows(partition)
            logits = model(input_ids=ids, use_cache=False).logits
            losses = cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)
            (losses * weights).sum().backward()
            if collector is not None:
                collector.by_source(), collector.by_rollout()
                collector.clear()
        optimizer.step()
        optimizer.zero_grad()

    return update


def seconds(work: Callable[[], Any], device: str) -> float:
    """Of wall time on a GPU; of processor time on a CPU, where others may be at work."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def time_updates(shapes: Shapes, device: str) -> dict[str, list[float]]:
    """Seconds of each variant's update, round by round."""
    base = make_base(shapes, device)
    full, small = spectral(twin(base)), spectral(twin(base), rank=SMALL_RANK, mode="factored")
    updates = {
        "lora": make_update(stock_lora(twin(base)), shapes),
        "folded": make_update(full, shapes),
        "by_source": make_update(full, shapes, sources=2),
        "by_rollout_full": make_update(full, shapes, rollouts=True),
        "factored": make_update(small, shapes),
        "by_rollout_factored": make_update(small, shapes, rollouts=True),
        "naive": make_update(naive(twin(base)), shapes),
    }
    taken: dict[str, list[float]] = {name: [] for name in updates}
    for number in range(shapes.rounds + 1):
        for name, update in updates.items():
            taken[name].append(seconds(update, device))
            progress(f"round {number}/{shapes.rounds} {name}: {taken[name][-1]:.3f} s")
    return {name: times[1:] for name, times in taken.items()}  # the first warms up


# ---------------------------------------------------------------- memory


def peak_bytes(model: nn.Module, shapes: Shapes, device: str) -> int:
    """At the worst moment of an update: all of the device's memory on a GPU, all but activations on a CPU."""
    update = make_update(model, shapes)
    update()  # makes the optimizer's state and the folded weight
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        update()
        return torch.cuda.max_memory_allocated()
    layers = [module for module in model.modules() if isinstance(module, SpectralLayer)]
    mapped = [tensor for layer in layers for tensor in (layer.U, layer.Vh, layer._plain) if tensor is not None]
    with LiveBytes(list(model.parameters()), mapped, shapes.length) as live:
        update()
    return live.peak


def memory_vs_lora(shapes: Shapes, device: str) -> float:
    """Full rank with the factors off the device (on a CPU: mapped from disk) against LoRA."""
    shapes = replace(shapes, length=previous_prime(shapes.length))
    peaks = []
    with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
        home = {"factors_device": "cpu"} if device == "cuda" else {"factors_device": "disk", "basis_cache": folder}
        for wrap in (lambda base: spectral(base, **home), stock_lora):
            model = wrap(make_base(shapes, device))
            peaks.append(peak_bytes(model, shapes, device))
            del model
            gc.collect()
    progress(f"peak: spectral {peaks[0] / 2**20:.0f} MiB, LoRA {peaks[1] / 2**20:.0f} MiB")
    return peaks[0] / peaks[1]


# ---------------------------------------------------------------- extraction and projection


def extraction_vs_serial(shapes: Shapes, device: str) -> float:
    """Gradients of all completions of the pairs: batched by `extract`, against one backward pass each.

    Raises:
        AssertionError: the two disagree, by the cosine of any module's gradients.
    """
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/shipped/micro")
    pairs = read_pairs(ROOT / "data/shipped/pairs.yaml")[: shapes.pairs]
    texts = [(pair.prompt, answer) for pair in pairs for answer in (pair.hack, pair.clean)]
    model = spectral(make_base(shapes, device)).eval()
    options = ExtractionOptions(k_max=AXES, loss_denominator=64, batch_size=20 if device == "cpu" else 120)
    serial: list[dict[str, Tensor]] = []
    batched: dict[str, Tensor] = {}
    parameters = deltas(model)

    def one_by_one() -> None:
        for prompt, answer in texts:
            head, tail = tokenizer(prompt)["input_ids"], tokenizer(answer)["input_ids"]
            ids = torch.tensor([[*head, *tail, tokenizer.eos_token_id]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(head) - 1 : -1].float()
            loss = cross_entropy(logits, ids[0, len(head) :], reduction="sum") / options.loss_denominator
            loss.backward()
            serial.append({name: delta.grad.clone() for name, delta in parameters.items()})
            model.zero_grad()

    def together() -> None:
        batched.update(completion_gradients(model, tokenizer, texts, options))

    with torch.no_grad():
        model(input_ids=torch.ones(1, 1, dtype=torch.long, device=device))  # W' is there, as after sampling
    taken = seconds(together, device), seconds(one_by_one, device)
    progress(f"extraction: batched {taken[0]:.2f} s, serial {taken[1]:.2f} s")
    for name, rows in batched.items():
        cosines = torch.cosine_similarity(rows.cpu(), torch.stack([row[name] for row in serial]).cpu())
        assert cosines.min() > 0.999, f"{name}: cosine {cosines.min():.4f}"
    return taken[0] / taken[1]


def projection_seconds(shapes: Shapes) -> float:
    """Median seconds of erasing and logging one step's gradient at 252 modules of these shapes."""
    generator = torch.Generator().manual_seed(2)
    ranks = [min(shape) for shape in shapes.linears] * (MODULES // len(shapes.linears))
    gradients = {f"module{i}": torch.randn(r, generator=generator) for i, r in enumerate(ranks)}
    frames = {r: haar_basis(AXES, r, generator) for r in set(ranks)}
    bases = {f"module{i}": frames[r].clone() for i, r in enumerate(ranks)}

    def project() -> None:
        erased = erase_all(gradients, bases, "one_sided")
        alignment(gradients, bases), removed_share(gradients, erased), total_norm(gradients), total_norm(erased)
        alignment({name: -vector for name, vector in erased.items()}, bases)  # the leak, after the optimizer

    return statistics.median(seconds(project, "cpu") for _ in range(7))


# ---------------------------------------------------------------- the table


def roofline(shapes: Shapes) -> dict[str, float]:
    """Multiplications of the adapted matrices per update, in units of one pass over them; nothing else is counted."""
    tokens = shapes.rows * shapes.length
    sums = dict.fromkeys(("lora", "folded", "by_source", "by_rollout_full", "factored", "naive", "rows"), 0.0)
    for d_out, d_in in shapes.linears:
        weight, r = d_out * d_in * tokens, min(d_out, d_in)
        full, small = Shape(d_out, d_in, r), Shape(d_out, d_in, min(r, SMALL_RANK))
        fold = r / tokens
        half = min(1 + 2 * fold, full.rotation)  # the gradient of half of the tokens, per token
        sums["lora"] += weight * (2 + 3 * LORA_RANK * (d_out + d_in) / (d_out * d_in))
        sums["folded"] += weight * (2 + fold + min(1 + fold, full.rotation))
        sums["by_source"] += weight * (2 + fold + half)
        sums["by_rollout_full"] += weight * (2 + fold + full.rotation)
        sums["factored"] += weight * (2 + 2 * small.rotation)
        sums["naive"] += weight * (2 + 2 * full.rotation)
        sums["rows"] += weight * (2 + full.rotation)
    unit = sum(d_out * d_in * tokens for d_out, d_in in shapes.linears)
    return {name: total / unit for name, total in sums.items()}


def limits(shapes: Shapes) -> dict[str, float]:
    """What the ratios of time would be if multiplications in adapted matrices were all there is."""
    cost = roofline(shapes)
    return {
        "folded_vs_lora": cost["folded"] / cost["lora"],
        "folded_vs_naive": cost["folded"] / cost["naive"],
        "factored_vs_lora": cost["factored"] / cost["lora"],
        "by_source": cost["by_source"] / cost["folded"],
        "by_rollout_factored": 1.0,
        "by_rollout_full": cost["by_rollout_full"] / cost["folded"],
        "extraction_vs_serial": cost["rows"] / cost["naive"],  # a completion is short: alone it is factored
    }


progress = partial(print, file=sys.stderr, flush=True)


def measure(shapes: Shapes, device: str) -> dict[str, float]:
    figures = {"memory_vs_lora": memory_vs_lora(shapes, device)}
    figures["extraction_vs_serial"] = extraction_vs_serial(shapes, device)
    times = time_updates(shapes, device)
    blocks = MODULES / len(shapes.linears)  # the update of as many modules as are projected

    def ratio(over: str, under: str) -> float:
        return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))

    figures |= {
        "folded_vs_lora": ratio("folded", "lora"),
        "folded_vs_naive": ratio("folded", "naive"),
        "factored_vs_lora": ratio("factored", "lora"),
        "by_source": ratio("by_source", "folded"),
        "by_rollout_factored": ratio("by_rollout_factored", "factored"),
        "by_rollout_full": ratio("by_rollout_full", "folded"),
        "projection_share": projection_seconds(shapes) / (statistics.median(times["folded"]) * blocks / shapes.layers),
    }
    return {name: figures[name] for name in BARS}


def table(figures: dict[str, float], bars: dict[str, float], limit: dict[str, float]) -> str:
    lines = [f"{'':22}{'measured':>10}{'bar':>8}{'roofline':>10}"]
    for name, value in figures.items():
        bound = f"{limit[name]:10.3f}" if name in limit else ""
        lines.append(f"{name:22}{value:10.3f}{bars[name]:8.2f}{bound:>10}{'' if value <= bars[name] else '   OVER'}")
    return "\n".join(lines)


def arguments() -> tuple[Shapes, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes, under 50 s")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    for name in Shapes.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: as described above")
    parsed = parser.parse_args()
    shapes = QUICK if parsed.quick else QWEN3_4B if parsed.device == "cuda" else Shapes()
    given = {name: getattr(parsed, name) for name in Shapes.__dataclass_fields__}
    return replace(shapes, **{name: value for name, value in given.items() if value is not None}), parsed


def main() -> None:
    shapes, parsed = arguments()
    if parsed.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: this machine has no CUDA device, or PyTorch was built without CUDA")
    transformers_logging.set_verbosity_error()
    torch.set_num_threads(parsed.threads)
    print(f"{shapes} on {parsed.device}, {parsed.threads} CPU threads")
    factors.svd_basis = random_basis  # type: ignore[assignment]
    figures = measure(shapes, parsed.device)
    print(table(figures, GPU_BARS if parsed.device == "cuda" else BARS, limits(shapes)))
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
