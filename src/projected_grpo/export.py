"""A trained spectral adapter as a stock LoRA: the same model for plain PEFT and for inference servers.

    W' - W = U diag(delta) Vh = B A        A = Vh_m (m, d_in), B = U_m diag(delta_m) (d_out, m), lora_alpha = r

Only directions with delta != 0 are written. One rank serves all modules, the largest that one of them needs, and the
others are filled up with zeros: servers read one rank. U and Vh are orthonormal, so what a truncation loses is known:
the share of the sum of delta^2 that it leaves out, which is the squared Frobenius norm of the change of W.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from projected_grpo.errors import LabError
from projected_grpo.spectral.config import SpectralConfig
from projected_grpo.spectral.names import deltas, spectral_layers
from projected_grpo.storage import atomic_directory


@dataclass(frozen=True)
class Export:
    """rank: of the LoRA. modules: how many it covers. directions: kept of `trained`, those with delta != 0.

    lost: norm of what was left out of the change of all weights, as a share of that change; 0 without truncation.
    worst: the module that lost most, and its share.
    """

    rank: int
    modules: int
    directions: int
    trained: int
    lost: float
    worst: tuple[str, float]


def kept_directions(delta: Tensor, energy: float | None) -> Tensor:
    """Indices (m,), ascending, of the entries != 0; with `energy` the fewest whose squares sum to that share."""
    indices = delta.nonzero().squeeze(1)
    if energy is None or not len(indices):
        return indices
    squares, order = delta[indices].double().square().sort(descending=True)
    enough = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
    return indices[order[: int(enough.double().argmax()) + 1]].sort().values


def lora_factors(U: Tensor, Vh: Tensor, delta: Tensor, rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, d_in) and B (d_out, rank), zero beyond len(rows)."""
    A, B = Vh.new_zeros(rank, Vh.shape[1]), U.new_zeros(U.shape[0], rank)
    A[: len(rows)] = Vh[rows]
    B[:, : len(rows)] = U[:, rows] * delta[rows]
    return A, B


def export_lora(adapter: Path, out: Path, base: str | None = None, energy: float | None = None) -> Export:
    """Write the adapter in folder `adapter` to the new folder `out` as a LoRA in float32.

    Args:
        base: folder or name of the base model; None: the one that the adapter's settings name.
        energy: keep the fewest directions per module that hold this share of its delta^2, in (0, 1]; None: all.

    Raises:
        LabError: `out` exists, `adapter` is not a spectral adapter, `energy` is out of range, nothing was trained.
    """
    config = _checked_config(adapter, out, energy)
    source = base or config.base_model_name_or_path
    if not source:
        raise LabError(setting="--base", value=base, rule="the adapter names no base model", fix="pass --base FOLDER")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source, dtype="auto"), adapter)
    layers, vectors = spectral_layers(model), {name: delta.detach() for name, delta in deltas(model).items()}
    rows = {name: kept_directions(delta, energy) for name, delta in vectors.items()}
    rank = max(len(kept) for kept in rows.values())
    if rank == 0:
        raise LabError(
            setting=str(adapter), value="every delta is 0", rule="an export needs a trained adapter", fix="train it"
        )
    tensors = {}
    for name in vectors:
        A, B = lora_factors(layers[name].U, layers[name].Vh, vectors[name], rows[name], rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = A.float().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = B.float().contiguous()
    lora = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        task_type=config.task_type,
        base_model_name_or_path=source,
        inference_mode=True,
    )
    with atomic_directory(out) as folder:
        lora.save_pretrained(folder)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return _summary(vectors, rows, rank)


def _checked_config(adapter: Path, out: Path, energy: float | None) -> SpectralConfig:
    if out.exists():
        raise LabError(setting="OUT", value=str(out), rule="must be a new folder", fix="move it away first")
    if energy is not None and not 0 < energy <= 1:
        raise LabError(setting="--energy", value=energy, rule="a share above 0, at most 1", fix="0.999, for example")
    if not (adapter / "adapter_config.json").is_file():
        raise LabError(
            setting="ADAPTER_DIR",
            value=str(adapter),
            rule="must hold adapter_config.json",
            fix="name the folder of an adapter, such as data/runs/vanilla/1/adapter",
        )
    config = PeftConfig.from_pretrained(adapter)
    if not isinstance(config, SpectralConfig):
        raise LabError(
            setting="ADAPTER_DIR",
            value=str(config.peft_type),
            rule="must be a spectral adapter",
            fix="any other method needs no export",
        )
    return config


def _summary(vectors: dict[str, Tensor], rows: dict[str, Tensor], rank: int) -> Export:
    total = {name: float(delta.double().square().sum()) for name, delta in vectors.items()}
    kept = {name: float(delta[rows[name]].double().square().sum()) for name, delta in vectors.items()}
    shares = {name: max(0.0, 1 - kept[name] / total[name]) ** 0.5 for name in vectors if total[name] > 0}
    worst = max(shares, key=lambda name: shares[name])
    return Export(
        rank=rank,
        modules=len(vectors),
        directions=sum(len(chosen) for chosen in rows.values()),
        trained=sum(int((delta != 0).sum()) for delta in vectors.values()),
        lost=max(0.0, 1 - sum(kept.values()) / sum(total.values())) ** 0.5,
        worst=(worst, shares[worst]),
    )
