"""Writing torch's own files so that a file system's refusal is told apart from torch's own errors."""

from __future__ import annotations

import pathlib
from typing import Any

import torch


def write_torch_file(path: pathlib.Path, content: Any) -> None:
    """``torch.save``; straight to the file, never put together in memory first.

    Raises:
        OSError: the file system refused (disk full, read-only), with ``path`` as its file name. torch writes by itself where it is
            given a path, and then says only that a position in the file is not what it expected.
    """
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except (RuntimeError, OSError) as error:
        refusal = error if isinstance(error, OSError) else error.__context__
        if not isinstance(refusal, OSError):
            raise
        raise OSError(refusal.errno, refusal.strerror, str(path)) from error
