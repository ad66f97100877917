"""A prompt-free network as a function of plain tensors that ``torch.export`` can follow at any image size.

Legend: ``B`` images, ``H W`` pixels; C is canonical inverse depth f_px / (W * depth_m).
"""

from __future__ import annotations

import copy
import types
from typing import Any

import torch
from jaxtyping import Float
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from mdpretrain.geometry.canonical import depth_from_canonical_inverse_where_known
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace

_VALUES = {  # a prediction's values by its space
    DepthSpace.METRIC: "depth_m",
    DepthSpace.CANONICAL_INVERSE: "canonical_inverse_depth",
    DepthSpace.SCALE_INVARIANT: "depth_scale_invariant",
    DepthSpace.AFFINE_INVARIANT: "inverse_depth_affine_invariant",
}


def named_outputs(prediction: DepthPrediction) -> dict[str, Tensor]:
    """What a network itself gives, by name: its values, and the focal length if it reads one off the image."""
    values = {_VALUES[prediction.space]: prediction.values}
    return values if prediction.estimated_f_px is None else values | {"estimated_f_px": prediction.estimated_f_px}


class ImageToDepth(nn.Module):
    """Image -> the network's ``named_outputs``.

    Args:
        network: a prompt-free network; it is copied, and what ``torch.export`` cannot follow is replaced in the copy by its equal.
    """

    inputs: tuple[str, ...] = ("image",)

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = followable(network)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, ...]:
        return tuple(named_outputs(self.network(batch_of_images(image))).values())


class ImageToMetricDepth(ImageToDepth):
    """Image and focal length -> depth in metres (0 in an image whose ``f_px`` is not a positive number), and C itself."""

    inputs = ("image", "f_px")

    def forward(  # type: ignore[override]
        self, image: Float[Tensor, "B 3 H W"], f_px: Float[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, "B 1 H W"]]:
        (canonical,) = super().forward(image)
        width = torch.ones_like(f_px) * image.shape[-1]
        depth_m, _ = depth_from_canonical_inverse_where_known(canonical, f_px, width)
        return depth_m, canonical


def batch_of_images(image: Float[Tensor, "B 3 H W"]) -> DepthBatch:
    """Images of which nothing else is known, as a batch."""
    flag = image[:, 0, 0, 0] < -torch.inf  # false, one per image
    number = flag.long()
    nothing = torch.zeros_like(image[:, :1])
    return DepthBatch(
        image=image,
        depth=nothing,
        valid=nothing > 0,
        sky=nothing > 0,
        intrinsics=image.new_full((image.shape[0], 3, 3), torch.nan),
        camera_known=flag,
        metric=flag,
        depth_is_ray=flag,
        label_kind=number,
        position=number,
        key=[],
        source=[],
    )


def prediction_of(network: nn.Module, image: Float[Tensor, "B 3 H W"]) -> DepthPrediction:
    """The network's whole prediction of images alone."""
    with torch.no_grad():
        return network(batch_of_images(image))


def followable(network: nn.Module) -> nn.Module:
    """A copy of a network in which sizes stay symbols.

    timm's DINOv3 rotation makes its grid by ``arange(0.5, size)``, whose length torch takes for a constant; here it is
    ``arange(size) + 0.5``, the same numbers.
    """
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        if isinstance(module, RotaryEmbeddingDinoV3) and module.normalize_coords == "separate" and module.grid_indexing == "ij":
            module._create_embed = types.MethodType(_rotations, module)  # type: ignore[method-assign]
    return network


def _rotations(module: Any, feat_shape: Any, no_aug: bool = False) -> Float[Tensor, "N D"]:
    """``RotaryEmbeddingDinoV3._create_embed`` in evaluation: (sine, cosine) of every cell of a grid of rows x columns."""
    rows, columns = (
        2.0 * ((torch.arange(size, device=module.periods.device).float() + 0.5 + module.grid_offset) / size) - 1.0 for size in feat_shape
    )
    coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat(module._get_pos_embed_from_coords(coordinates), dim=-1)
