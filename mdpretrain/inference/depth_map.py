"""What a prediction of one image is."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from mdpretrain.inference.formats import WriteOptions
from mdpretrain.inference.photographs import Photograph
from mdpretrain.inference.point_cloud import has_depth, unproject_pixels
from mdpretrain.inference.writers import HowPredicted, write_prediction


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DepthMap:
    """Depth of one image at the image's own size.

    Attributes:
        depth_m: float32 (H, W), metres along the optical axis (z, not the length of the ray); NaN where the network sees no surface.
        photo: the image, upright, and its focal length.
        how: the network behind it.
    """

    depth_m: np.ndarray
    photo: Photograph
    how: HowPredicted

    @property
    def image(self) -> np.ndarray:
        """uint8 (H, W, 3) RGB, upright."""
        return self.photo.pixels

    @property
    def f_px(self) -> float | None:
        """Focal length in pixels of the image; None where it is neither known nor needed nor estimated."""
        return self.photo.f_px

    @property
    def f_px_source(self) -> str:
        """Where ``f_px`` is from: the caller, EXIF, or the estimate of a network, by name."""
        return self.photo.f_px_source

    def points(self) -> np.ndarray:
        """The point of every pixel, float32 (H, W, 3), metres, x right, y down, z forward; NaN where there is no depth.

        Raises:
            ValueError: the focal length is unknown.
        """
        if self.photo.camera is None:
            raise ValueError(f"{self.photo.name}: points need the focal length; give focal_px, in pixels of the image")
        return unproject_pixels(self.depth_m, self.photo.camera)

    def save(self, folder: str | pathlib.Path, stem: str | None = None, write: Sequence[str] | None = None) -> list[pathlib.Path]:
        """Write ``STEM.npy``, ``STEM_mm.png``, ``STEM_colour.png``, ``STEM.ply`` and ``STEM.json``, or other formats.

        Args:
            folder: made if absent.
            stem: beginning of the file names; the image's own when left out.
            write: names of formats (``mdpretrain.inference.formats.FORMATS``): npy, png16, exr, colour, ply, glb.

        Returns:
            The files. A point cloud or a mesh is left out where the focal length is unknown.

        Raises:
            ValueError: an unknown format, a missing library, or a file that cannot be written.
        """
        options = WriteOptions() if write is None else WriteOptions(tuple(write))
        stem = stem or pathlib.Path(self.photo.name).stem
        return write_prediction(pathlib.Path(folder), stem, self.depth_m, self.photo, self.how, options).files

    def __repr__(self) -> str:
        depth = self.depth_m[has_depth(self.depth_m)]
        span = f"{depth.min():.3g} to {depth.max():.3g} m" if depth.size else "no depth"
        focal = "unknown" if self.f_px is None else f"{self.f_px:.1f} px"
        width, height = self.photo.size
        return f"DepthMap({pathlib.Path(self.photo.name).name}, {width} x {height}, {span}, focal length {focal}: {self.f_px_source})"
