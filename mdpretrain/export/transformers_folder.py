"""A folder that transformers' ``from_pretrained`` reads: weights, ``config.json`` and ``preprocessor_config.json``."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save_file
from torch import Tensor


def write_transformers_folder(
    output: pathlib.Path, weights: Mapping[str, Tensor], config: dict[str, Any], processor: dict[str, Any]
) -> pathlib.Path:
    """Write ``output``, which is whole as soon as it has its name.

    Raises:
        ValueError: it exists already.
    """
    if output.exists():
        raise ValueError(f"{output} exists already; name a new folder")
    aside = output.with_name(output.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)  # of an export that was interrupted
    aside.mkdir(parents=True)
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, aside / "model.safetensors", metadata={"format": "pt"})
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        (aside / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    os.replace(aside, output)
    return output
