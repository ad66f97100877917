"""What an iPhone's or iPad's lidar gives: a small dense depth map, and Apple's confidence in each of its pixels.

ARKit fuses a few hundred laser points with the image into 256x192 metres along the optical axis (``ARFrame.sceneDepth``). The map covers
the whole colour image. The confidence is 0 (low: edges, glass, far walls), 1 (medium) or 2 (high). Such a map is a *prompt*: the sensor
that a prompted network will meet. Where nothing better is recorded it also stands in for the depth, and then proves nothing about a network
that was prompted with it.

ARKit counts pixels from the centre of the first one (documentation of ``ARCamera.intrinsics``), as OpenCV does.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from data_shards.schema import Sample
from data_shards.sources.base import RejectedSample
from data_shards.sources.raw_files import read_bytes

HIGHEST_CONFIDENCE = 2
PROMPT_IS_DEPTH = "The lidar map is stored as depth and as prompt: predict with it, do not report errors against it."


def check_least_confidence(least: int) -> None:
    """ValueError unless the option ``min_confidence`` is 0, 1 or 2."""
    if least not in range(HIGHEST_CONFIDENCE + 1):
        raise ValueError(f"option min_confidence={least}: 0 (keep all), 1 (medium and high) or 2 (high only)")


def read_confidence(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The levels 0, 1, 2 of a one-channel 8-bit png of the lidar map's shape; RejectedSample otherwise."""
    levels = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
    return check_levels(path, levels, shape)


def check_levels(path: Path, levels: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """``levels`` if they are uint8 of the lidar map's shape and at most 2; RejectedSample naming ``path`` otherwise."""
    if levels is None or levels.dtype != np.uint8 or levels.shape != shape or levels.max(initial=0) > HIGHEST_CONFIDENCE:
        raise RejectedSample(f"{path}: a confidence map must hold 0, 1 and 2 as 8 bits at the lidar's size {shape[1]}x{shape[0]}")
    return levels


def believe(depth_m: np.ndarray, levels: np.ndarray | None, least: int) -> np.ndarray:
    """The lidar map with every pixel below confidence ``least`` not measured (NaN); unchanged where no confidence was recorded."""
    return depth_m if levels is None else np.where(levels >= least, depth_m, np.float32(np.nan))


def attach_lidar(sample: Sample, lidar_m: np.ndarray, levels: np.ndarray | None, depth_is_lidar: bool, as_prompt: bool = True) -> Sample:
    """The sample with the lidar map as its prompt (none if nothing was measured) and, if that map is the depth too, its confidence."""
    sample.prompt = lidar_m.copy() if as_prompt and np.isfinite(lidar_m).any() else None
    if depth_is_lidar and levels is not None:
        sample.confidence = levels.astype(np.float32) / HIGHEST_CONFIDENCE
    return sample
