"""MetricAnything's released Student-DepthMap (``student_depthmap.pt``) -> a checkpoint of ours, and back."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data_shards.atomic import written_aside
from mdpretrain.export.reading import checked_output, read_tensors, write_checkpoint
from mdpretrain.export.student_names import HEAD_LAYERS, LEVELS, RELEASED_BACKBONE, from_release, to_release
from mdpretrain.networks.encoders.local_weights import first_difference
from mdpretrain.networks.metric_anything import MetricAnythingStudent
from mdpretrain.networks.module_config import build_module
from mdpretrain.networks.torch_file import write_torch_file

HOOKED_BLOCKS = [7, 13, 19, 25]
TOKENS = 24  # along a crop's side
RELEASED_SUFFIX = ".pt"
_VIT_H = {"embed_dim": 1280, "depth": 32, "num_heads": 20, "mlp_ratio": 4.0, "num_reg_tokens": 4, "patch_size": 16}


def import_student(source: pathlib.Path, output: pathlib.Path) -> pathlib.Path:
    """Write ``output``, a checkpoint of ``MetricAnythingStudent`` that predicts what the release predicts.

    Args:
        source: the release's file, or one of the same layout at other widths.
        output: a .safetensors file.

    Raises:
        ValueError: nothing there, an unreadable file, another network (naming the first missing, superfluous or wrongly shaped tensor),
            or an output of another name.
    """
    checked_output(output)
    if not source.is_file():
        raise ValueError(f"{source} is not a file; give MetricAnything's student_depthmap.pt")
    given = read_tensors(source)
    config = student_config(given, str(source))
    if difference := first_difference(to_release(on_meta(config).state_dict()), given):
        raise ValueError(f"{source} is not MetricAnything's Student-DepthMap: {difference}")
    try:
        own = from_release(given)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return write_checkpoint(output, {"network": config}, {name: value.float() for name, value in own.items()})


def student_config(released: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """The module config of the student that has these weights (under the release's names), its widths read off them.

    Heads come from the number of rotary periods (four of a head's channels share one); a crop has 24 patches along its side and the
    hooked blocks are 7, 13, 19, 25 and the last, which no weight tells.

    Raises:
        ValueError: a tensor that the widths are read from is missing, or too few blocks; ``source`` is what it is called.
    """
    try:
        prefix = RELEASED_BACKBONE
        channels, periods = released[prefix + "cls_token"].shape[-1], released[prefix + "rope_embed.periods"].numel()
        blocks = {int(name.removeprefix(prefix).split(".")[1]) for name in released if name.startswith(prefix + "blocks.")}
        vit = {
            "embed_dim": channels,
            "depth": len(blocks),
            "num_heads": channels // max(4 * periods, 1),
            "mlp_ratio": released[prefix + "blocks.0.mlp.w1.weight"].shape[0] / channels,
            "num_reg_tokens": released[prefix + "storage_tokens"].shape[1],
            "patch_size": released[prefix + "patch_embed.proj.weight"].shape[-1],
        }
        features = released["decoder.convs.0.weight"].shape[0]
        out_channels = [released[f"decoder.convs.{level}.weight"].shape[1] for level in range(LEVELS)]
        head_channels = released["head.2.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{source} is not MetricAnything's Student-DepthMap: {error} is missing") from error
    except (IndexError, ValueError) as error:  # a shape or a block's name that no ViT has
        raise ValueError(f"{source} is not MetricAnything's Student-DepthMap: a tensor has no such shape there ({error})") from error
    if vit["num_heads"] * 4 * periods != channels:
        raise ValueError(f"{source}: {channels} channels cannot be heads of {4 * periods}, as its {periods} rotary periods say")
    if len(blocks) <= HOOKED_BLOCKS[-1] + 1:
        raise ValueError(f"{source}: {len(blocks)} blocks; the release reads those numbered {HOOKED_BLOCKS} and a later one")
    encoder = {
        "model_name": "vit_huge_plus_patch16_dinov3_qkvb",
        "layers": [*HOOKED_BLOCKS, len(blocks) - 1],
        "crop_px": TOKENS * vit["patch_size"],
        "dinov3_release": True,
    }
    if vit != _VIT_H:
        encoder["model_args"] = vit
    return {
        "class_path": "mdpretrain.networks.metric_anything.MetricAnythingStudent",
        "init_args": {
            "encoder": {"class_path": "mdpretrain.networks.encoders.multi_scale_patches.MultiScalePatchEncoder", "init_args": encoder},
            "features": features,
            "out_channels": out_channels,
            "deep_to_deep": True,
            "positive_activation": "relu",
            "head_channels": head_channels,
            "upsampling": "transposed",
            "head_layers": len(HEAD_LAYERS) - 2,
            "reassembly": "doublings",
        },
    }


def on_meta(config: dict[str, Any]) -> MetricAnythingStudent:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return build_module(config)


def export_student(network: nn.Module, output: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    """Write the network as the release's file, which the release's own class loads.

    Args:
        network: a student as the ViT-H+ recipe builds it (of any widths).
        output: a .pt file that is not there yet.
        source: what an error calls the checkpoint.

    Raises:
        ValueError: a student of another form, or an output that exists or has the wrong ending.
    """
    if output.suffix != RELEASED_SUFFIX:
        raise ValueError(f"{output}: the release's checkpoints end in {RELEASED_SUFFIX}")
    if output.exists():
        raise ValueError(f"{output} exists already; name a new file")
    form = f"{source} has another form than MetricAnything's release (recipes/metric_anything/student_depthmap_vith_1536.yaml)"
    try:
        released = to_release(network.state_dict())
        twin = on_meta(student_config(released, str(source)))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{form}: {error}") from error
    if difference := first_difference(to_release(twin.state_dict()), released):
        raise ValueError(f"{form}: {difference}")
    for what in ("level_sources", "positive_activation"):
        if getattr(network, what) != getattr(twin, what):
            raise ValueError(f"{form}: {what} {getattr(network, what)!r} instead of {getattr(twin, what)!r}")
    for what in ("layers", "crop_px"):
        if getattr(network.encoder, what) != getattr(twin.encoder, what):
            raise ValueError(f"{form}: encoder {what} {getattr(network.encoder, what)!r} instead of {getattr(twin.encoder, what)!r}")
    with written_aside(output) as aside:
        write_torch_file(aside, {name: value.clone() for name, value in released.items()})
    return output
