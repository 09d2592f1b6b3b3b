"""How many bytes of weights, factors and their gradients are alive at the worst moment of some work on a CPU."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors alive at the worst moment, other than activations.

    The sequence length is prime: whatever has a multiple of it as its number of elements is an activation.
    """

    def __init__(self, resident: list[Tensor], mapped: list[Tensor], length: int) -> None:
        super().__init__()
        self.length, self.live, self.peak = length, 0, 0
        self._known = {id(tensor.untyped_storage()) for tensor in mapped}
        self._keep = [tensor.untyped_storage() for tensor in mapped]
        for tensor in resident:
            self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if id(storage) in self._known or size // tensor.element_size() % self.length == 0:
            return
        self._known.add(id(storage))
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, id(storage), size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and type(tensor) is not nn.Parameter:
                self._count(tensor)
        return result


def previous_prime(number: int) -> int:
    """The largest prime up to `number`."""
    return next(n for n in range(number, 1, -1) if all(n % d for d in range(2, int(n**0.5) + 1)))
