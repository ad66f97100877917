"""Photographs at a network's size, as the batch that evaluation would make of them, and depth brought back to their own size.

The colour goes through the same resampling as in training and evaluation (``data.resample.resize_box``: the mean over each pixel's area
where it shrinks, linear where it grows). Two things differ from an evaluation: the whole image is always shown (``--image-size`` squeezes
it, where an evaluation cuts the centre out), and a JPEG is decoded at full size, for its files are written at that size, where an
evaluation lets the decoder shrink a large one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data_shards.schema import LABEL_KINDS, LabelKind
from mdpretrain.data.collate import collate
from mdpretrain.data.colour import to_unit_float
from mdpretrain.data.crops import View, whole_view
from mdpretrain.data.pipeline import Row
from mdpretrain.data.resample import resize_box
from mdpretrain.geometry.cameras import intrinsics_matrix
from mdpretrain.inference.photographs import Photograph, place_prompt
from mdpretrain.networks.transformers_depth import TransformersDepth
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.structures import DepthBatch

UNKNOWN = (float("nan"),) * 4
DEFAULT_LONG_SIDE = 518


@dataclasses.dataclass(frozen=True)
class NetworkSize:
    """The size at which the network sees an image.

    ``image_size`` (height, width) exactly; else the image's aspect with its long side near ``long_side``; else, both None, the image's own.
    The last two are rounded to multiples of what the network works in.
    """

    long_side: int | None = DEFAULT_LONG_SIDE
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.long_side is not None and self.long_side < 1:
            raise ValueError(f"--long-side {self.long_side}: give a positive number of pixels")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"--image-size {self.image_size[0]} {self.image_size[1]}: give positive numbers of pixels")

    def view(self, image_size: tuple[int, int], multiple: int) -> View:
        """The whole of an image of (width, height) at the network's size."""
        if self.image_size is not None:
            return View(0, 0, image_size[0], image_size[1], *self.image_size)
        return whole_view(image_size, max(self.long_side or max(image_size), multiple), multiple)


def usual_long_side(network: nn.Module) -> int:
    """The long side in pixels at which a network is given images, unless told otherwise: not below what it resizes every image to itself.

    A smaller one would be enlarged again before the first layer, its detail gone. 518 for a network that takes any size; of a transformers
    model that is told its short side, twice that, so that images of up to 2 : 1 still shrink to it.
    """
    if isinstance(network, TransformersDepth):
        return max(DEFAULT_LONG_SIDE, network.input.fixed_size or 2 * network.input.short_side)
    own_size = getattr(getattr(network, "encoder", None), "input_size", None) or ()
    return max((DEFAULT_LONG_SIDE, *own_size))


def photograph_batch(photos: Sequence[Photograph], views: Sequence[View], prompts_m: Sequence[np.ndarray] | None = None) -> DepthBatch:
    """A batch without ground truth; each camera is scaled with its image.

    Args:
        photos: of any sizes.
        views: each whole photograph at the network's size, which is the same for all.
        prompts_m: a prompt in metres (any resolution, 0 = not measured) for each, or None for no prompts.
    """
    prompts = [None] * len(photos) if prompts_m is None else prompts_m
    return collate([_row(*of_one) for of_one in zip(photos, views, range(len(photos)), prompts, strict=True)])


def _row(photo: Photograph, view: View, position: int, prompt_m: np.ndarray | None) -> Row:
    camera = None if photo.camera is None else view.camera(photo.camera)
    nothing = np.zeros((view.out_height, view.out_width), np.float32)
    row = Row(
        image=to_unit_float(resize_box(photo.pixels, view, 1)),
        depth=nothing,
        valid=nothing > 0,
        sky=nothing > 0,
        intrinsics=intrinsics_matrix(*(UNKNOWN if camera is None else dataclasses.astuple(camera))).numpy(),
        camera_known=camera is not None,
        metric=True,
        depth_is_ray=False,
        label_kind=LABEL_KINDS.index(LabelKind.CAPTURED),
        position=position,
        key=photo.name,
        source="photograph",
    )
    if prompt_m is not None:
        row.prompt_depth_m, row.prompt_mask = place_prompt(prompt_m, view.out_height, view.out_width)
        row.interpolated_inverse_depth = linear_inverse_depth(row.prompt_depth_m, row.prompt_mask)
    return row


def enlarge_depth(depth_m: Float[Tensor, "B 1 h w"], height: int, width: int) -> Float[Tensor, "B 1 H W"]:
    """Bilinear resize of 1 / depth_m, in which a plane stays a plane, returned as depth."""
    return 1.0 / F.interpolate(1.0 / depth_m.clamp(min=1e-6), size=(height, width), mode="bilinear", align_corners=False)


def enlarge_mask(mask: Bool[Tensor, "B 1 h w"], height: int, width: int) -> Bool[Tensor, "B 1 H W"]:
    """Each pixel has the value of the one that its centre falls into."""
    return F.interpolate(mask.float(), size=(height, width), mode="nearest-exact") > 0.5
