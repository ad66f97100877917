"""Making a checkpoint visible: flushed, renamed, named by ``latest``, and old ones removed (layout: ``networks/checkpoint_files``)."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import Any

from mdpretrain.networks.checkpoint_files import LATEST, PARTIAL_SUFFIX, whole_checkpoints
from mdpretrain.networks.checkpoint_manifest import FORMAT, SUFFIX, files_of, hash_files, manifest_path, read_manifest

DAMAGED_SUFFIX = ".damaged"


def publish(partial: pathlib.Path, files: dict[str, Any] | None = None, **facts: Any) -> pathlib.Path:
    """Flush a written ``.partial`` to disk, write its manifest, rename it to its final name, then let ``latest`` name it.

    Only the main rank calls this, after every rank has finished writing.

    Args:
        partial: The file or folder.
        files: ``hash_files`` of all its files, where they have been hashed already.
        facts: What else the manifest says.
    """
    final = partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))
    for path in [*sorted(partial.rglob("*")), partial]:
        _flush(path)
    remove(final)  # one of the same step from an earlier start; a kill here leaves the older ones
    manifest = {"format": FORMAT, **facts, "files": files or hash_files(partial, files_of(partial))}
    write_text(manifest_path(final), json.dumps(manifest, indent=1) + "\n")
    os.replace(partial, final)
    _flush(final.parent)
    write_text(final.parent / LATEST, final.name + "\n")
    return final


def write_text(path: pathlib.Path, text: str) -> None:
    """Replace a small text file in one step."""
    aside = path.with_name(path.name + PARTIAL_SUFFIX)
    aside.write_text(text)
    _flush(aside)
    os.replace(aside, path)
    _flush(path.parent)


def prune(folder: pathlib.Path, keep: int, best: str | None = None) -> None:
    """Remove all complete checkpoints but the newest ``keep``, the one called ``best``, and milestones."""
    for path in whole_checkpoints(folder)[:-keep]:
        if path.name != best and not is_milestone(path):
            remove(path)


def is_milestone(checkpoint: pathlib.Path) -> bool:
    """Whether it was written to be kept for ever; its manifest says so, whatever the recipe says by now."""
    try:
        manifest = read_manifest(checkpoint)
    except ValueError:
        return True  # nobody can say: leave it
    return manifest is not None and bool(manifest.get("milestone"))


def clear_partial(folder: pathlib.Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for path in folder.glob("*" + PARTIAL_SUFFIX):
        _delete(path)
    whole = {manifest_path(path).name for path in whole_checkpoints(folder)}
    for path in folder.glob("*" + SUFFIX):
        if path.name not in whole:
            _delete(path)


def set_aside(checkpoint: pathlib.Path) -> pathlib.Path:
    """Rename a damaged checkpoint so that nothing takes it for a whole one; returns where it is now."""
    aside = checkpoint.with_name(checkpoint.name + DAMAGED_SUFFIX)
    _delete(aside)
    os.replace(checkpoint, aside)
    _flush(aside.parent)
    return aside


def remove(path: pathlib.Path) -> None:
    """Delete a checkpoint if it is there: under another name first, so that a kill never leaves half a folder under this one."""
    if path.exists():
        aside = path.with_name(path.name + PARTIAL_SUFFIX)
        if aside.exists():  # being published under this very name: a second aside
            aside = path.with_name(path.name + ".old" + PARTIAL_SUFFIX)
            _delete(aside)
        os.replace(path, aside)
        _delete(aside)
    manifest_path(path).unlink(missing_ok=True)


def _delete(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
