"""Making a checkpoint visible: flushed, renamed, named by ``latest``, and old ones removed (layout: ``networks/checkpoint_files``)."""

from __future__ import annotations

import os
import pathlib
import shutil

from mdpretrain.networks.checkpoint_files import LATEST, PARTIAL_SUFFIX, whole_checkpoints


def publish(partial: pathlib.Path) -> pathlib.Path:
    """Flush a written ``.partial`` to disk, rename it to its final name, then let ``latest`` name it.

    Only the main rank calls this, after every rank has finished writing.
    """
    final = partial.with_name(partial.name.removesuffix(PARTIAL_SUFFIX))
    for path in sorted(partial.rglob("*")) if partial.is_dir() else [partial]:
        _flush(path)
    if final.is_dir():
        shutil.rmtree(final)
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


def prune(folder: pathlib.Path, keep: int) -> None:
    """Remove all but the newest ``keep`` complete checkpoints."""
    for path in whole_checkpoints(folder)[:-keep]:
        remove(path)


def clear_partial(folder: pathlib.Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.glob("*" + PARTIAL_SUFFIX):
        remove(path)


def remove(path: pathlib.Path) -> None:
    """Delete a file or a folder if it is there."""
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
