"""MetricAnything's released Student-DepthMap and ours: the same tensors under two lists of names (spec 1.6; models/student_depthmap).

Two things are not one to one. The release keeps the biases of query, key and value in one vector, with a mask over it that is 0 for the
keys: ours are three, masked on the way in, and the mask is written anew on the way out. And the release counts the hooked maps by block
and the rest apart, where our levels run from fine to coarse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

RELEASED_BACKBONE, OWN_BACKBONE = "encoder.patch_encoder.", "encoder.backbone."
HOOKS = 4  # maps of blocks 7, 13, 19 and 25; level 0 is the final features, levels 1 to 4 these from deep to shallow
LEVELS = HOOKS + 3
MOST_DOUBLINGS = 3  # of the finest level
HEAD_LAYERS = (2, 4, 6, 8, 10, 12)  # places of the head's convolutions at full resolution; ReLUs lie between
_BIASES = ("q_bias", "k_bias", "v_bias")
_BACKBONE_PARTS = (  # released -> timm
    ("storage_tokens", "reg_token"),
    ("rope_embed.periods", "rope.periods"),
    (".ls1.gamma", ".gamma_1"),
    (".ls2.gamma", ".gamma_2"),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.w3.", ".mlp.fc2."),
)
_FUSION_PARTS = (  # released -> ours
    ("resnet1.residual.1.", "skip_unit.first."),
    ("resnet1.residual.3.", "skip_unit.second."),
    ("resnet2.residual.1.", "refine.first."),
    ("resnet2.residual.3.", "refine.second."),
    ("deconv.", "upsample."),
    ("out_conv.", "project."),
)


def to_release(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state as the release's; tensors may lie on the meta device.

    Raises:
        KeyError: a name that the release has no place for.
    """
    released = {}
    for name, value in own.items():
        found = re.fullmatch(re.escape(OWN_BACKBONE) + r"(blocks\.\d+\.attn\.)[qkv]_bias", name)
        if found is None:
            released[_released_name(name)] = value
        elif name.endswith("q_bias"):
            parts = [own[OWN_BACKBONE + found[1] + bias] for bias in _BIASES]
            released[f"{RELEASED_BACKBONE}{found[1]}qkv.bias"] = torch.cat(parts)
            mask = [torch.zeros_like(part) if bias == "k_bias" else torch.ones_like(part) for bias, part in zip(_BIASES, parts)]
            released[f"{RELEASED_BACKBONE}{found[1]}qkv.bias_mask"] = torch.cat(mask)
    return released


def from_release(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The release's state as ours.

    Raises:
        KeyError: a name that ours has no place for, or a mask without its bias.
        ValueError: a mask that was never filled.
    """
    own = {}
    for name, value in released.items():
        found = re.fullmatch(re.escape(RELEASED_BACKBONE) + r"(blocks\.\d+\.attn\.)qkv\.(bias|bias_mask)", name)
        if found is None:
            own[_own_name(name)] = value
        elif found[2] == "bias":
            masked = value * released[name + "_mask"]
            if not masked.is_meta and not bool(masked.isfinite().all()):
                raise ValueError(f"{name}_mask is not finite: the network was saved before DINOv3's weights were loaded into it")
            own |= {OWN_BACKBONE + found[1] + bias: part for bias, part in zip(_BIASES, masked.chunk(3), strict=True)}
    return own


def _released_name(name: str) -> str:
    turned = [(own, released) for released, own in _BACKBONE_PARTS]
    return _exchanged(name, OWN_BACKBONE, RELEASED_BACKBONE, turned, ((own, released) for released, own in _modules()))


def _own_name(name: str) -> str:
    return _exchanged(name, RELEASED_BACKBONE, OWN_BACKBONE, _BACKBONE_PARTS, _modules())


def _exchanged(name: str, backbone: str, new_backbone: str, parts: Iterable[tuple[str, str]], modules: Iterable[tuple[str, str]]) -> str:
    """A name of one list in the other: in the backbone by its parts, behind it by what it begins with; both as (old, new)."""
    if name.startswith(backbone):
        inner = name.removeprefix(backbone)
        for old, new in parts:
            inner = inner.replace(old, new)
        return new_backbone + inner
    for old, new in modules:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise KeyError(name)


def _modules() -> Iterator[tuple[str, str]]:
    """(released, ours): what stands before ``weight`` or ``bias`` of every layer behind the backbone."""
    hooked = [f"encoder.upsample_latent{HOOKS - level}" for level in range(1, HOOKS + 1)]  # deep blocks feed fine levels
    for level, released in enumerate(["encoder.upsample0", *hooked, "encoder.upsample1", "encoder.upsample2"]):
        own = f"decoder.reassemble.{level}"
        yield f"{released}.0.", f"{own}.project."
        for doubling in range(MOST_DOUBLINGS):
            yield f"{released}.{doubling + 1}.", f"{own}.resize.{doubling}."
        yield f"decoder.convs.{level}.", f"{own}.smooth."
        for theirs, ours in _FUSION_PARTS:
            yield f"decoder.fusions.{level}.{theirs}", f"decoder.fusion.{level}.{ours}"
    coarsest = f"decoder.reassemble.{LEVELS - 1}"
    yield "encoder.upsample_lowres.", f"{coarsest}.second_way."
    yield "encoder.fuse_lowres.", f"{coarsest}.join."
    yield "head.0.", "head.reduce."
    yield "head.1.", "head.upsample."
    for layer in HEAD_LAYERS:
        yield f"head.{layer}.", f"head.output.{layer - 2}."
