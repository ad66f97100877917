"""A checkpoint folder of DeepSpeed's ZeRO-1, 2 or 3, read parameter by parameter, on any number of processes (none included).

ZeRO lays the trainable parameters of an optimiser group end to end and cuts the row into one piece per process (stages 1 and 2,
where the files say which part of which piece is whose), or cuts every parameter into equal pieces, the last one padded (stage 3).
The files are mapped, not read: assembling one parameter touches its own bytes only.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mdpretrain.engine.deepspeed_strategy import make_importable
from mdpretrain.engine.training_state import OptimizerGroup, StateValue, TrainingState

# What DeepSpeed adds to the dictionary that Lightning hands it.
_DEEPSPEED_KEYS = {
    "module",
    "buffer_names",
    "optimizer",
    "param_shapes",
    "frozen_param_shapes",
    "shared_params",
    "frozen_param_fragments",
    "lr_scheduler",
    "data_sampler",
    "random_ltd",
    "skipped_steps",
    "global_steps",
    "global_samples",
    "dp_world_size",
    "mp_world_size",
    "ds_config",
    "ds_version",
    "checkpoint_parallel_dims",
    "universal_checkpoint_info",
}


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a trainable parameter is: in ``pieces`` (process, start, elements) of every process's flat vector ``vector``."""

    vector: int
    shape: torch.Size
    pieces: list[tuple[int, int, int]]


class DeepSpeedFolder(TrainingState):
    """``TrainingState`` of a folder that ``DeepSpeedStrategy`` wrote.

    Args:
        folder: The checkpoint, which holds DeepSpeed's folder ``checkpoint``.

    Raises:
        ValueError: files are missing or cannot be read, with the folder.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._models = [_load(path) for path in _of_ranks(folder, "model_states.pt")]
        self._shards = [_load(path)["optimizer_state_dict"] for path in _of_ranks(folder, "optim_states.pt")]
        counts = self._shards[0]["partition_count"]
        self.processes = max(counts) if isinstance(counts, list) else int(counts)
        if self.processes != len(self._shards):
            raise ValueError(f"{folder}: {self.processes} processes wrote it, and it holds the optimiser states of {len(self._shards)}")
        stage = self._shards[0]["zero_stage"]
        self.stage = int(getattr(stage, "value", stage))
        self._places = dict(self._parameter_places())

    @property
    def client(self) -> dict[str, Any]:
        """What Lightning and the callbacks wrote, as the main process wrote it."""
        return {name: value for name, value in self._models[0].items() if name not in _DEEPSPEED_KEYS}

    def weight_names(self) -> list[str]:
        """Every trainable or frozen parameter and every stored buffer."""
        names = list(self._models[0]["module"]) if self.stage < 3 else list(self._models[0]["buffer_names"])
        known = dict.fromkeys([*names, *self._frozen_shapes(), *self._places, *self._aliases])
        return [name for name in known if name in self._places or self._is_stored(name)]

    def weight(self, name: str) -> Tensor:
        """One parameter or buffer in full; float32 of what is trained, the stored type of the rest."""
        name = self._aliases.get(name, name)
        if name in self._places:
            place = self._places[name]
            return self._join(place, [self._flat_weights(shard)[place.vector] for shard in self._shards])
        frozen = self._frozen_shapes()
        if self.stage == 3 and name in frozen:
            shape = torch.Size(frozen[name])
            pieces = [model["frozen_param_fragments"][name].reshape(-1) for model in self._models]
            return torch.cat(pieces)[: shape.numel()].reshape(shape)
        value = self._models[0]["module"][name]
        return value.clone()

    def optimizer_state(self, name: str) -> dict[str, StateValue]:
        """Moments in full and counters; empty for a parameter that no step has touched."""
        place = self._places[name]
        states = [self._vector_state(shard, place.vector) for shard in self._shards]
        result: dict[str, StateValue] = {}
        for key, value in states[0].items():
            if isinstance(value, Tensor) and value.dim() == 1:
                result[key] = self._join(place, [state[key] for state in states])
            else:
                result[key] = value.clone() if isinstance(value, Tensor) else value
        return result

    def optimizer_groups(self) -> list[OptimizerGroup]:
        """Hyper-parameters of the optimiser's groups and whose they are."""
        groups, vector = [], 0
        for record in self._base(self._shards[0])["param_groups"]:
            vectors = range(vector, vector := vector + len(record["params"]))
            names = [name for name, place in self._places.items() if place.vector in vectors]
            groups.append(OptimizerGroup(names, {key: value for key, value in record.items() if key != "params"}))
        return groups

    def _parameter_places(self) -> Iterator[tuple[str, _Place]]:
        for vector, shapes in enumerate(self._models[0]["param_shapes"]):
            offset = 0
            for name, shape in shapes.items():
                size = torch.Size(shape)
                if self.stage == 3:
                    length = math.ceil(size.numel() / self.processes)
                    yield name, _Place(vector, size, [(rank, offset, length) for rank in range(self.processes)])
                    offset += length
                else:
                    slices = ((rank, shard["param_slice_mappings"][vector].get(name)) for rank, shard in enumerate(self._shards))
                    yield name, _Place(vector, size, [(rank, part.start, part.numel) for rank, part in slices if part is not None])

    def _join(self, place: _Place, vectors: list[Tensor]) -> Tensor:
        pieces = [vectors[rank][start : start + length] for rank, start, length in place.pieces]
        return torch.cat(pieces)[: place.shape.numel()].reshape(place.shape)

    def _flat_weights(self, shard: dict[str, Any]) -> list[Tensor]:
        return shard["fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"]

    def _base(self, shard: dict[str, Any]) -> dict[str, Any]:
        return shard["optimizer_state_dict" if self.stage == 3 else "base_optimizer_state"]

    def _vector_state(self, shard: dict[str, Any], vector: int) -> dict[str, Any]:
        base = self._base(shard)
        indices = [index for group in base["param_groups"] for index in group["params"]]
        return base["state"].get(indices[vector], {})

    def _frozen_shapes(self) -> dict[str, Any]:
        return self._models[0]["frozen_param_shapes"] or {}

    @functools.cached_property
    def _aliases(self) -> dict[str, str]:
        """Names of a parameter that is in the module twice -> the name it is stored under."""
        shared = self._models[0]["shared_params"] or {}
        return {alias: name for alias, name in dict(shared).items() if alias not in self._places}

    def _is_stored(self, name: str) -> bool:
        target = self._aliases.get(name, name)
        return target in self._places or target in self._models[0]["module"] or target in self._frozen_shapes()


def _of_ranks(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    """The files of all processes, in the order of their ranks."""
    found = (folder / "checkpoint").glob("*" + ending)
    files = sorted(found, key=lambda path: [int(digits) for digits in re.findall(r"\d+", path.name.removeprefix("bf16_"))])
    if not files:
        raise ValueError(f"{folder}: DeepSpeed's files *{ending} are missing from its folder 'checkpoint'")
    return files


def _load(path: pathlib.Path) -> dict[str, Any]:
    """One of DeepSpeed's files, mapped, by torch's restricted unpickler, which is told of the three plain classes in them."""
    make_importable(torch.cuda.is_available())
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many types here, all meaning: this file is no good
        raise ValueError(f"{path} cannot be read as a file of DeepSpeed's ({type(error).__name__}: {error}); is it whole?") from error
