"""One image from a file through a predictor: read, find the focal length, resize with the camera, predict, bring back to size."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data_shards.schema import LABEL_KINDS, LabelKind
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.structures import DepthBatch, SparsePrompt

FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
EXIF_FOCAL_35MM = 0xA405  # FocalLengthIn35mmFilm, inside the Exif block 0x8769
EXIF_BLOCK = 0x8769


@runtime_checkable
class MetricPredictor(Protocol):
    """What is asked of a predictor (``tasks.predictor.Predictor`` is one)."""

    @property
    def needs_prompt(self) -> bool: ...

    def depth_m(self, batch: DepthBatch) -> Tensor: ...


@dataclasses.dataclass
class Photograph:
    """An upright image and what is known of its camera. ``focal_source`` says where ``focal_px`` came from."""

    pixels: np.ndarray  # uint8 (H, W, 3) RGB
    focal_px: float | None
    focal_source: str


def read_photograph(path: pathlib.Path, focal_px: float | None = None) -> Photograph:
    """Read an image, turned upright by its EXIF orientation, with the given focal length or the one EXIF states.

    EXIF's 35 mm equivalent is turned to pixels by the diagonal: f_px = f_35 / 43.27 mm * sqrt(W^2 + H^2).

    Args:
        path: an image file.
        focal_px: in pixels of this image; wins over EXIF.

    Raises:
        ValueError: no such file, no image, or a focal length that is not positive; names the file or the flag.
    """
    if focal_px is not None and not (math.isfinite(focal_px) and focal_px > 0):
        raise ValueError(f"--focal-px {focal_px}: a focal length is a positive number of pixels")
    try:
        with Image.open(path) as opened:
            equivalent = opened.getexif().get_ifd(EXIF_BLOCK).get(EXIF_FOCAL_35MM)
            pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such image") from None
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from error
    if focal_px is not None:
        return Photograph(pixels, float(focal_px), "--focal-px")
    if equivalent:
        estimate = float(equivalent) / FULL_FRAME_DIAGONAL_MM * math.hypot(*pixels.shape[:2])
        return Photograph(pixels, estimate, f"EXIF, {equivalent} mm in 35 mm film")
    return Photograph(pixels, None, "unknown")


def read_prompt(path: pathlib.Path, scale: float) -> np.ndarray:
    """A prompt depth map in metres (H, W) float32, 0 where nothing is measured.

    Args:
        path: 16-bit png (metres = value / scale, 0 = not measured) or .npy (metres; NaN, infinite or <= 0 = not measured).
        scale: png units per metre, 1000 for millimetres.

    Raises:
        ValueError: no such file, not a single-channel 16-bit png or two-dimensional npy, an unusable scale, or no depth in it.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"--prompt-scale {scale}: give png units per metre, a positive number such as 1000 for millimetres")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such prompt")
    if path.suffix == ".npy":
        depth = np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
    else:
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if raw is None or raw.dtype != np.uint16:
            kind = "no png" if raw is None else f"{raw.dtype}"
            raise ValueError(f"{path}: a prompt is a single-channel 16-bit png or a .npy in metres, this is {kind}")
        depth = raw.astype(np.float32) / np.float32(scale)
    if depth.ndim != 2:
        raise ValueError(f"{path}: a prompt has one channel, this has the shape {depth.shape}")
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    if not depth.any():
        raise ValueError(f"{path}: not one pixel of the prompt has depth")
    return depth


def place_prompt(depth_m: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Carry a prompt to another grid of the same field of view: each measurement to the pixel its centre falls in.

    Where several meet, the nearest stays (an average over an edge would be a depth that nothing has).

    Returns:
        (depth_m, mask), both (height, width); 0 and false where no measurement fell.
    """
    rows, columns = np.nonzero(depth_m > 0)
    target = np.full((height, width), np.inf, dtype=np.float32)
    at = ((rows + 0.5) * height / depth_m.shape[0]).astype(int), ((columns + 0.5) * width / depth_m.shape[1]).astype(int)
    np.minimum.at(target, at, depth_m[rows, columns])
    mask = np.isfinite(target)
    return np.where(mask, target, 0.0).astype(np.float32), mask


def network_size(height: int, width: int, long_side: int, multiple: int) -> tuple[int, int]:
    """(height, width) with the image's aspect, its long side near ``long_side``, both multiples of ``multiple``."""
    scale = long_side / max(height, width)
    return tuple(max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))  # type: ignore[return-value]


def photograph_batch(photo: Photograph, height: int, width: int, key: str, prompt_m: np.ndarray | None = None) -> DepthBatch:
    """A batch of one at the network's size, without ground truth; the camera is scaled with the image, its centre assumed in the middle."""
    original_height, original_width = photo.pixels.shape[:2]
    smaller = height * width < original_height * original_width
    resized = cv2.resize(photo.pixels, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    intrinsics = torch.full((1, 3, 3), torch.nan)
    if photo.focal_px is not None:
        fx, fy = photo.focal_px * width / original_width, photo.focal_px * height / original_height
        intrinsics = torch.tensor([[[fx, 0.0, width / 2], [0.0, fy, height / 2], [0.0, 0.0, 1.0]]])
    nothing = torch.zeros(1, 1, height, width)
    prompt = None
    if prompt_m is not None:
        depth, mask = place_prompt(prompt_m, height, width)
        interpolated = torch.from_numpy(linear_inverse_depth(depth, mask))[None, None]
        prompt = SparsePrompt(torch.from_numpy(depth)[None, None], torch.from_numpy(mask)[None, None], interpolated)
    return DepthBatch(
        image=torch.from_numpy(resized).permute(2, 0, 1)[None].float() / 255.0,
        depth=nothing,
        valid=nothing > 0,
        sky=nothing > 0,
        intrinsics=intrinsics,
        camera_known=torch.tensor([photo.focal_px is not None]),
        metric=torch.tensor([True]),
        depth_is_ray=torch.tensor([False]),
        label_kind=torch.tensor([LABEL_KINDS.index(LabelKind.CAPTURED)]),
        position=torch.tensor([0]),
        key=[key],
        source=["photograph"],
        prompt=prompt,
    )


def predict_photograph(predictor: MetricPredictor, photo: Photograph, batch: DepthBatch, device: torch.device | str = "cpu") -> np.ndarray:
    """Depth in metres at the photograph's own size, float32 (H, W).

    The map is enlarged in inverse depth, in which a plane stays a plane.

    Raises:
        ValueError: the predictor needs a prompt or a focal length that is not there.
    """
    if predictor.needs_prompt and batch.prompt is None:
        raise ValueError("this checkpoint is of a prompted network; give sparse metric depth with --prompt depth.png")
    try:
        depth = predictor.depth_m(batch.to(device)).float().cpu()
    except ValueError as error:
        if photo.focal_px is None:
            raise ValueError(f"{error} with --focal-px (in pixels of the image)") from error
        raise
    return enlarge_depth(depth, *photo.pixels.shape[:2])[0, 0].numpy()


def enlarge_depth(depth_m: Float[Tensor, "B 1 h w"], height: int, width: int) -> Float[Tensor, "B 1 H W"]:
    """Bilinear resize of 1 / depth_m, returned as depth."""
    return 1.0 / F.interpolate(1.0 / depth_m.clamp(min=1e-6), size=(height, width), mode="bilinear", align_corners=False)


def photograph_intrinsics(photo: Photograph) -> np.ndarray | None:
    """3x3 in pixels of the photograph with the principal point in the middle, or None without a focal length."""
    if photo.focal_px is None:
        return None
    height, width = photo.pixels.shape[:2]
    return np.array([[photo.focal_px, 0, width / 2], [0, photo.focal_px, height / 2], [0, 0, 1]])
