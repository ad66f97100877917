"""Feather and Parquet files, read strictly; pyarrow is optional (``pip install 'mdpretrain[sources]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_files import read_bytes

LIBRARIES = ("pyarrow",)


def read_feather(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The named columns of a Feather (Arrow IPC) file.

    Raises:
        RejectedSample: missing, damaged, or without one of the columns.
    """
    import pyarrow
    from pyarrow import feather

    data = read_bytes(path)
    try:
        table = feather.read_table(pyarrow.BufferReader(data), memory_map=False)
        return {name: table.column(name).to_numpy() for name in columns}
    except KeyError as error:
        raise RejectedSample(f"{path}: has no column {error}; fetch it again") from error
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RejectedSample(f"{path}: not a readable Feather file ({_first_line(error)}); fetch it again") from error


def read_parquet(path: Path, columns: Sequence[str], **equal: Any) -> list[dict[str, Any]]:
    """The rows of a Parquet file whose column ``key.NAME`` has the value ``equal[NAME]``, for every NAME given, in the file's order.

    A row maps each of ``columns`` to its value; a list comes as an array, a null as None. Row groups without such a row are not decoded.

    Raises:
        RejectedSample: missing, damaged, or without one of the columns.
    """
    import pyarrow
    from pyarrow import parquet

    if not path.exists():
        raise RejectedSample(f"{path}: the file is missing; restore it or leave its frames out")
    try:
        filters = [(f"key.{name}", "==", value) for name, value in equal.items()]
        table = parquet.read_table(path, columns=list(columns), filters=filters or None, use_threads=False)
        rows = [{name: _value(table.column(name)[row]) for name in columns} for row in range(table.num_rows)]
    except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
        raise RejectedSample(f"{path}: not a readable Parquet file with these columns ({_first_line(error)}); fetch it again") from error
    return rows


def _value(scalar: Any) -> Any:
    """A list scalar as a numpy array, any other as Python has it."""
    if hasattr(scalar, "values"):
        return None if scalar.values is None else scalar.values.to_numpy(zero_copy_only=False)
    return scalar.as_py()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
