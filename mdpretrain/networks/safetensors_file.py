"""Writing safetensors that others may read: the library makes a file that only its owner can, whatever the process's umask says."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Tensors, none of which share memory, to a file with the permissions of any new file; ``metadata`` beside ``{"format": "pt"}``.

    Raises:
        OSError: the file system refused (disk full, read-only).
    """
    try:
        save_file(dict(tensors), path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    like = path.with_name(f"{path.name}.mode")
    like.touch()
    path.chmod(like.stat().st_mode & 0o777)
    like.unlink()
