"""A folder that transformers' ``from_pretrained`` reads: weights, ``config.json`` and ``preprocessor_config.json``."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from data_shards.atomic import own_token
from mdpretrain.networks.safetensors_file import write_safetensors


def write_transformers_folder(
    output: pathlib.Path, weights: Mapping[str, Tensor], config: dict[str, Any], processor: dict[str, Any]
) -> pathlib.Path:
    """Write ``output``, which is whole as soon as it has its name.

    Raises:
        ValueError: it exists already.
    """
    if output.exists():
        raise ValueError(f"{output} exists already; name a new folder")
    aside = output.with_name(f"{output.name}.partial-{own_token()}")
    aside.mkdir(parents=True)
    try:
        tensors = {name: value.contiguous().clone() for name, value in weights.items()}
        write_safetensors(aside / "model.safetensors", tensors)
        for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
            (aside / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        os.replace(aside, output)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return output
