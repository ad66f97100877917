"""From a maker's numbers to float32 metres with NaN for 'not measured'."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta, check_depth
from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_files import ColourImage


def depth_from_codes(codes: np.ndarray, codes_per_metre: float, invalid: tuple[int, ...] = (0,)) -> np.ndarray:
    """``codes / codes_per_metre`` as float32 (same shape), NaN where the code is one of ``invalid``."""
    depth_m = (codes.astype(np.float64) / codes_per_metre).astype(np.float32)
    depth_m[np.isin(codes, invalid)] = np.nan
    return depth_m


def rotate_bits_right(codes: np.ndarray, count: int) -> np.ndarray:
    """Every uint16 with its bits rotated right by ``count`` (1..15): the inverse of the rotation to the left by which SUN3D and the
    APC toolbox make a depth png look less dark."""
    assert codes.dtype == np.uint16 and 1 <= count <= 15
    return (codes >> count) | (codes << (16 - count))


def depth_from_disparity(disparity_px: np.ndarray, focal_px: float, baseline_m: float, offset_px: float = 0.0) -> np.ndarray:
    """z-depth ``focal * baseline / (disparity + offset)``, float32; NaN where the disparity is not finite or the sum is not positive.

    ``offset_px`` is ``doffs``: by how much the principal points of the two cameras differ (Middlebury 2014).
    """
    total = disparity_px.astype(np.float64) + offset_px
    usable = np.isfinite(total) & (total > 0)
    depth_m = np.full(disparity_px.shape, np.nan, np.float32)
    depth_m[usable] = focal_px * baseline_m / total[usable]
    return depth_m


def opencv_camera(fx: float, fy: float, cx: float, cy: float) -> Camera:
    """A camera calibrated with the centre of the first pixel at (0, 0) (OpenCV, ROS, KITTI), moved to our (0.5, 0.5)."""
    return Camera(float(fx), float(fy), float(cx) + 0.5, float(cy) + 0.5)


def parse_camera(text: str) -> Camera | None:
    """The option ``camera``: 'unknown', or 'fx,fy,cx,cy' with the centre of the first pixel at (0, 0).

    Raises:
        ValueError: anything else.
    """
    if text == "unknown":
        return None
    try:
        fx, fy, cx, cy = (float(value) for value in text.split(","))
    except ValueError as error:
        raise ValueError(f"option camera={text!r}: write 'unknown' or four numbers 'fx,fy,cx,cy' in pixels of the colour image") from error
    return opencv_camera(fx, fy, cx, cy)


def make_sample(
    key: str,
    source: str,
    colour: ColourImage,
    depth: np.ndarray,
    depth_path: Path,
    *,
    camera: Camera | None,
    group: str,
    sensor: str,
    licence: str,
    label_kind: LabelKind = LabelKind.CAPTURED,
    depth_type: DepthType = DepthType.Z,
    metric: bool = True,
) -> Sample:
    """A sample whose depth has at least one measured pixel and covers the colour image's field of view.

    Raises:
        RejectedSample: nothing was measured, or the depth map's aspect ratio is not the image's.
    """
    check_depth(depth, str(depth_path))
    if not np.isfinite(depth).any():
        raise RejectedSample(f"{depth_path}: not one measured pixel; leave the frame out")
    height, width = depth.shape
    # One depth pixel of rounding is allowed; beyond it the two do not show the same field of view.
    if abs(colour.width / width * height - colour.height) > colour.width / width:
        raise RejectedSample(
            f"{depth_path}: depth {width}x{height} and colour {colour.width}x{colour.height} differ in shape; both must show the same "
            f"field of view (crop or resample one of them)"
        )
    meta = SampleMeta(
        key=key,
        source=source,
        label_kind=label_kind,
        depth_type=depth_type,
        metric=metric,
        camera=camera,
        image_size=(colour.width, colour.height),
        sensor=sensor,
        licence=licence,
        group=group,
    )
    return Sample(meta=meta, image_bytes=colour.data, image_format=colour.format, depth=depth)
