"""A checkpoint -> files that other programs load: a folder for transformers, or the original repository's checkpoint.

PromptDA is written here, MetricAnything's student by ``depth_pro`` and ``student``.
"""

from __future__ import annotations

import pathlib
from typing import Any, Literal

import torch
from torch import Tensor

from data_shards.atomic import written_aside
from mdpretrain.export import names
from mdpretrain.export.depth_pro import export_depth_pro
from mdpretrain.export.pretrained import Weights, load_for_export
from mdpretrain.export.student import export_student
from mdpretrain.export.transformers_folder import write_transformers_folder
from mdpretrain.networks.metric_anything import MetricAnythingStudent
from mdpretrain.networks.prompt_da import POINT_TOKENS_PREFIX, RANGE_FLOOR, PromptDA
from mdpretrain.networks.torch_file import write_torch_file

Format = Literal["transformers", "original"]
# The original loader cuts nine characters off every name; they are those of the Lightning module that the authors trained.
ORIGINAL_PREFIX = "pipeline."


def export(checkpoint: pathlib.Path, output: pathlib.Path, form: Format = "transformers", weights: Weights = "trained") -> pathlib.Path:
    """Write the network of a checkpoint for others.

    Args:
        checkpoint: a checkpoint file, a run folder or a pretrained folder.
        output: a folder ("transformers") or a file ("original": .ckpt of PromptDA, .pt of MetricAnything's student) that is not there yet.
        form: see the module.
        weights: the trained ones or their average.

    Raises:
        ValueError: a network that the form cannot express (another family, point tokens, timm's resize of position embeddings, a
            resized input or prompt), or an output that exists or has the wrong ending.
    """
    predictor, _ = load_for_export(checkpoint, weights)
    if form == "original" and isinstance(predictor.network, MetricAnythingStudent):
        return export_student(predictor.network, output, checkpoint)
    if isinstance(predictor.network, MetricAnythingStudent):
        return export_depth_pro(predictor.network, output, checkpoint)
    network = _expressible(predictor.network, checkpoint)
    own = names.widened_projections(network.state_dict())
    if form == "original":
        if output.suffix != ".ckpt":
            raise ValueError(f"{output}: the original repository's checkpoints end in .ckpt")
        if output.exists():
            raise ValueError(f"{output} exists already; name a new file")
        state = {ORIGINAL_PREFIX + name: value.clone() for name, value in names.to_original(own).items()}
        with written_aside(output) as aside:
            write_torch_file(aside, {"state_dict": state})
        return output
    return write_transformers_folder(output, names.to_transformers(own), transformers_config(network, own), _PROCESSOR)


def transformers_config(network: PromptDA, own: dict[str, Tensor]) -> dict[str, Any]:
    """``config.json`` of the same network."""
    backbone: Any = network.encoder.backbone
    out_channels = [own[f"decoder.reassemble.{level}.project.weight"].shape[0] for level in range(names.LEVELS)]
    return {
        "architectures": ["PromptDepthAnythingForDepthEstimation"],
        "model_type": "prompt_depth_anything",
        "backbone_config": {
            "model_type": "dinov2",
            "image_size": backbone.patch_embed.img_size[0],
            "patch_size": network.encoder.stride,
            "hidden_size": backbone.embed_dim,
            "num_hidden_layers": len(backbone.blocks),
            "num_attention_heads": backbone.blocks[0].attn.num_heads,
            "mlp_ratio": _mlp_ratio(backbone),
            "use_swiglu_ffn": _is_gated(backbone),
            "layer_norm_eps": backbone.norm.eps,
            "out_indices": [layer + 1 for layer in network.encoder.layers],
            "out_features": [f"stage{layer + 1}" for layer in network.encoder.layers],
            "apply_layernorm": True,
            "reshape_hidden_states": False,
        },
        "patch_size": network.encoder.stride,
        "reassemble_hidden_size": backbone.embed_dim,
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_sizes": out_channels,
        "fusion_hidden_size": network.decoder.features,
        "head_hidden_size": own["head.output.0.weight"].shape[0],
        "head_in_index": -1,
        "depth_estimation_type": "metric",
        "max_depth": None,
        "dtype": "float32",
    }


# transformers' preprocessor as its authors published it with the weights
_PROCESSOR = {
    "image_processor_type": "PromptDepthAnythingImageProcessor",
    "do_resize": True,
    "size": {"height": 756, "width": 756},
    "ensure_multiple_of": 14,
    "keep_aspect_ratio": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def _expressible(network: torch.nn.Module, path: pathlib.Path) -> PromptDA:
    if not isinstance(network, PromptDA):
        raise ValueError(
            f"{path} holds a {type(network).__name__}; only PromptDA and MetricAnythingStudent have a form that others load: use "
            "--format pretrained, or --format onnx for a network without prompt"
        )
    if any(name.startswith(POINT_TOKENS_PREFIX) for name in network.state_dict()):
        raise ValueError(f"{path} has point tokens, which neither transformers nor the original PromptDA knows")
    if network.encoder.position_resize != "bicubic" or not network.encoder.final_norm:
        raise ValueError(
            f"{path} has an encoder that others would run differently; train with position_resize: bicubic and final_norm: true"
        )
    if network.encoder.input_size is not None:
        raise ValueError(
            f"{path} has encoder input_size {list(network.encoder.input_size)}, a resize that others do not do; it must be null"
        )
    if network.prompt_size is not None:
        raise ValueError(f"{path} has prompt_size {list(network.prompt_size)}, an averaging that others do not do; it must be null")
    if network.range_floor > RANGE_FLOOR:
        raise ValueError(f"{path} has range_floor {network.range_floor}; others know none, so it must be at most {RANGE_FLOOR}")
    if len(network.decoder.reassemble) != names.LEVELS or network.encoder.stride != 14:
        raise ValueError(f"{path} has {len(network.decoder.reassemble)} levels and patches of {network.encoder.stride}, not 4 and 14")
    return network


def _is_gated(backbone: Any) -> bool:
    mlp = backbone.blocks[0].mlp
    return mlp.fc1.out_features == 2 * mlp.fc2.in_features


def _mlp_ratio(backbone: Any) -> int:
    """transformers' ratio: of a gated MLP the ungated one's, of which it takes two thirds, rounded up to a multiple of eight.

    Raises:
        ValueError: no whole ratio gives this width.
    """
    hidden, channels = backbone.blocks[0].mlp.fc2.in_features, backbone.embed_dim
    for ratio in range(1, 17):
        width = (int(ratio * channels * 2 / 3) + 7) // 8 * 8 if _is_gated(backbone) else ratio * channels
        if width == hidden:
            return ratio
    raise ValueError(f"an MLP of {hidden} channels over {channels} has no whole ratio, and transformers can say nothing else")
