"""Released weights -> a checkpoint of this package: transformers' folders and the original repositories' files."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_shards.atomic import written_aside
from mdpretrain.export import names
from mdpretrain.export.description import PREPARATION, completed, network_config
from mdpretrain.networks.checkpoint_files import SAFETENSORS_RECORD, SAFETENSORS_SUFFIX
from mdpretrain.networks.safetensors_file import write_safetensors

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_MODELS = ("prompt_depth_anything", "depth_anything")


def import_weights(source: pathlib.Path, output: pathlib.Path, max_depth_m: float | None = None) -> pathlib.Path:
    """Write ``output``, a checkpoint of ``PromptDA`` with its preparation, which predicts, is evaluated and starts a training.

    Args:
        source: a folder that transformers saved (PromptDepthAnything, or a metric DepthAnything of version 2), or a file of the original
            repositories (.ckpt, .pth, .safetensors).
        output: a .safetensors file.
        max_depth_m: what the sigmoid spans in an image without prompt; null: the folder's own max_depth if it has a plausible one, else 20.

    Raises:
        ValueError: nothing there, an unreadable file, another network, one of relative depth, or an output of another name.
    """
    checked_output(output)
    if source.is_dir():
        own, known = _read_folder(source)
    elif source.is_file():
        own, known = names.from_original(read_tensors(source)), {}
    else:
        raise ValueError(f"{source} does not exist; give a folder of transformers or a checkpoint file of PromptDA or Depth Anything V2")
    if max_depth_m is not None:
        known["max_depth_m"] = max_depth_m
    try:
        config = network_config(own, **known)
    except KeyError as error:
        raise ValueError(f"{source} is not a PromptDA or Depth Anything V2 that this version knows: {error} is missing") from error
    return write_checkpoint(output, {"network": config, "preparation": PREPARATION}, completed(own, config, str(source)))


def checked_output(output: pathlib.Path) -> None:
    """Raise ValueError where the file to write is not named as a checkpoint that ``load_checkpoint`` reads."""
    if output.suffix != SAFETENSORS_SUFFIX:
        raise ValueError(f"{output}: the file's name must end in {SAFETENSORS_SUFFIX}")


def write_checkpoint(output: pathlib.Path, modules: dict[str, Any], weights: dict[str, Tensor]) -> pathlib.Path:
    """Write imported weights as a checkpoint that has seen no step of ours.

    Args:
        output: a .safetensors file.
        modules: module configs by name, "network" among them.
        weights: the network's state.
    """
    record = {"global_step": 0, **modules}
    tensors = {f"network.{name}": value.contiguous().clone() for name, value in weights.items()}
    with written_aside(output) as aside:
        write_safetensors(aside, tensors, {SAFETENSORS_RECORD: json.dumps(record)})
    return output


def _read_folder(folder: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(weights under our names, what its config.json says beyond them)."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a folder of transformers: it has no config.json")
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") not in _MODELS:
        raise ValueError(f"{folder}: a model of type {config.get('model_type')!r}; those of type {' and '.join(_MODELS)} can be imported")
    if config.get("depth_estimation_type", "relative") != "metric":  # transformers leaves the key out where it is "relative"
        raise ValueError(f"{folder} predicts relative depth (depth_estimation_type); import a metric one, as this network ends in metres")
    file = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} holds none of {' and '.join(_WEIGHT_FILES)}")
    known: dict[str, Any] = {}
    backbone = config.get("backbone_config") or {}
    if "num_attention_heads" in backbone:
        known["heads"] = int(backbone["num_attention_heads"])
    if backbone.get("out_indices"):
        known["layers"] = [int(index) - 1 for index in backbone["out_indices"]]
    if (config.get("max_depth") or 1) > 1:
        known["max_depth_m"] = float(config["max_depth"])
    return names.from_transformers(read_tensors(file)), known


def read_tensors(file: pathlib.Path) -> dict[str, Tensor]:
    """The state dictionary of a file, wherever it lies in it.

    Raises:
        ValueError: an unreadable file.
    """
    content = read_content(file)
    return {name: value for name, value in content.get("state_dict", content).items() if isinstance(value, Tensor)}


def read_content(file: pathlib.Path) -> dict[str, Any]:
    """What a file holds; torch's restricted unpickler, so a stranger's file runs no code.

    Raises:
        ValueError: an unreadable file.
    """
    content: Any
    try:
        content = load_file(file) if file.suffix == SAFETENSORS_SUFFIX else torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read ({error})") from error
    except Exception as error:  # torch raises many types here, all meaning: this file is no good
        raise ValueError(f"{file} cannot be read as plain tensors ({type(error).__name__}); is it whole?") from error
    return content if isinstance(content, dict) else {}
