"""PromptDA's (and Depth Anything V2's) weights under three names: this package's, the original release's, and transformers'.

The three hold the same tensors with these exceptions: transformers splits the query-key-value matrix in three; both others hold a
mask token (of DINOv2's pretraining), mean and standard deviation of the image (original PromptDA), and a residual unit of the coarsest
fusion block that no forward pass uses. What is unused is dropped on the way in and zero on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mdpretrain.networks.encoders.timm_encoder import IMAGENET_MEAN, IMAGENET_STD

LEVELS = 4
OWN_ENCODER, ORIGINAL_ENCODER, TRANSFORMERS_ENCODER = "encoder.backbone.", "pretrained.", "backbone."
_COARSEST = LEVELS - 1
_UNUSED_UNIT = {
    "original": f"depth_head.scratch.refinenet{LEVELS}.resConfUnit1.",
    "transformers": "neck.fusion_stage.layers.0.residual_layer1.",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_STEM = {  # timm (and the original) -> transformers
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_PART = {"attn.proj.": "attention.output.dense.", "ls1.gamma": "layer_scale1.lambda1", "ls2.gamma": "layer_scale2.lambda1"}
_BLOCK_PARTS = {"norm1", "norm2", "attn.qkv", "attn.proj", "ls1", "ls2", "mlp.fc1", "mlp.fc2"}
_SWIGLU = {"original": ("mlp.w12.", "mlp.w3."), "transformers": ("mlp.weights_in.", "mlp.weights_out.")}


def to_original(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole network under the original release's names, with what its strict loading wants besides."""
    renamed = {original: own[ours] for ours, original, _ in _decoder_names() if ours in own}
    gated = _is_gated(own, OWN_ENCODER)
    for name, value in _encoder(own, OWN_ENCODER):
        renamed[ORIGINAL_ENCODER + _swiglu(name, "original", gated)] = value
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return _with_unused(renamed, own, "original") | {"_mean": mean, "_std": std}


def to_transformers(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole network under the names that transformers' saved files have."""
    renamed = {theirs: own[ours] for ours, _, theirs in _decoder_names() if ours in own}
    encoder = dinov2_to_transformers(own, OWN_ENCODER)
    return _with_unused(renamed | {TRANSFORMERS_ENCODER + name: value for name, value in encoder.items()}, own, "transformers")


def dinov2_to_transformers(own: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A DINOv2 (ours under ``prefix``) under the names that transformers' saved files have, its unused mask token included."""
    gated = _is_gated(own, prefix)
    renamed = {theirs: part for name, value in _encoder(own, prefix) for theirs, part in _to_transformers_encoder(name, value, gated)}
    return renamed | {"embeddings.mask_token": torch.zeros(1, own[prefix + "cls_token"].shape[-1])}


def is_dinov2(backbone: Mapping[str, Tensor]) -> bool:
    """Whether a timm backbone has exactly the parts of a DINOv2 without registers."""
    parts = {found[2].rpartition(".")[0] for name in backbone if (found := _BLOCK.fullmatch(name))}
    others = {name for name in backbone if _BLOCK.fullmatch(name) is None}
    return others == set(_STEM) and parts == _BLOCK_PARTS


def from_original(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names -> ours; a prefix before them all (as of a Lightning module) is taken off, unused tensors are left out."""
    prefix = original_prefix(given)
    given = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
    known = {original: ours for ours, original, _ in _decoder_names()}
    own = {}
    for key, value in given.items():
        if key.startswith(ORIGINAL_ENCODER):
            name = key.removeprefix(ORIGINAL_ENCODER).replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")
            own[OWN_ENCODER + name] = value
        else:
            own[known.get(key, key)] = value
    return _without_unused(own, "original")


def from_transformers(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of transformers' saved files -> ours; unused tensors are left out."""
    known = {theirs: ours for ours, _, theirs in _decoder_names()}
    own, parts = {}, {}
    for key, value in given.items():
        if not key.startswith(TRANSFORMERS_ENCODER):
            own[known.get(key, key)] = value
        elif found := re.fullmatch(r"backbone\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", key):
            parts[(found[1], found[3], found[2])] = value
        else:
            own[OWN_ENCODER + _from_transformers_encoder(key.removeprefix(TRANSFORMERS_ENCODER))] = value
    for block, kind in sorted({(block, kind) for block, kind, _ in parts}):
        three = [parts[(block, kind, name)] for name in ("query", "key", "value") if (block, kind, name) in parts]
        own[f"{OWN_ENCODER}blocks.{block}.attn.qkv.{kind}"] = torch.cat(three)
    return _without_unused(own, "transformers")


def original_prefix(given: Mapping[str, Tensor]) -> str:
    """What stands before ``pretrained.`` and ``depth_head.`` in an original checkpoint.

    Raises:
        ValueError: no class token of a DINOv2 in it.
    """
    wanted = ORIGINAL_ENCODER + "cls_token"
    prefixes = [key.removesuffix(wanted) for key in given if key.endswith(wanted)]
    if not prefixes:
        raise ValueError(f"no {wanted!r} among its {len(given)} tensors: this is no checkpoint of PromptDA or Depth Anything")
    return prefixes[0]


def widened_projections(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weights with 1x1 projections of the prompt fusion as the 3x3 ones of the releases: the same function."""
    return {
        name: F.pad(value, (1, 1, 1, 1)) if name.endswith("prompt_fusion.projection.weight") and value.shape[-1] == 1 else value
        for name, value in own.items()
    }


def _decoder_names() -> Iterator[tuple[str, str, str]]:
    """(ours, original, transformers) of every parameter behind the encoder."""
    for ours, original, theirs, kinds in _decoder_modules():
        for kind in kinds:
            yield f"{ours}.{kind}", f"{original}.{kind}", f"{theirs}.{kind}"


def _decoder_modules() -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    both = ("weight", "bias")
    for level in range(LEVELS):
        own, stage = f"decoder.reassemble.{level}", f"neck.reassemble_stage.layers.{level}"
        yield f"{own}.project", f"depth_head.projects.{level}", f"{stage}.projection", both
        yield f"{own}.resize", f"depth_head.resize_layers.{level}", f"{stage}.resize", both
        yield f"{own}.smooth", f"depth_head.scratch.layer{level + 1}_rn", f"neck.convs.{level}", ("weight",)
        # transformers counts its fusion layers from the coarsest level
        own, refine, layer = (
            f"decoder.fusion.{level}",
            f"depth_head.scratch.refinenet{level + 1}",
            f"neck.fusion_stage.layers.{_COARSEST - level}",
        )
        for part, unit, residual in (("skip_unit", "resConfUnit1", "residual_layer1"), ("refine", "resConfUnit2", "residual_layer2")):
            yield f"{own}.{part}.first", f"{refine}.{unit}.conv1", f"{layer}.{residual}.convolution1", both
            yield f"{own}.{part}.second", f"{refine}.{unit}.conv2", f"{layer}.{residual}.convolution2", both
        for part, place, number in (("embed.0", 0, 1), ("embed.2", 2, 2), ("projection", 4, 3)):
            depth_unit, depth_layer = f"{refine}.resConfUnit_depth.{place}", f"{layer}.prompt_depth_layer.convolution{number}"
            yield f"{own}.prompt_fusion.{part}", depth_unit, depth_layer, both
        yield f"{own}.project", f"{refine}.out_conv", f"{layer}.projection", both
    yield "head.reduce", "depth_head.scratch.output_conv1", "head.conv1", both
    yield "head.output.0", "depth_head.scratch.output_conv2.0", "head.conv2", both
    yield "head.output.2", "depth_head.scratch.output_conv2.2", "head.conv3", both


def _encoder(state: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((key.removeprefix(prefix), value) for key, value in state.items() if key.startswith(prefix))


def _is_gated(state: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether the encoder's MLP is a SwiGLU (ViT-g): its first layer then makes twice what its second reads."""
    first, second = state[f"{prefix}blocks.0.mlp.fc1.weight"], state[f"{prefix}blocks.0.mlp.fc2.weight"]
    return first.shape[0] == 2 * second.shape[1]


def _swiglu(name: str, form: str, gated: bool) -> str:
    if not gated:
        return name
    first, second = _SWIGLU[form]
    return name.replace("mlp.fc1.", first).replace("mlp.fc2.", second)


def _to_transformers_encoder(name: str, value: Tensor, gated: bool) -> Iterator[tuple[str, Tensor]]:
    found = _BLOCK.fullmatch(name)
    if found is None:
        yield _STEM[name], value
        return
    layer, part = f"encoder.layer.{found[1]}.", found[2]
    if part.startswith("attn.qkv."):
        for theirs, third in zip(("query", "key", "value"), value.chunk(3)):
            yield f"{layer}attention.attention.{theirs}.{part.removeprefix('attn.qkv.')}", third
        return
    for own, theirs in _PART.items():
        part = part.replace(own, theirs)
    yield layer + _swiglu(part, "transformers", gated), value


def _from_transformers_encoder(name: str) -> str:
    stem = {theirs: own for own, theirs in _STEM.items()}
    found = _LAYER.fullmatch(name)
    if found is None:
        return stem.get(name, name)
    part = found[2]
    for own, theirs in _PART.items():
        part = part.replace(theirs, own)
    part = part.replace("mlp.weights_in.", "mlp.fc1.").replace("mlp.weights_out.", "mlp.fc2.")
    return f"blocks.{found[1]}.{part}"


def _with_unused(renamed: dict[str, Tensor], own: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    width = own["head.reduce.weight"].shape[1]
    first, second = ("conv1", "conv2") if form == "original" else ("convolution1", "convolution2")
    for unit in (first, second):
        renamed[f"{_UNUSED_UNIT[form]}{unit}.weight"] = torch.zeros(width, width, 3, 3)
        renamed[f"{_UNUSED_UNIT[form]}{unit}.bias"] = torch.zeros(width)
    if form == "original":
        renamed["pretrained.mask_token"] = torch.zeros(1, own[OWN_ENCODER + "cls_token"].shape[-1])
    return renamed


def _without_unused(own: dict[str, Tensor], form: str) -> dict[str, Tensor]:
    unused = (f"decoder.fusion.{_COARSEST}.skip_unit.", OWN_ENCODER + "mask_token", OWN_ENCODER + "embeddings.mask_token", "_mean", "_std")
    return {name: value for name, value in own.items() if not name.startswith(unused)}
