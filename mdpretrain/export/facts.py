"""What an exported network says about itself: plain values for ``config.json`` and ONNX metadata, and the model card made of them."""

from __future__ import annotations

from typing import Any

import yaml
from torch import nn

from mdpretrain.networks.fake_step import FakeNetwork
from mdpretrain.networks.module_config import module_config
from mdpretrain.structures import DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor

_MEANING = {
    DepthSpace.METRIC: "depth along the optical axis, in metres",
    DepthSpace.CANONICAL_INVERSE: "canonical inverse depth C = f_px / (W * depth_m); with the focal length, depth in metres",
    DepthSpace.SCALE_INVARIANT: "depth up to one positive factor per image",
    DepthSpace.AFFINE_INVARIANT: "inverse depth up to scale and shift per image",
}
_CARD = """---
{header}
---

# {name}

Depth from an image, trained with mdpretrain. Weights are safetensors, the rest is JSON: loading this folder runs no code of it.

| | |
|---|---|
{table}

## Use

    import mdpretrain
    model = mdpretrain.load("{name}")  # this folder

or, as a torch module that takes a `DepthBatch`:

    from mdpretrain.tasks.predictor import Predictor
    predictor = Predictor.from_pretrained("{name}")  # or "ORG/NAME" in the hub's cache

Every command that takes a checkpoint takes this folder: `mdpretrain predict ... --checkpoint {name}`.
"""
_SIDE = 224  # of the image without numbers that tells a prediction's space: a multiple of every usual patch


def predictor_facts(predictor: Predictor, content: dict[str, Any], weights: str, licence: str | None = None) -> dict[str, Any]:
    """Depth space, needs, size, fingerprint and training of a predictor.

    Args:
        predictor: with the weights that are exported.
        content: the checkpoint it came from, or the pretrained folder, whose training and licence are handed on.
        weights: "trained" or "ema".
        licence: of the weights, if it is known (an SPDX name).
    """
    network, known = predictor.network, content.get("facts") or {}
    prediction = blank_prediction(network)
    estimates = prediction.estimated_f_px is not None
    encoder = getattr(network, "encoder", None)
    training = known.get("training") or {"global_step": content.get("global_step", 0), **_training(content.get("run") or {})}
    return {
        "depth_space": prediction.space.value,
        "meaning": _MEANING[prediction.space],
        "needs_prompt": predictor.needs_prompt,
        "needs_focal_length": prediction.space is DepthSpace.CANONICAL_INVERSE,
        "estimates_focal_length": estimates,
        "image_multiple": getattr(encoder, "stride", None),
        "image_size": list(size) if (size := getattr(encoder, "input_size", None)) else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weights": known.get("weights", weights),
        "fingerprint": predictor.fingerprint,
        "training": training,
        "licence": licence or known.get("licence"),
    }


def blank_prediction(network: nn.Module) -> DepthPrediction:
    """What the network predicts, without its numbers and without its arithmetic."""
    return FakeNetwork.of_config(module_config(network)).prediction(1, _SIDE, _SIDE)


def model_card(name: str, network: str, facts: dict[str, Any]) -> str:
    """README.md of an exported folder, with the header that the hub reads."""
    header = ["library_name: mdpretrain", "pipeline_tag: depth-estimation"]
    if facts["licence"]:
        header.append(f"license: {facts['licence']}")
    image = (
        f"one sRGB image; it is read at {' x '.join(map(str, facts['image_size']))}" if facts["image_size"] else "one sRGB image, any size"
    )
    needs = ["a sparse metric prompt (depth in metres at some pixels)"] if facts["needs_prompt"] else []
    if facts["needs_focal_length"]:
        needs.append("the focal length in pixels, to turn the prediction into metres")
    training = facts["training"]
    rows = {
        "network": network,
        "parameters": f"{facts['parameters'] / 1e6:.2f} M",
        "predicts": facts["meaning"],
        "input": image,
        "needs besides": "; ".join(needs) or "nothing",
        "focal length": "estimated from the image where the camera is unknown" if facts["estimates_focal_length"] else "not estimated",
        "weights": f"{facts['weights']}, stored as {facts['dtype']}",
        "training": f"step {training['global_step']}" + (f", {training['task']}" if "task" in training else ""),
        "licence": facts["licence"] or "not stated",
        "fingerprint": f"`{facts['fingerprint']}`",
    }
    head, table = "\n".join(header), "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return _CARD.format(header=head, name=name, table=table)


def _training(run: dict[str, Any]) -> dict[str, Any]:
    """Of the recipe what says how it was trained; no path of the machine it was trained on."""
    recipe = yaml.safe_load(run.get("recipe") or "") or {}  # a checkpoint keeps its recipe as the text of a YAML file
    facts: dict[str, Any] = {"code": run["code"]} if "code" in run else {}
    if task := (recipe.get("model") or {}).get("class_path"):
        facts["task"] = task
    if size := (recipe.get("data") or {}).get("image_size"):
        facts["image_size"] = list(size)
    return facts
