"""A finished network as a folder that anyone can be given: ``config.json`` and ``model.safetensors``, no pickle, no code.

``config.json`` has one key that this package reads, ``mdpretrain``:

    format       1
    modules      {"network": module config, "preparation": ..., "prior": ...}: how to build what the weights belong to
    weights      {"bytes", "sha256"} of model.safetensors, compared on reading
    global_step  of the training run
    facts        what the writer knows besides (depth space, units, needs, dtype, fingerprint, licence): for people and other programs

The weights are named as in a checkpoint (``network.encoder...``), so what is read here has a loaded checkpoint's form. The folder may lie
anywhere, also as the hub's cache keeps it (``models--ORG--NAME/snapshots/REVISION``, chosen by ``refs/main``). Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_shards.atomic import sync_folder, written_aside
from data_shards.checksum import sha256_of
from mdpretrain.networks.safetensors_file import write_safetensors

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
KEY = "mdpretrain"
FORMAT = 1
MODULES = ("network", "preparation", "prior")


def is_pretrained_folder(path: str | pathlib.Path) -> bool:
    """Whether ``path`` is a folder that ``write_pretrained`` wrote, or the hub's cache of one.

    Raises:
        ValueError: it has a config.json that is no JSON.
    """
    folder = snapshot(pathlib.Path(path))
    return (folder / CONFIG_FILE).is_file() and KEY in _read_config(folder)


def read_pretrained(path: str | pathlib.Path) -> dict[str, Any]:
    """The folder in the form of a loaded checkpoint: module configs by name, ``state_dict``, ``global_step``, and ``facts``.

    Raises:
        ValueError: not such a folder, one of a later format, or weights that are missing, damaged or not those it was written with.
    """
    folder = snapshot(pathlib.Path(path))
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"{folder} is not a pretrained folder: it has no {CONFIG_FILE}")
    config = _read_config(folder).get(KEY)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG_FILE} has no key {KEY!r}: this folder was not written by mdpretrain export")
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {config.get('format')!r} and this version reads {FORMAT}; use the mdpretrain that wrote it")
    modules, written = config.get("modules"), config.get("weights")
    if not isinstance(modules, dict) or not isinstance(modules.get("network"), dict) or not isinstance(written, dict):
        raise ValueError(f"{folder / CONFIG_FILE} does not say how its network is built; use the file as it was written")
    state = _read_weights(folder / WEIGHTS_FILE, written)
    known = {name: modules[name] for name in MODULES if modules.get(name) is not None}
    return {**known, "state_dict": state, "global_step": config.get("global_step", 0), "facts": config.get("facts", {})}


def write_pretrained(
    folder: pathlib.Path, content: Mapping[str, Any], facts: Mapping[str, Any] | None = None, card: str | None = None
) -> pathlib.Path:
    """Write a folder that is whole as soon as it has its name.

    Args:
        folder: where; it must not exist.
        content: a checkpoint's: module configs under their names (``MODULES``), ``state_dict``, ``global_step``. Weights of other modules
            (a loss's own) stay behind.
        facts: plain values for ``config.json``.
        card: text of README.md, if one is wanted.

    Raises:
        ValueError: the folder exists already.
    """
    folder = pathlib.Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; name a new folder")
    with written_aside(folder) as aside:
        aside.mkdir()
        modules = {name: content[name] for name in MODULES if content.get(name) is not None}
        kept = tuple(f"{name}." for name in modules)
        weights = {key: value for key, value in content["state_dict"].items() if key.startswith(kept)}
        # clones, because safetensors refuses tensors that share memory
        write_safetensors(aside / WEIGHTS_FILE, {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()})
        config = {
            "architectures": [modules["network"]["class_path"].rsplit(".", 1)[-1]],  # what listings of models show
            KEY: {
                "format": FORMAT,
                "modules": modules,
                "weights": {"bytes": (aside / WEIGHTS_FILE).stat().st_size, "sha256": sha256_of(aside / WEIGHTS_FILE)},
                "global_step": int(content.get("global_step", 0)),
                "facts": dict(facts or {}),
            },
        }
        (aside / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        if card is not None:
            (aside / "README.md").write_text(card)
        for file in aside.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_folder(folder.parent)
    return folder


def find_pretrained(
    name_or_folder: str | os.PathLike[str], cache: str | os.PathLike[str] | None = None, revision: str = "main"
) -> pathlib.Path:
    """The folder itself, or what the hub's cache on this machine holds under a name ``ORG/NAME``.

    Args:
        name_or_folder: a folder with config.json, a folder ``models--ORG--NAME`` of the cache, or a name.
        cache: the cache; null: ``HF_HUB_CACHE``, ``HF_HOME/hub`` or ``~/.cache/huggingface/hub``, the hub's own order.
        revision: a branch, tag or commit, of those that were downloaded.

    Raises:
        ValueError: nothing there.
    """
    path = pathlib.Path(name_or_folder)
    if not path.is_dir() and not path.is_absolute() and len(path.parts) == 2:
        path = _cache_folder(cache) / "--".join(("models", *path.parts))
    found = snapshot(path, revision)
    if not (found / CONFIG_FILE).is_file():
        raise ValueError(
            f"{os.fspath(name_or_folder)} is neither a pretrained folder nor in the hub's cache with revision {revision!r} (looked in "
            f"{found}); nothing is downloaded here: name a folder, or fetch it first with `hf download {os.fspath(name_or_folder)}`"
        )
    return found


def snapshot(path: pathlib.Path, revision: str = "main") -> pathlib.Path:
    """Of a folder ``models--ORG--NAME`` of the hub's cache, the folder that holds one revision; any other path is returned as it is."""
    if not (path / "snapshots").is_dir() or (path / CONFIG_FILE).exists():
        return path
    reference = path / "refs" / revision
    return path / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)


def _cache_folder(cache: str | os.PathLike[str] | None) -> pathlib.Path:
    if cache is not None:
        return pathlib.Path(cache)
    if named := os.environ.get("HF_HUB_CACHE"):
        return pathlib.Path(named)
    home = os.environ.get("HF_HOME")
    return (pathlib.Path(home) if home else pathlib.Path.home() / ".cache" / "huggingface") / "hub"


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / CONFIG_FILE).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG_FILE} is not JSON ({error}); is it whole?") from error
    return content if isinstance(content, dict) else {}


def _read_weights(file: pathlib.Path, written: Mapping[str, Any]) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file} is missing")
    if (size := file.stat().st_size) != written.get("bytes"):
        raise ValueError(f"{file} is damaged: it has {size} bytes and {written.get('bytes')} were written; fetch it again")
    if sha256_of(file) != written.get("sha256"):
        raise ValueError(f"{file} is damaged: its SHA-256 is not the one in {CONFIG_FILE}; fetch it again")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a safetensors file ({error})") from error
