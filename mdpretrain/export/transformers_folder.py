"""A folder that transformers' ``from_pretrained`` reads: weights, ``config.json`` and ``preprocessor_config.json``."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from data_shards.atomic import written_aside
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
    with written_aside(output) as aside:
        aside.mkdir()
        tensors = {name: value.contiguous().clone() for name, value in weights.items()}
        write_safetensors(aside / "model.safetensors", tensors)
        for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
            (aside / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    return output
