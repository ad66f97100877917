"""A checkpoint -> a pretrained folder (``networks/pretrained_folder.py``): what this package itself loads with one line."""

from __future__ import annotations

import pathlib
from typing import Any, Literal

from mdpretrain.export.facts import model_card, predictor_facts
from mdpretrain.networks.module_config import module_config
from mdpretrain.networks.pretrained_folder import MODULES, write_pretrained
from mdpretrain.tasks.predictor import Predictor, predictor_of, read_content

Weights = Literal["trained", "ema"]
Dtype = Literal["float32", "bf16"]


def load_for_export(checkpoint: pathlib.Path, weights: Weights = "trained") -> tuple[Predictor, dict[str, Any]]:
    """The predictor of a checkpoint, run or pretrained folder, on the CPU, and what the checkpoint says besides."""
    content, source = read_content(checkpoint, weights)
    return predictor_of(content, source), {key: value for key, value in content.items() if key != "state_dict"}


def export_pretrained(
    checkpoint: pathlib.Path, output: pathlib.Path, weights: Weights = "trained", dtype: Dtype = "float32", licence: str | None = None
) -> pathlib.Path:
    """Write the network with its preparation and prior as ``config.json``, ``model.safetensors`` and a card.

    Args:
        checkpoint: a checkpoint file, a run folder, or a pretrained folder.
        output: a folder that is not there yet.
        weights: the trained ones or their average.
        dtype: "bf16" stores matrices and convolutions in half the bytes (vectors, which are small and sensitive, stay); they are computed
            with in float32 again after loading, so what is lost is their rounding alone.
        licence: of the weights, an SPDX name such as apache-2.0, for the card and config.json.

    Raises:
        ValueError: no such checkpoint, no average in it, or an output that exists.
    """
    if output.exists():  # before a large file is read
        raise ValueError(f"{output} exists already; name a new folder")
    predictor, content = load_for_export(checkpoint, weights)
    state = predictor.state_dict()
    if dtype == "bf16":
        state = {name: value.bfloat16() if value.is_floating_point() and value.ndim > 1 else value for name, value in state.items()}
        predictor.load_state_dict(state)  # the rounded numbers in float32: what a reader of the folder will have
        predictor.__dict__.pop("fingerprint", None)
    facts = predictor_facts(predictor, content, weights, licence) | {"dtype": dtype}
    modules = {name: module_config(module) for name in MODULES if (module := getattr(predictor, name)) is not None}
    written = {**modules, "state_dict": state, "global_step": content.get("global_step", 0)}
    return write_pretrained(output, written, facts, model_card(output.name, type(predictor.network).__name__, facts))
