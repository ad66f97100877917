"""Numbers that a raw source keeps in numpy, HDF5 or text files, read strictly: what is unreadable becomes a reason, never pixels."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_files import read_bytes


def read_npz(path: Path) -> np.ndarray:
    """The only array of a ``.npz`` archive; RejectedSample if it is missing, truncated, or holds none or several."""
    data = read_bytes(path)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile) or len(archive.files) != 1:
                raise ValueError("one array was expected")
            return archive[archive.files[0]]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError) as error:
        raise RejectedSample(f"{path}: not a readable npz archive of one array ({error}); fetch it again") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of a ``.npy`` file; RejectedSample if it is missing, truncated or not an array of numbers."""
    try:
        array = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, RejectedSample):
            raise
        raise RejectedSample(f"{path}: not a readable npy array ({error}); fetch it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise RejectedSample(f"{path}: holds no array of numbers; fetch it again")
    return array


def read_matrix(path: Path, rows: int, columns: int) -> np.ndarray:
    """A text file of ``rows`` x ``columns`` numbers separated by blanks or commas, float64; RejectedSample otherwise."""
    text = read_bytes(path).decode("ascii", "replace").replace(",", " ")
    try:
        return np.array(text.split(), np.float64).reshape(rows, columns)
    except ValueError as error:
        raise RejectedSample(f"{path}: not a {rows}x{columns} matrix ({error}); fetch it again") from error


def positive_or_nan(distances: np.ndarray) -> np.ndarray:
    """Distances as float32, NaN for every number that is not finite and positive: what makers of float maps write for 'not measured'."""
    depth = distances.astype(np.float32)
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    return depth
