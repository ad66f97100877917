"""Padding an image to a multiple of the encoder's patch, and cutting the padding off again, exactly.

AnyDepth (and DINOv2's depth evaluation before it) pads on both sides, the odd pixel going right / bottom ("centre"); the
alternative pads right and bottom only, so that pixel (0, 0) stays where it was ("right_bottom").
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PaddingSide = Literal["centre", "right_bottom"]


@dataclasses.dataclass(frozen=True)
class Padding:
    """How an ``height`` x ``width`` image sits inside its padded version; all numbers are whole pixels."""

    height: int
    width: int
    top: int
    bottom: int
    left: int
    right: int

    @staticmethod
    def to_multiple(height: int, width: int, multiple: int, side: PaddingSide = "centre") -> Padding:
        """The least padding after which both sides are multiples of ``multiple``."""
        rows, columns = -height % multiple, -width % multiple
        top, left = (rows // 2, columns // 2) if side == "centre" else (0, 0)
        return Padding(height, width, top, rows - top, left, columns - left)

    @property
    def padded_size(self) -> tuple[int, int]:
        """(height, width) after padding."""
        return self.top + self.height + self.bottom, self.left + self.width + self.right

    def pad_zeros(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        """Zeros around: for normalised images (0 is the mean colour) and for masks."""
        return image if self._is_empty else F.pad(image, (self.left, self.right, self.top, self.bottom))

    def pad_replicate(self, values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H2 W2"]:
        """The border's value continued outwards: for value maps, in which an invented 0 would be a measurement."""
        if self._is_empty:
            return values
        mode = "replicate" if values.shape[1] else "constant"  # torch refuses to replicate no channels
        return F.pad(values, (self.left, self.right, self.top, self.bottom), mode=mode)

    def crop(self, padded: Float[Tensor, "B C H2 W2"]) -> Float[Tensor, "B C H W"]:
        """The inverse of both paddings."""
        return padded[..., self.top : self.top + self.height, self.left : self.left + self.width]

    @property
    def _is_empty(self) -> bool:
        return (self.top, self.bottom, self.left, self.right) == (0, 0, 0, 0)
