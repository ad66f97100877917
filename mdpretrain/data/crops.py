"""Which part of a sample is seen: a box in the colour image, an output size, a flip, and the camera that belongs to them.

Pixel coordinates are continuous, the first pixel's centre is (0.5, 0.5) (``data_shards.schema``). Output coordinate u and
colour coordinate x are related by ``x = left + u * width / out_width`` and, flipped, ``u = out_width - u'``; the camera follows
exactly, so a crop changes no viewing ray. Depth maps of any resolution are addressed through the same relation.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np

from data_shards.schema import Camera


@dataclasses.dataclass(frozen=True)
class View:
    """The box ``[left, left + width] x [top, top + height]`` in whole colour pixels, shown at ``out_height x out_width``."""

    left: int
    top: int
    width: int
    height: int
    out_height: int
    out_width: int
    flip: bool = False

    def reduction(self) -> int:
        """The largest of 8, 4, 2 and 1 at which a jpg may be decoded smaller and still not be smaller than the output."""
        spare = min(self.width // self.out_width, self.height // self.out_height)
        return next(factor for factor in (8, 4, 2, 1) if factor <= max(spare, 1))

    def camera(self, camera: Camera) -> Camera:
        """The camera of the output image."""
        scale_x, scale_y = self.out_width / self.width, self.out_height / self.height
        cx = (camera.cx - self.left) * scale_x
        return Camera(
            fx=camera.fx * scale_x,
            fy=camera.fy * scale_y,
            cx=self.out_width - cx if self.flip else cx,
            cy=(camera.cy - self.top) * scale_y,
        )

    def grid(self, image_size: tuple[int, int], map_shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Where the output's pixel centres lie in a map that covers the same field of view as the colour image.

        Args:
            image_size: (width, height) of the whole colour image.
            map_shape: (height, width) of the map.

        Returns:
            ``(x, y)``: float64 ``(out_width,)`` and ``(out_height,)`` in pixels of the map.
        """
        u = (np.arange(self.out_width) + 0.5) * (self.width / self.out_width) + self.left
        v = (np.arange(self.out_height) + 0.5) * (self.height / self.out_height) + self.top
        x, y = u * (map_shape[1] / image_size[0]), v * (map_shape[0] / image_size[1])
        return (x[::-1] if self.flip else x), y

    def footprint(self, image_size: tuple[int, int], map_shape: tuple[int, int]) -> tuple[float, float]:
        """(width, height) of one output pixel in pixels of such a map."""
        return (
            self.width / self.out_width * map_shape[1] / image_size[0],
            self.height / self.out_height * map_shape[0] / image_size[1],
        )


def covering_view(image_size: tuple[int, int], out_size: tuple[int, int]) -> View:
    """The largest centred box of the output's aspect: resize to cover, crop the rest. Sizes: (width, height), (height, width)."""
    width, height = largest_box(image_size, out_size[1] / out_size[0])
    return _on_decoding_grid(View((image_size[0] - width) // 2, (image_size[1] - height) // 2, width, height, *out_size))


@dataclasses.dataclass(frozen=True)
class Cut:
    """How a benchmark cuts its images: scaled as a whole to ``rows`` rows (None: not scaled), then a box of the output's size cut out.

    The box is centred; with ``vertical`` "bottom" it ends with the image's last row.
    """

    rows: int | None = None
    vertical: Literal["centre", "bottom"] = "centre"


class ImageSmallerThanCut(ValueError):
    """An image is not what the benchmark's cut is made for: a mistake of the request, and no damage of the sample."""


def cut_view(image_size: tuple[int, int], out_size: tuple[int, int], cut: Cut) -> View:
    """The box that a benchmark looks at. Sizes: (width, height), (height, width).

    The box is in whole colour pixels, so that a scale that is no whole number is kept to half a pixel at the border (the camera is exact).

    Raises:
        ImageSmallerThanCut: the scaled image is smaller than the output.
    """
    scale = 1.0 if cut.rows is None else image_size[1] / cut.rows
    width, height = round(out_size[1] * scale), round(out_size[0] * scale)
    if width > image_size[0] or height > image_size[1]:
        scaled = "" if cut.rows is None else f", scaled to {cut.rows} rows,"
        raise ImageSmallerThanCut(
            f"an image of {image_size[0]} x {image_size[1]} pixels{scaled} is smaller than the protocol's cut of "
            f"{out_size[1]} x {out_size[0]}; choose another protocol, or give --image-size to evaluate at a size of your own"
        )
    top = image_size[1] - height if cut.vertical == "bottom" else (image_size[1] - height) // 2
    return _on_decoding_grid(View((image_size[0] - width) // 2, top, width, height, *out_size))


def whole_view(image_size: tuple[int, int], long_side: int, multiple: int) -> View:
    """The whole image, its long side near ``long_side`` and both sides multiples of ``multiple``.

    The aspect changes by the rounding to multiples (fx and fy are scaled by their own factors, so the camera stays exact).
    """
    if long_side < multiple:
        raise ValueError(f"long_side {long_side} is smaller than multiple {multiple}; choose a larger long_side")
    scale = long_side / max(image_size)
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in image_size)
    return View(0, 0, image_size[0], image_size[1], height, width)


def random_view(
    image_size: tuple[int, int],
    out_size: tuple[int, int],
    crop: tuple[float, float],
    stretch: float,
    flip: float,
    rng: np.random.Generator,
) -> View:
    """A random box of (nearly) the output's aspect; always consumes five numbers of ``rng``.

    Args:
        image_size: (width, height) of the colour image.
        out_size: (height, width) of the output.
        crop: the box's side as a fraction of the largest box that fits, uniform in this range.
        stretch: the box's aspect over the output's is log-uniform in [1 / stretch, stretch]; 1 keeps squares square, up to
            the rounding of the box to whole pixels, less than one output pixel over its width (which the camera follows).
        flip: probability of mirroring left and right.
    """
    fraction = rng.uniform(*crop)
    aspect = out_size[1] / out_size[0] * math.exp(rng.uniform(-1, 1) * math.log(stretch))
    largest_width, largest_height = largest_box(image_size, aspect)
    width, height = max(1, round(largest_width * fraction)), max(1, round(largest_height * fraction))
    left = int(rng.random() * (image_size[0] - width + 1))
    top = int(rng.random() * (image_size[1] - height + 1))
    return _on_decoding_grid(View(left, top, width, height, *out_size, flip=bool(rng.random() < flip)))


def largest_box(image_size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """(width, height) in whole pixels of the largest box of width / height = ``aspect`` inside the image."""
    width, height = image_size
    if width > height * aspect:
        return max(1, round(height * aspect)), height
    return width, max(1, min(height, round(width / aspect)))


def _on_decoding_grid(view: View) -> View:
    """The box with its edges on multiples of its reduction, so that they are whole pixels of the smaller decoded image, too."""
    factor = view.reduction()
    left, top, width, height = (edge // factor * factor for edge in (view.left, view.top, view.width, view.height))
    return dataclasses.replace(view, left=left, top=top, width=width, height=height)
