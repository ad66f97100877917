"""MoGe-2's released weights (also MetricAnything's point-map student, which is the same network) -> a checkpoint of ours.

The file is ``{"model_config": ..., "model": state}``. Both networks hold the same tensors, except that the release also keeps the mask
token of DINOv2's pretraining and the image's mean and standard deviation, which are dropped.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mdpretrain.export.reading import checked_output, read_content, write_checkpoint
from mdpretrain.networks.encoders.local_weights import first_difference
from mdpretrain.networks.module_config import build_module

_BACKBONES = {
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14": "vit_base_patch14_dinov2",
    "dinov2_vitl14": "vit_large_patch14_dinov2",
}
_SIZES = {"dinov2_vits14": (384, 12), "dinov2_vitb14": (768, 12), "dinov2_vitl14": (1024, 24)}  # channels and blocks
_HEAD_CHANNELS = 64  # of an attention head, in every DINOv2
_UNUSED = ("encoder.image_mean", "encoder.image_std", "encoder.backbone.mask_token")
_NEEDED = ("encoder", "neck", "points_head", "mask_head", "scale_head")
# what stands in a stack's config beside its widths, and the one value of it that our stacks have
_STACK = {"dim_times_res_block_hidden": 1, "res_block_in_norm": "none", "res_block_hidden_norm": "none", "activation": "relu"}
_STACK_DEFAULTS = {
    "dim_times_res_block_hidden": 1,
    "res_block_in_norm": "layer_norm",
    "res_block_hidden_norm": "group_norm",
    "activation": "relu",
}


def import_point_map(source: pathlib.Path, output: pathlib.Path) -> pathlib.Path:
    """Write ``output``, a checkpoint of ``PointMapStudent`` with the release's weights.

    Args:
        source: the release's model.pt.
        output: a .safetensors file.

    Raises:
        ValueError: nothing there, an unreadable file, a network of another form (saying in what), or an output of another name.
    """
    checked_output(output)
    if not source.is_file():
        raise ValueError(f"{source} is not a file; give the model.pt of a MoGe-2 release")
    content = read_content(source)
    given, described = content.get("model"), content.get("model_config")
    if not isinstance(given, dict) or not isinstance(described, dict):
        raise ValueError(f"{source} is no MoGe-2 release: it holds no 'model' with a 'model_config'")
    try:
        config = network_config(described, given, str(source))
    except (KeyError, TypeError) as error:  # a place of the description that is missing, or holds something else
        raise ValueError(
            f"{source} is no MoGe-2 release: its model_config does not describe one ({type(error).__name__}: {error})"
        ) from error
    with torch.device("meta"):
        wanted = build_module(config).state_dict()
    levels = len(config["init_args"]["widths"])
    names = {released_name(name, levels): name for name in wanted}
    used = {name: value for name, value in given.items() if name not in _UNUSED}
    if difference := first_difference({name: wanted[own] for name, own in names.items()}, used):
        raise ValueError(f"{source} is not the MoGe-2 that its model_config describes: {difference}")
    return write_checkpoint(output, {"network": config}, {names[name]: value.float() for name, value in used.items()})


def released_name(own: str, levels: int) -> str:
    """The release's name of one of our tensors, in a network of so many levels."""
    name = own.replace("projections.", "encoder.output_projections.", 1) if own.startswith("projections.") else own
    name = re.sub(r"\.output\.", f".output_blocks.{levels - 1}.", name)
    # a residual block of the release has places for the normalisations that it goes without
    return re.sub(r"(\.res_blocks\.\d+\.\d+\.layers)\.(\d)\.", lambda found: f"{found[1]}.{ {'1': 2, '3': 5}[found[2]] }.", name)


def network_config(described: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The module config of the network that a release's ``model_config`` describes.

    Raises:
        ValueError: a part is missing, or is of a form that ``PointMapStudent`` does not have; ``source`` is what the file is called.
    """
    if missing := [part for part in _NEEDED if described.get(part) is None]:
        raise ValueError(f"{source}: a MoGe-2 without {missing[0]}, which PointMapStudent needs")
    if described.get("remap_output", "linear") != "exp":
        raise ValueError(f"{source}: remap_output {described.get('remap_output')!r}; PointMapStudent's points are of the form 'exp'")
    neck, heads = described["neck"], [part for part in ("points_head", "mask_head", "normal_head") if described.get(part) is not None]
    widths = list(neck["dim_res_blocks"])
    head_blocks = _per_level(described["points_head"], widths)
    for part in ("neck", *heads):
        _check_stack(part, described[part], widths, source)
        if part != "neck" and _per_level(described[part], widths) != head_blocks:
            raise ValueError(f"{source}: {part} has other residual blocks than points_head; PointMapStudent's heads are alike")
    return {
        "class_path": "mdpretrain.networks.point_map.PointMapStudent",
        "init_args": {
            "encoder": _encoder_config(described["encoder"], weights, source),
            "feature_channels": described["encoder"]["dim_out"],
            "widths": widths,
            "neck_blocks": _per_level(neck, widths),
            "head_blocks": head_blocks,
            "normals": "normal_head" in heads,
            "token_range": list(described.get("num_tokens_range", [1200, 3600])),
        },
    }


def _encoder_config(described: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    name = described["backbone"]
    if name not in _BACKBONES:
        raise ValueError(f"{source}: backbone {name!r}; those known are {sorted(_BACKBONES)}")
    blocks = {int(found[1]) for key in weights if (found := re.match(r"encoder\.backbone\.blocks\.(\d+)\.", key))}
    token = weights.get("encoder.backbone.cls_token")
    if token is None or not blocks:
        raise ValueError(f"{source}: its state holds no encoder.backbone of the DINOv2 that model_config names")
    channels, depth = token.shape[-1], len(blocks)
    hooks = described["intermediate_layers"]
    layers = list(range(depth - hooks, depth)) if isinstance(hooks, int) else list(hooks)
    arguments: dict[str, Any] = {"model_name": _BACKBONES[name], "layers": layers, "position_resize": "bicubic"}
    if (channels, depth) != _SIZES[name]:
        arguments["model_args"] = {"embed_dim": channels, "depth": depth, "num_heads": channels // _HEAD_CHANNELS}
    return {"class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder", "init_args": arguments}


def _check_stack(part: str, stack: Mapping[str, Any], widths: Sequence[int], source: str) -> None:
    if list(stack["dim_res_blocks"]) != list(widths):
        raise ValueError(f"{source}: {part} is {stack['dim_res_blocks']} wide where the neck is {list(widths)}; ours are alike")
    resamplers = stack["resamplers"]
    own = ["conv_transpose"] * (len(widths) - 2) + ["bilinear"]
    if (list(resamplers) if isinstance(resamplers, list | tuple) else [resamplers] * len(own)) != own:
        raise ValueError(f"{source}: {part} doubles by {resamplers}, and PointMapStudent's stacks by {own}")
    for name, value in _STACK.items():
        if stack.get(name, _STACK_DEFAULTS[name]) != value:
            raise ValueError(
                f"{source}: {part} has {name} {stack.get(name, _STACK_DEFAULTS[name])!r}; PointMapStudent's stacks have {value!r}"
            )


def _per_level(stack: Mapping[str, Any], widths: Sequence[int]) -> list[int]:
    blocks = stack.get("num_res_blocks", 1)
    return [blocks] * len(widths) if isinstance(blocks, int) else list(blocks)
