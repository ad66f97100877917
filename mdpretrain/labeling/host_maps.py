"""What the network computed, on its way to the threads that write: copied while the device goes on with the next batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class HostMaps:
    """Tensors of one batch in the host's memory, by name, first axis the images; readable once ``event`` has happened."""

    tensors: dict[str, Tensor]
    event: torch.cuda.Event | None

    @classmethod
    def copy(cls, tensors: Mapping[str, Tensor]) -> HostMaps:
        """Start copying; nobody waits here. On a GPU into pinned memory, which torch keeps for the next batch."""
        if not any(tensor.is_cuda for tensor in tensors.values()):
            return cls(dict(tensors), None)
        copies = {}
        for name, tensor in tensors.items():
            copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies[name].copy_(tensor, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(next(tensor.device for tensor in tensors.values() if tensor.is_cuda)))
        return cls(copies, event)

    def image(self, index: int) -> dict[str, np.ndarray]:
        """What belongs to one image of the batch: waits for the copy. Memory of its own, since the pinned one is used again."""
        if self.event is not None:
            self.event.synchronize()
        return {name: np.array(tensor[index].numpy()) for name, tensor in self.tensors.items()}
