"""HDF5 and OpenEXR files, read strictly; their libraries are optional (``pip install 'mdpretrain[sources]'``) and asked for when used."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np

from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_files import read_bytes


def require_libraries(source: str, modules: tuple[str, ...]) -> None:
    """Ask for a source's optional libraries when it is made, not at its first frame in some worker.

    Raises:
        ValueError: one is not installed, with the command that installs it.
    """
    if missing := [module for module in modules if importlib.util.find_spec(module) is None]:
        raise ValueError(f"source {source!r} needs {', '.join(missing)}, which is not installed: pip install 'mdpretrain[sources]'")


def read_hdf5(path: Path, dataset: str) -> np.ndarray:
    """One data set of an HDF5 file, as stored.

    Raises:
        RejectedSample: missing, truncated, not HDF5, or without numbers under that name.
    """
    import h5py

    try:
        with h5py.File(io.BytesIO(read_bytes(path)), "r") as file:
            array = file[dataset][()]
    except RejectedSample:
        raise
    except KeyError as error:
        raise RejectedSample(f"{path}: holds no data set {dataset!r}; fetch it again") from error
    except (OSError, RuntimeError, AttributeError, TypeError) as error:  # h5py tells of damage by any of these
        raise RejectedSample(f"{path}: not a readable HDF5 file ({str(error).splitlines()[0]}); fetch it again") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise RejectedSample(f"{path}: the data set {dataset!r} holds no array of numbers; fetch it again")
    return array


def read_exr(path: Path, channels: tuple[str, ...] = ("Y", "Z", "R", "G", "B", "V")) -> np.ndarray:
    """One channel of an OpenEXR file, float32 (height, width): its only one, or the first of ``channels`` that it has.

    Raises:
        RejectedSample: missing, truncated, not OpenEXR, or without such a channel.
    """
    import OpenEXR

    read_bytes(path)  # says in a sentence what is wrong with a missing or empty file
    try:
        parts = OpenEXR.File(str(path), separate_channels=True).channels()
        name = next(iter(parts)) if len(parts) == 1 else next((name for name in channels if name in parts), None)
        if name is None:
            raise RejectedSample(f"{path}: has the channels {', '.join(parts)}, not one of {', '.join(channels)}; fetch it again")
        return np.asarray(parts[name].pixels, np.float32)
    except RejectedSample:
        raise
    except Exception as error:  # the library raises bare exceptions of several kinds for damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RejectedSample(f"{path}: not a readable OpenEXR file ({reason}); fetch it again") from error
