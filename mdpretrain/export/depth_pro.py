"""A student in Depth Pro's order -> a folder that transformers loads as ``DepthProForDepthEstimation``, without its field-of-view head.

Both compute canonical inverse depth from the same 35 crops. What differs in form, and is turned exactly:

- Depth Pro has a second network for the whole image; here one network sees all, so it is written twice.
- Depth Pro leaves the last 3x3 convolution of the finest level out where that level has the decoder's width already: such a level is
  written one channel wider, the additional one zero.
- The second finest level begins at the decoder's width there: a narrower one is filled with zeros.
- Depth Pro normalises colour by 0.5; the folder's preprocessor says ImageNet's mean and deviation.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mdpretrain.export import names
from mdpretrain.export.transformers_folder import write_transformers_folder
from mdpretrain.networks.decoders.reassembly import ReassembleByDoublings
from mdpretrain.networks.encoders.multi_scale_patches import OVERLAP_UNIT, MultiScalePatchEncoder
from mdpretrain.networks.encoders.timm_encoder import IMAGENET_MEAN, IMAGENET_STD
from mdpretrain.networks.metric_anything import MetricAnythingStudent

LEVELS = 5
_COARSEST = LEVELS - 1
_DOUBLINGS = [3, 2, 1, 1, 1]  # of the levels, fine to coarse
_HEAD_CHANNELS = 32
_PATCH = 16
_HEAD = {"reduce": 0, "upsample": 1, "output.0": 2, "output.2": 4}


def export_depth_pro(network: MetricAnythingStudent, output: pathlib.Path, source: pathlib.Path) -> pathlib.Path:
    """Write the folder ``output``; ``source`` is what errors call the network.

    Raises:
        ValueError: a network that Depth Pro's class does not compute, naming the option, or an output that exists.
    """
    if reason := _difference(network):
        raise ValueError(f"{source} is not a Depth Pro of transformers: {reason}; use --format pretrained, or --format onnx")
    own = network.state_dict()
    encoder = network.encoder
    assert isinstance(encoder, MultiScalePatchEncoder)
    processor = {
        "image_processor_type": "DepthProImageProcessor",
        "do_resize": True,
        "size": dict.fromkeys(("height", "width"), 4 * encoder.crop_px),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    return write_transformers_folder(output, to_depth_pro(own), depth_pro_config(network), processor)


def depth_pro_config(network: MetricAnythingStudent) -> dict[str, Any]:
    """``config.json`` of the same network."""
    encoder: Any = network.encoder
    backbone = encoder.backbone
    vision = {
        "model_type": "dinov2",
        "image_size": encoder.crop_px,
        "patch_size": encoder.strides[0],
        "hidden_size": backbone.embed_dim,
        "num_hidden_layers": len(backbone.blocks),
        "num_attention_heads": backbone.blocks[0].attn.num_heads,
        "mlp_ratio": backbone.blocks[0].mlp.fc1.out_features // backbone.embed_dim,
        "layer_norm_eps": backbone.norm.eps,
    }
    widths = _written_widths(network.state_dict())
    return {
        "architectures": ["DepthProForDepthEstimation"],
        "model_type": "depth_pro",
        "patch_size": encoder.crop_px,
        "patch_model_config": vision,
        "image_model_config": vision,
        "fov_model_config": vision,
        "use_fov_model": False,
        "fusion_hidden_size": network.decoder.features,
        "intermediate_hook_ids": [encoder.layers[1], encoder.layers[0]],
        "intermediate_feature_dims": [widths[1], widths[0]],
        "scaled_images_feature_dims": [widths[4], widths[3], widths[2]],
        "merge_padding_value": encoder.tokens // OVERLAP_UNIT,
        "dtype": "float32",
    }


def to_depth_pro(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of transformers' saved files."""
    vision = names.dinov2_to_transformers(own, names.OWN_ENCODER)
    theirs = {f"depth_pro.encoder.{which}_encoder.model.{name}": value for which in ("patch", "image") for name, value in vision.items()}
    theirs |= dict(_levels(own)) | dict(_fusion(own))
    for ours, place in _HEAD.items():
        theirs |= {f"head.layers.{place}.{kind}": own[f"head.{ours}.{kind}"] for kind in ("weight", "bias")}
    return theirs


def _levels(own: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Projections, doublings and 3x3 convolutions of the levels; Depth Pro counts three scales from the coarsest, then two hooks."""
    neck, upsample = "depth_pro.neck.", "depth_pro.neck.feature_upsample."
    features = own["head.reduce.weight"].shape[1]
    for level, width in enumerate(_written_widths(own)):
        prefix = f"decoder.reassemble.{level}."
        theirs = f"{upsample}{'intermediate' if level < 2 else 'scaled_images'}.{(1, 0, 2, 1, 0)[level]}.layers."
        first = features if level == 1 else width  # channels between the projection and the first doubling
        project = own[prefix + "project.weight"]
        yield f"{theirs}0.weight", _filled(project, (first, project.shape[1]))
        for index in range(_DOUBLINGS[level]):
            yield f"{theirs}{index + 1}.weight", _filled(own[f"{prefix}resize.{index}.weight"], (width if index else first, width))
        yield f"{neck}feature_projection.projections.{_COARSEST - level}.weight", _filled(own[prefix + "smooth.weight"], (features, width))
    for ours, place in (("second_way", "feature_upsample.image_block.layers.0"), ("join", "fuse_image_with_low_res")):
        for kind in ("weight", "bias"):
            yield f"{neck}{place}.{kind}", own[f"decoder.reassemble.{_COARSEST}.{ours}.{kind}"]


def _fusion(own: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for level in range(LEVELS):
        ours = f"decoder.fusion.{level}"
        theirs = "fusion_stage.final" if level == 0 else f"fusion_stage.intermediate.{_COARSEST - level}"
        for kind in ("weight", "bias"):
            yield f"{theirs}.projection.{kind}", own[f"{ours}.project.{kind}"]
            for unit, layer in (("skip_unit", 1), ("refine", 2)):
                for part, number in (("first", 1), ("second", 2)):
                    value = own.get(f"{ours}.{unit}.{part}.{kind}")
                    if value is None:  # the coarsest level joins nothing: Depth Pro has this unit there and never runs it
                        value = torch.zeros_like(own[f"{ours}.refine.{part}.{kind}"])
                    yield f"{theirs}.residual_layer{layer}.convolution{number}.{kind}", value
        if level:
            yield f"{theirs}.deconv.weight", own[f"{ours}.upsample.weight"]


def _written_widths(own: Mapping[str, Tensor]) -> list[int]:
    """Of the levels, fine to coarse; see the module for the finest."""
    widths = [own[f"decoder.reassemble.{level}.project.weight"].shape[0] for level in range(LEVELS)]
    if widths[0] == own["head.reduce.weight"].shape[1]:
        widths[0] += 1
    return widths


def _filled(weight: Tensor, channels: tuple[int, int]) -> Tensor:
    """Zeros behind the first two dimensions up to these channels."""
    whole = weight.new_zeros(*channels, *weight.shape[2:])
    whole[: weight.shape[0], : weight.shape[1]] = weight
    return whole


def _difference(network: MetricAnythingStudent) -> str | None:
    """What Depth Pro's class would compute otherwise, in words; None: nothing."""
    encoder: Any = network.encoder
    if not isinstance(encoder, MultiScalePatchEncoder):
        return f"its encoder is a {type(encoder).__name__}, and Depth Pro reads crops of three scales (MultiScalePatchEncoder)"
    if encoder.image_encoder is not None:
        return "it has an image_encoder, whose features are read another way there"
    if reason := _difference_of_backbone(encoder):
        return reason
    if len(encoder.layers) != 3 or network.level_sources != list(range(LEVELS)):
        return "it must have three hooked layers and deep_to_deep: false"
    levels: list[Any] = list(network.decoder.reassemble)
    if not all(isinstance(level, ReassembleByDoublings) for level in levels):
        return "it must have reassembly: doublings"
    doubled = [block.upsample is not None for block in network.decoder.fusion]  # type: ignore[union-attr]
    if [len(level.resize) for level in levels] != _DOUBLINGS or doubled != [False, *[True] * _COARSEST] or network.head.upsample is None:
        return "it must have upsampling: transposed and the default scales"
    if levels[1].project.out_channels > network.decoder.features:
        return f"out_channels[1] is {levels[1].project.out_channels}, more than features, where Depth Pro begins with features"
    convolution: Any = network.head.output[0]
    if network.positive_activation != "relu" or len(network.head.output) != 3 or convolution.out_channels != _HEAD_CHANNELS:
        return f"it must have positive_activation: relu, head_layers: 0 and head_channels: {_HEAD_CHANNELS}"
    return None


def _difference_of_backbone(encoder: Any) -> str | None:
    backbone = encoder.backbone
    state = backbone.state_dict()
    if not names.is_dinov2(state) or backbone.num_prefix_tokens != 1:
        return f"its backbone {encoder.model_name} is not a DINOv2 without registers (with class token, position embeddings, layer scale)"
    if state["pos_embed"].shape[1] != encoder.tokens**2 + 1:
        return f"its position embeddings are of another grid than its crops: set model_args.img_size to {encoder.crop_px}"
    hidden, channels = backbone.blocks[0].mlp.fc1.out_features, backbone.embed_dim
    if encoder.strides[0] != _PATCH:
        return f"its patches are {encoder.strides[0]} pixels, where Depth Pro's decoder comes back to the image's size from {_PATCH}"
    if hidden % channels or state["blocks.0.mlp.fc2.weight"].shape[1] != hidden:
        return "its MLP is gated or no whole multiple of its width"
    return None
