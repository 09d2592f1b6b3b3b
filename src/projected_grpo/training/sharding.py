"""The frozen base dealt over processes by rows, under deltas that each of them holds whole (FSDP2, arXiv:2304.11277).

A block's matrices are gathered for its forward and its backward pass and let go again. What is gathered is W' itself:
each process folds the rows that it holds, once per optimizer step (`layer.SpectralLayer.settle`). U and Vh stay where
the factors live, in the host's memory or on its disk, and visit one matrix at a time, so that no process ever holds
more of the base than its share, the embeddings and one or two blocks.

The deltas are left out. They are a ten-thousandth of the base, all ranks need them whole, and DistributedDataParallel
averages their gradients as it does where nothing is sharded; so whatever acts on gradients and updates need not know.
"""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from projected_grpo.directions.concept import blocks
from projected_grpo.spectral import SpectralLayer, spectral_layers


def shard(policy: PeftModel, processes: int) -> None:
    """Deal the base of `policy` over the processes of the open group, in place; adapters may be added afterwards.

    Every process calls it with the same whole model on its device, so each device must bear the base once, at the
    start. From then on all of them go through the same forward passes, as each gathers from all. Rank 0 alone may read
    `state_dict` right after a backward pass, which leaves everything dealt; a pass without gradients leaves the
    embeddings gathered.

    Raises:
        ValueError: the factors live on the device, where U, Vh and W' would stay whole; or a layer that is adapted
            lies in no block, and so would stay gathered between passes.
    """
    base = policy.get_base_model()
    layers, stack = spectral_layers(policy), blocks(base)
    if any(not layer.in_place for layer in layers.values()):
        raise ValueError("a base is sharded only with factors_device='cpu' or 'disk': on the device they stay whole")
    within = set(stack.modules())
    if outside := [name for name, layer in layers.items() if layer not in within]:
        raise ValueError(f"a base is sharded by its blocks, and {outside} lie in none: leave them out")
    deltas = {delta for layer in layers.values() for delta in layer.spectral_delta.values()}
    mesh = init_device_mesh(next(base.parameters()).device.type, (processes,))
    for layer in layers.values():
        layer.restore()  # what it may have set aside is a whole W
    for module in (*stack, base):
        fully_shard(module, mesh=mesh, ignored_params=deltas & set(module.parameters()))
    base.register_forward_pre_hook(_settle, prepend=True)  # before the hooks that gather
    base._is_fsdp_managed_module = True  # `generate` goes on until the last process has sampled its last token
    frozen = [name for name, parameter in policy.named_parameters() if parameter not in deltas]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(policy, frozen)


def data_parallel(policy: nn.Module) -> DistributedDataParallel:
    """Averages the deltas' gradients. Put around a sharded model by hand: on GPUs accelerate refuses one that has
    sharded parameters, as it does not ask whether they are among those to ignore."""
    device = next(policy.parameters()).device
    return DistributedDataParallel(policy, device_ids=[device.index] if device.type == "cuda" else None)


def _settle(base: nn.Module, _: Any) -> None:
    for module in base.modules():
        if isinstance(module, SpectralLayer):
            module.settle()
