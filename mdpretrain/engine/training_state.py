"""What a checkpoint says of weights and optimiser, by parameter name and free of how it was sharded: the form everything converts through.

    Lightning's file (one process, DDP) ─┐                        ┌─> a torch optimiser (one process, DDP)
                                          ├─> TrainingState, by name ─┤
    DeepSpeed's folder (ZeRO-1, 2, 3) ───┘                        └─> this process's part of a ZeRO-1, 2 or 3 engine

A state gives one parameter at a time from mapped files, so that converting needs the memory of the largest parameter and not of
the model. What callbacks and data keep (an average of the weights by name, the position in the data) is in ``client`` as it was written.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import pathlib
from typing import Any

import torch
from torch import Tensor

PARAMETER_NAMES = "optimizer_parameters"  # key of a file: names of the optimiser's parameters, group by group

StateValue = Tensor | float | int | None


@dataclasses.dataclass(frozen=True)
class OptimizerGroup:
    """Parameters that share hyper-parameters (``lr``, ``weight_decay``, ``name`` ...)."""

    names: list[str]
    options: dict[str, Any]


class TrainingState(abc.ABC):
    """The sharding-free content of a checkpoint."""

    @property
    @abc.abstractmethod
    def client(self) -> dict[str, Any]:
        """Everything but weights and optimiser: loops, schedulers, callbacks, data, recipe."""

    @abc.abstractmethod
    def weight_names(self) -> list[str]:
        """Every parameter and stored buffer."""

    @abc.abstractmethod
    def weight(self, name: str) -> Tensor:
        """One of them in full, on the CPU."""

    @abc.abstractmethod
    def optimizer_state(self, name: str) -> dict[str, StateValue]:
        """The optimiser's moments and counters of one parameter."""

    @abc.abstractmethod
    def optimizer_groups(self) -> list[OptimizerGroup]:
        """The optimiser's groups."""


class LightningFile(TrainingState):
    """``TrainingState`` of a file that a single process or DDP wrote.

    Args:
        path: The file.
        content: What torch read from it, mapped.
    """

    def __init__(self, path: pathlib.Path, content: dict[str, Any]) -> None:
        self._path = path
        self._weights: dict[str, Tensor] = content["state_dict"]
        self._optimizers: list[dict[str, Any]] = content.get("optimizer_states", [])
        self._names: list[list[str]] | None = content.get(PARAMETER_NAMES)
        self._client = {name: value for name, value in content.items() if name not in ("state_dict", "optimizer_states")}

    @property
    def client(self) -> dict[str, Any]:
        """Everything but weights and optimiser."""
        return self._client

    def weight_names(self) -> list[str]:
        """The keys of the state dict."""
        return list(self._weights)

    def weight(self, name: str) -> Tensor:
        """A copy of one of them."""
        return self._weights[name].clone()

    def optimizer_state(self, name: str) -> dict[str, StateValue]:
        """A copy of the moments and counters of one parameter."""
        state = self._optimizers[0]["state"].get(self._index[name], {})
        return {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}

    def optimizer_groups(self) -> list[OptimizerGroup]:
        """The optimiser's groups.

        Raises:
            ValueError: the file does not say whose its moments are, or does not hold exactly one optimiser.
        """
        if len(self._optimizers) != 1 or self._names is None:
            raise ValueError(f"{self._path} does not name the parameters of one optimiser: it resumes with the strategy that wrote it only")
        records = self._optimizers[0]["param_groups"]
        options = ({key: value for key, value in record.items() if key != "params"} for record in records)
        return [OptimizerGroup(list(names), values) for names, values in zip(self._names, options)]

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        groups = zip(self._optimizers[0]["param_groups"], self._names or [])
        return {name: index for group, names in groups for index, name in zip(group["params"], names)}


def read_mapped(path: pathlib.Path) -> dict[str, Any]:
    """A checkpoint file, mapped, by torch's restricted unpickler.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types here (pickle, zip, runtime), all meaning: this file is no good
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}); is it whole?") from error


def detached(value: Any) -> Any:
    """A copy whose tensors no longer lie in a mapped file, which may be removed while the run goes on."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: detached(item) for key, item in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(detached(item) for item in value)
    return value
