"""Finding and reading checkpoints: the layout of ``RUN/checkpoints/`` and which of its checkpoints are whole.

``step_00000100.ckpt`` (a file, or DeepSpeed's folder) appears by a rename when everything in it is on disk;
``step_00000100.manifest.json`` beside it has its sizes and hashes; ``step_00000100.ckpt.partial`` is being written, or was when its
process died; ``step_00000100.ckpt.damaged`` was found to differ from its manifest. ``latest`` and ``best`` are one-line text files
naming a whole checkpoint, for people, scripts and ``find_checkpoint``. Nothing ever reads a ``.partial`` or a ``.damaged``.
"""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mdpretrain.networks.checkpoint_manifest import check

FOLDER = "checkpoints"
LATEST = "latest"
BEST = "best"
SAFETENSORS_SUFFIX = ".safetensors"
SAFETENSORS_RECORD = "mdpretrain"  # key of its metadata: JSON with how to build the modules
PARTIAL_SUFFIX = ".partial"
EMA_KEY = "ema"  # in a checkpoint: parameter name -> averaged float32 tensor
_NAME = re.compile(r"step_(\d{8,})\.ckpt")


def checkpoint_name(step: int) -> str:
    """``step_00000100.ckpt``."""
    return f"step_{step:08d}.ckpt"


def whole_checkpoints(folder: pathlib.Path) -> list[pathlib.Path]:
    """The complete checkpoints of a folder, oldest step first; empty if there is no such folder."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def newest_checkpoint(run: pathlib.Path) -> pathlib.Path | None:
    """The newest complete checkpoint of a run folder (or of a checkpoints folder); None if there is none yet."""
    checkpoints = whole_checkpoints(run / FOLDER) or whole_checkpoints(run)
    return checkpoints[-1] if checkpoints else None


def is_deepspeed_folder(path: pathlib.Path) -> bool:
    """Whether ``path`` is one checkpoint as DeepSpeed writes it."""
    return (path / "checkpoint").is_dir()


def find_checkpoint(path: pathlib.Path) -> pathlib.Path:
    """A checkpoint itself, the one that a file ``latest`` or ``best`` names, or the newest whole one of a run folder.

    Raises:
        ValueError: nothing there.
    """
    if path.name in (LATEST, BEST) and path.is_file():
        path = path.parent / path.read_text().strip()
    if path.is_file() or is_deepspeed_folder(path):
        return path
    found = newest_checkpoint(path) if path.is_dir() else None
    if found is None:
        what = "holds no finished checkpoint" if path.is_dir() else "does not exist"
        raise ValueError(f"checkpoint {path} {what}")
    return found


def load_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    """The content of a checkpoint (or of a run's newest), compared with its manifest, on the CPU, by torch's restricted unpickler.

    Raises:
        ValueError: nothing there, a DeepSpeed folder, not a torch file, damaged, or holding more than tensors and plain values.
    """
    source = find_checkpoint(path)
    if source.is_dir():
        raise ValueError(f"{source} is a DeepSpeed folder: run `mdpretrain consolidate {source} --output FILE.safetensors` and name that")
    try:
        check(source)
    except ValueError as error:
        raise ValueError(f"checkpoint {source} is damaged: {error}; name an older one of its folder") from error
    if source.suffix == SAFETENSORS_SUFFIX:
        return _load_safetensors(source)
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here (pickle, zip, runtime), all meaning: this file is no good
        raise ValueError(f"{source} cannot be read as a checkpoint ({type(error).__name__}); is it whole?") from error
    if not isinstance(content, dict) or "network" not in content or "state_dict" not in content:
        raise ValueError(f"{source} is not a checkpoint of mdpretrain: it does not say how its network is built")
    return content


def _load_safetensors(path: pathlib.Path) -> dict[str, Any]:
    """What ``mdpretrain consolidate`` wrote, in the form of a checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            record = (file.metadata() or {}).get(SAFETENSORS_RECORD)
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dictionary)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file ({error}); is it whole?") from error
    if record is None:
        raise ValueError(f"{path} holds weights but does not say how their network is built; only files of mdpretrain consolidate do")
    return {**json.loads(record), "state_dict": weights}


def with_averaged_weights(content: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """The checkpoint with its exponential moving average in place of the trained weights; buffers and frozen weights stay.

    Raises:
        ValueError: it holds no average.
    """
    if not content.get(EMA_KEY):
        raise ValueError(f"{path} holds no averaged weights: train with ema_decay, or take the trained ones")
    return {**content, "state_dict": {**content["state_dict"], **content[EMA_KEY]}}


def module_weights(content: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """The weights of one stored module, without its prefix."""
    prefix = name + "."
    return {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}
