"""How much memory the tensors that operations make take, now and at most: of real tensors, or of fake ones that take none."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts storages from the operation that makes them until nothing holds them; memory inside one operation is not seen.

    Args:
        held: tensors that exist already (inputs, gradients, buffers), which are not counted.
        weights: more of them.

    Attributes:
        live_bytes, peak_bytes: now, and the most so far.
        weight_copy_bytes: of weights converted to another type, as autocast does it.
    """

    def __init__(self, held: Iterable[Tensor], weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._weights = frozenset(tensor.untyped_storage()._cdata for tensor in weights)
        self._known = {*self._weights, *(tensor.untyped_storage()._cdata for tensor in held)}
        self.live_bytes = self.peak_bytes = self.weight_copy_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation and look at what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        if func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._weights:
            self.weight_copy_bytes += result.untyped_storage().nbytes()
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.live_bytes -= size
