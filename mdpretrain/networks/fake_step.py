"""A training step of any network without its memory or its arithmetic: FLOPs and live memory, counted on fake tensors.

The network is built on the meta device, and its operations run on tensors that have shapes, types and lifetimes but no numbers, so a
network of a billion parameters at 1536 x 1536 is counted on a laptop in seconds. FLOPs are those of matrix products, convolutions and
attention, two per multiply-add, as torch's own counter has them; what is not counted there (norms, activations, resizing) is
bandwidth and not arithmetic. Attention is the fused kind, whose score matrix never exists.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import mdpretrain.compat  # noqa: F401  (before timm)

# isort: split
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from mdpretrain.networks.blank_batch import blank_batch
from mdpretrain.networks.live_memory import LiveMemory
from mdpretrain.networks.module_config import build_module
from mdpretrain.structures import DepthBatch, DepthPrediction

Loss = Callable[[DepthPrediction, DepthBatch], Tensor]


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What one pass over ``images`` images takes beside weights, gradients and optimiser state.

    ``backward_flops`` holds what activation checkpointing computes again; ``peak_bytes`` are activations and temporaries, with
    ``weight_copy_bytes`` of weights in the type of the arithmetic among them.
    """

    images: int
    forward_flops: int
    backward_flops: int
    peak_bytes: int
    weight_copy_bytes: int


class FakeNetwork:
    """A network of fake tensors.

    Args:
        build: makes the network; called with the meta device as default, so it takes no memory.

    Raises:
        ValueError: the network cannot be built.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        with torch.device("meta"):
            self.network = build()
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.trainable = sum(parameter.numel() for parameter in self.network.parameters() if parameter.requires_grad)
        self.maps: tuple[str, ...] = tuple(getattr(self.network, "prepared_maps", None) or ())
        self.checkpointing = any(getattr(module, "grad_checkpointing", False) for module in self.network.modules())
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self._mode:
            self.network.to_empty(device="cpu")
            for parameter in self.network.parameters():
                if parameter.requires_grad:  # there before the step, as in the buckets of a distributed run
                    parameter.grad = torch.zeros_like(parameter)

    @classmethod
    def of_config(cls, config: dict[str, Any]) -> FakeNetwork:
        """The network that a module config describes."""
        return cls(lambda: build_module(config))

    def train_step(
        self, loss: Loss, images: int, height: int, width: int, precision: torch.dtype = torch.float32, checkpointing: bool | None = None
    ) -> StepCost:
        """Forward, loss and backward of one batch.

        Args:
            loss: prediction and batch -> scalar.
            images, height, width: the batch.
            precision: float32, or the type that autocast computes in.
            checkpointing: recompute the encoder's blocks in the backward pass; null: as the network was built.
        """
        set_checkpointing(self.network, self.checkpointing if checkpointing is None else checkpointing)
        self.network.train()
        with self._counting(images, height, width) as (batch, counter, memory):
            with _autocast(precision):
                value = loss(self.network(batch), batch)
            forward, copies = counter.flops, memory.weight_copy_bytes
            value.backward()
        return StepCost(images, forward, counter.flops - forward, memory.peak_bytes, copies)

    def inference(self, images: int, height: int, width: int, precision: torch.dtype = torch.float32) -> StepCost:
        """One forward pass without gradients, as a frozen prior takes it."""
        self.network.eval()
        with self._counting(images, height, width) as (batch, counter, memory), torch.no_grad(), _autocast(precision):
            self.network(batch)
            return StepCost(images, counter.flops, 0, memory.peak_bytes, memory.weight_copy_bytes)

    def prediction(self, images: int, height: int, width: int) -> DepthPrediction:
        """What one forward pass without gradients gives: its space and shapes, without numbers."""
        self.network.eval()
        with self._counting(images, height, width) as (batch, _, _), torch.no_grad():
            return self.network(batch)

    @contextlib.contextmanager
    def _counting(self, images: int, height: int, width: int) -> Iterator[tuple[DepthBatch, FlopCount, LiveMemory]]:
        with self._mode:
            batch = blank_batch(images, height, width, self.maps)
            gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
            memory = LiveMemory([*self.network.buffers(), *gradients, *_tensors(batch)], self.network.parameters())
            counter = FlopCount()
            with counter, memory:
                yield batch, counter, memory


class FlopCount(TorchDispatchMode):
    """Adds up the FLOPs of what runs inside it, by torch's own formulas.

    Not torch's ``FlopCounterMode``: its hooks on every module keep what they saw alive, and memory could not be counted beside it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        formula: Any = _ATTENTION_ON_CPU.get(packet) or flop_registry.get(packet)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


def set_checkpointing(network: nn.Module, enable: bool) -> None:
    """Switch activation checkpointing of every timm backbone inside ``network``."""
    for module in network.modules():
        switch: Any = getattr(module, "set_grad_checkpointing", None)
        if switch is not None:
            switch(enable)


def _tensors(record: Any) -> Iterator[Tensor]:
    """Every tensor of a dataclass, those of nested records included."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from _tensors(value)


def _autocast(precision: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# torch counts the GPU's fused attention, not the CPU's
_ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
