"""The manifest beside a checkpoint: the size and SHA-256 of each of its files, checked before anything in it is used.

``step_00000100.ckpt`` has ``step_00000100.manifest.json`` beside it, written just before the checkpoint gets its final name.
"""

from __future__ import annotations

import json
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_shards.checksum import sha256_of

FORMAT = 1
SUFFIX = ".manifest.json"
_THREADS = 8  # hashing leaves Python's lock, and one thread does 0.5 to 2 GB/s


class UnreadableError(ValueError):
    """The file system would not give a file's content, now; nothing is known of the content itself."""


def manifest_path(checkpoint: pathlib.Path) -> pathlib.Path:
    """Where the manifest of a checkpoint is."""
    return checkpoint.with_name(checkpoint.name.removesuffix(".ckpt") + SUFFIX)


def read_manifest(checkpoint: pathlib.Path) -> dict[str, Any] | None:
    """The manifest's content; None for a checkpoint that was written without one.

    Raises:
        UnreadableError: the file system does not give it.
        ValueError: it is no manifest.
    """
    path = manifest_path(checkpoint)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("files"), dict):
        raise ValueError(f"{path} is not a manifest of format {FORMAT}")
    return content


def files_of(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    """Every file of a checkpoint (itself, or what is in its folder), in a fixed order."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file()) if checkpoint.is_dir() else [checkpoint]


def hash_files(checkpoint: pathlib.Path, files: list[pathlib.Path]) -> dict[str, dict[str, Any]]:
    """``{name: {bytes, sha256}}`` of some files of a checkpoint; names are relative to its folder, ``.`` is the file itself."""
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = list(pool.map(sha256_of, files))
    return {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": digest} for path, digest in zip(files, hashes)
    }


def check(checkpoint: pathlib.Path) -> bool:
    """Compare a checkpoint with its manifest.

    Returns:
        True if every file is as it was written; False if it has no manifest to compare it with.

    Raises:
        UnreadableError: the file system does not give a file.
        ValueError: a file is missing, of another size or of other content, named.
    """
    manifest = read_manifest(checkpoint)
    if manifest is None:
        return False
    expected: dict[str, dict[str, Any]] = manifest["files"]
    paths = {name: checkpoint / name for name in expected}
    for name, path in paths.items():
        if not path.is_file():
            raise ValueError(f"{path} is missing")
        if (size := path.stat().st_size) != expected[name]["bytes"]:
            raise ValueError(f"{path} has {size} bytes; {expected[name]['bytes']} were written")
    try:
        found = hash_files(checkpoint, list(paths.values()))
    except OSError as error:
        raise UnreadableError(f"{checkpoint} cannot be read ({error})") from error
    for name, facts in found.items():
        if facts["sha256"] != expected[name]["sha256"]:
            raise ValueError(f"{paths[name]} is not what was written: its SHA-256 is another")
    return True
