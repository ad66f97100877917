"""Any timm vision transformer, ConvNeXt or ResNet as a dense image encoder.

Legend: ``B`` batch, ``H W`` image pixels, ``C`` channels, ``h w`` cells of the feature grid.
"""

from __future__ import annotations

import mdpretrain.compat  # noqa: F401  (before timm)

# isort: split
import dataclasses
import difflib
import logging
import pathlib
import types
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import resample_abs_pos_embed
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mdpretrain.networks.encoders.dinov3_release import WITHOUT_EFFECT, keep_released_tensors
from mdpretrain.networks.encoders.local_weights import load_local_weights
from mdpretrain.networks.encoders.padding import Padding, PaddingSide

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PositionResize = Literal["antialiased", "bicubic"]

_DYNAMIC_SIZE_MODULES = ("timm.models.vision_transformer", "timm.models.eva")
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class EncodedImage:
    """Features of the *padded* image, shallow to deep, and how to come back to the image itself.

    ``features[i]`` is ``[B, C_i, H' / stride_i, W' / stride_i]`` where ``(H', W') = padding.padded_size``, or the encoder's
    ``input_size`` where it has one: then nothing is padded, and the features' grid covers the image at another density.
    ``class_tokens[i]`` is ``[B, C_i]`` at the same depth; None for an encoder without class token.
    """

    features: list[Tensor]
    class_tokens: list[Tensor] | None
    padding: Padding


class TimmEncoder(nn.Module):
    """Hooked features of a timm model at any input size.

    Args:
        model_name: timm's name, e.g. ``vit_small_patch14_dinov2``, ``vit_base_patch16_dinov3``, ``convnext_tiny``.
        layers: blocks (ViT) or stages (ConvNeXt, ResNet) whose outputs are returned, ascending, from 0. Blocks after the last one
            are removed, so every trainable parameter takes part in the output.
        model_args: arguments for timm's constructor (``embed_dim``, ``depth``, ``num_heads``, ...), e.g. to shrink a model.
        weights: local safetensors / pth file; null is a random initialisation (said in the log). Never a download.
        frozen: no gradients, and evaluation mode even under ``.train()``.
        final_norm: apply the model's last normalisation to every hooked feature (Depth Anything does, AnyDepth does not).
        padding: where an image that is not a multiple of the patch is padded (with the mean colour).
        gradient_checkpointing: recompute blocks in the backward pass.
        input_size: (height, width) that every image is resized to (bilinear, antialiased) before the backbone sees it, as Depth
            Pro works at one size; null: the image's own size. Predictions still come at the image's size.
        position_resize: how learned position embeddings meet another grid: "antialiased" as timm does, or plain "bicubic" as DINOv2
            and Depth Anything do. At the embeddings' own grid there is no difference; weights trained one way want that way.
        dinov3_release: keep the tensors of DINOv3's release that timm leaves out (see ``dinov3_release``); for released checkpoints.

    Attributes:
        channels, strides: per hooked feature. ``stride`` is the coarsest, to a multiple of which images are padded.

    Raises:
        ValueError: unknown model, layers or arguments; weights that are missing or of another network; an input size off the stride;
            "bicubic" for a model without learned position embeddings, or that adds them in another way than timm's VisionTransformer;
            ``dinov3_release`` for another model than timm's DINOv3 with biases.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model_name: str,
        layers: list[int],
        model_args: dict[str, Any] | None = None,
        weights: str | pathlib.Path | None = None,
        frozen: bool = False,
        final_norm: bool = True,
        padding: PaddingSide = "centre",
        gradient_checkpointing: bool = False,
        input_size: tuple[int, int] | None = None,
        position_resize: PositionResize = "antialiased",
        dinov3_release: bool = False,
    ) -> None:
        super().__init__()
        self.model_name, self.layers, self.frozen, self.final_norm, self.padding = model_name, list(layers), frozen, final_norm, padding
        self.position_resize = position_resize
        backbone = _build_backbone(model_name, model_args or {})
        if weights is not None:
            load_local_weights(backbone, weights, model_name)
        elif not next(backbone.parameters()).is_meta:  # on meta nothing starts at all: it is only counted
            _log.log(logging.WARNING if frozen else logging.INFO, "encoder %s starts from a random initialisation", model_name)
        information = _feature_information(backbone, self.layers, model_name)
        self.channels: list[int] = [entry["num_chs"] for entry in information]
        self.strides: list[int] = [entry["reduction"] for entry in information]
        self.stride: int = max(self.strides)
        self.input_size = None if input_size is None else _checked_size(input_size, self.stride)
        self._has_prefix = getattr(backbone, "num_prefix_tokens", 0) > 0
        self.has_class_token: bool = getattr(backbone, "cls_token", None) is not None
        backbone.prune_intermediate_layers(self.layers, prune_norm=not final_norm, prune_head=True)
        if dinov3_release:
            keep_released_tensors(backbone, model_name)
        if gradient_checkpointing:
            backbone.set_grad_checkpointing(True)
        if position_resize == "bicubic":
            if getattr(backbone, "pos_embed", None) is None:
                raise ValueError(f"position_resize 'bicubic' is for learned position embeddings, which {model_name!r} does not have")
            if (
                getattr(type(backbone), "_pos_embed", None) is not VisionTransformer._pos_embed
            ):  # EVA's also gives rotations, DeiT's a token
                raise ValueError(
                    f"position_resize 'bicubic' is for timm's VisionTransformer, and {model_name!r} is a {type(backbone).__name__}"
                )
            backbone._pos_embed = types.MethodType(_add_positions, backbone)
        # called as a module, so that hooks on the backbone itself fire: ZeRO-3 gathers its class token in one
        backbone.forward = backbone.forward_intermediates
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def encode(self, image: Float[Tensor, "B 3 H W"]) -> EncodedImage:
        """Features, class tokens and padding of an sRGB image in [0, 1] of any size."""
        padding = Padding.to_multiple(image.shape[-2], image.shape[-1], self.stride if self.input_size is None else 1, self.padding)
        if self.input_size is not None:
            image = resized(image, self.input_size)
        padded = padding.pad_zeros((image - self.mean) / self.std)
        options: dict[str, Any] = {"return_prefix_tokens": True} if self._has_prefix else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            outputs = self.backbone(padded, indices=self.layers, norm=self.final_norm, stop_early=True, intermediates_only=True, **options)
        if not self._has_prefix:
            return EncodedImage(list(outputs), None, padding)
        tokens = [prefix[:, 0] for _, prefix in outputs] if self.has_class_token else None
        return EncodedImage([feature for feature, _ in outputs], tokens, padding)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The hooked features alone, shallow to deep; see ``encode``."""
        return self.encode(image).features

    def train(self, mode: bool = True) -> TimmEncoder:
        """A frozen encoder stays in evaluation mode (dropout, stochastic depth and batch statistics stay off)."""
        return super().train(mode and not self.frozen)

    def requires_grad_(self, requires_grad: bool = True) -> TimmEncoder:
        """What has no effect (see ``dinov3_release``) never asks for a gradient, which it would not get."""
        super().requires_grad_(requires_grad)
        for name, parameter in self.named_parameters():
            if name.endswith(WITHOUT_EFFECT):
                parameter.requires_grad_(False)
        return self

    def layer_ids(self) -> dict[str, int]:
        """Each parameter's layer, by timm's count: 0 the patch embedding and what is added to it, then the blocks with the last norm."""
        return {
            f"backbone.{name}": layer
            for name, layer in group_parameters(self.backbone, self.backbone.group_matcher(), reverse=True).items()
        }

    def reload_config(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint holds the weights itself: rebuilding from it must not look for the first weights file again.

        Nor is recomputation part of what the network is.
        """
        return {**recorded, "init_args": {**recorded["init_args"], "weights": None, "gradient_checkpointing": False}}


def resized(image: Float[Tensor, "B 3 H W"], size: tuple[int, int]) -> Float[Tensor, "B 3 H2 W2"]:
    """Bilinear, antialiased; an image of this size is returned as it is.

    A size that is a symbol (``torch.export``) is not compared, which would make it a constant: such a resize is the identity anyway.
    """
    height, width = image.shape[-2:]
    if isinstance(height, int) and isinstance(width, int) and (height, width) == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True)


def _add_positions(backbone: Any, patches: Float[Tensor, "B h w C"]) -> Float[Tensor, "B N C"]:
    """timm's ``_pos_embed`` of a ViT, with embeddings resized by plain bicubic interpolation."""
    rows, columns = patches.shape[1:3]
    own = 0 if backbone.no_embed_class else backbone.num_prefix_tokens  # prefix tokens that have a position of their own
    grid = backbone.patch_embed.grid_size
    positions = resample_abs_pos_embed(backbone.pos_embed, [rows, columns], grid, num_prefix_tokens=own, antialias=False)
    tokens = patches.flatten(1, 2) + positions[:, own:]
    prefix = [token.expand(tokens.shape[0], -1, -1) for token in (backbone.cls_token, backbone.reg_token) if token is not None]
    if prefix:
        first = torch.cat(prefix, dim=1)
        tokens = torch.cat([first + positions[:, :own] if own else first, tokens], dim=1)
    return backbone.pos_drop(tokens)


def _checked_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    height, width = size
    if height < stride or width < stride or height % stride or width % stride:
        raise ValueError(f"encoder input_size {height} x {width}: both must be positive multiples of the encoder's stride {stride}")
    return int(height), int(width)


def _build_backbone(model_name: str, model_args: dict[str, Any]) -> Any:
    if not timm.is_model(model_name):
        near = difflib.get_close_matches(model_name, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {model_name!r}; the nearest names are {near}")
    options: dict[str, Any] = {"num_classes": 0, **model_args}
    if timm.model_entrypoint(model_name).__module__ in _DYNAMIC_SIZE_MODULES:
        options = {"dynamic_img_size": True, **options}
    try:
        return timm.create_model(model_name, pretrained=False, **options)
    except TypeError as error:
        raise ValueError(f"model_args {sorted(model_args)} do not fit timm's {model_name!r}: {error}") from error


def _feature_information(backbone: nn.Module, layers: list[int], model_name: str) -> list[dict[str, Any]]:
    information = getattr(backbone, "feature_info", None)
    if information is None or not hasattr(backbone, "prune_intermediate_layers"):
        raise ValueError(f"timm's {model_name!r} does not give intermediate features; choose a ViT, a ConvNeXt or a ResNet")
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(information):
        raise ValueError(f"layers {layers} of {model_name!r} must ascend within 0..{len(information) - 1}")
    return [information[layer] for layer in layers]
