"""Canonical inverse depth C = f_px / (W * depth_m), and back (Depth Pro eq. 1; MetricAnything's student, spec 1.6).

``f_px`` (horizontal focal length in pixels) and ``W`` (width in pixels) belong to the *same* image; their ratio, and so C,
does not change when that image is resized. C is dimensionless per metre: an image of half the field of view shows the
same scene with twice the C.

An unknown focal length has no default. The plain functions raise on it (one host synchronisation on a GPU: for inference
and evaluation); the ``_where_known`` functions never synchronise and return a mask instead: for training steps.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

INVERSE_DEPTH_RANGE = (1e-3, 1e3)  # 1/m: depth is clamped to 0.001 - 1000 m (spec 1.6)


def canonical_inverse_depth(
    depth_m: Float[Tensor, "B ..."], f_px: Float[Tensor, " B"], width: int | Float[Tensor, " B"]
) -> Float[Tensor, "B ..."]:
    """C = f_px / (W * depth_m).

    Args:
        depth_m: z-depth in metres. ``+inf`` gives C = 0, and so does 0 (no measurement: its mask must say so).
        f_px: focal length in pixels of the image whose width is given.
        width: that image's width in pixels.

    Raises:
        ValueError: an unknown (NaN), infinite or non-positive focal length, naming the batch index.
    """
    _refuse_unknown(f_px)
    return _divide(f_px / width, depth_m)


def depth_from_canonical_inverse(
    canonical: Float[Tensor, "B ..."],
    f_px: Float[Tensor, " B"],
    width: int | Float[Tensor, " B"],
    inverse_depth_range: tuple[float, float] = INVERSE_DEPTH_RANGE,
) -> Float[Tensor, "B ..."]:
    """depth_m = 1 / clamp(C * W / f_px, *inverse_depth_range); the inverse of ``canonical_inverse_depth`` inside the range.

    Raises:
        ValueError: an unknown (NaN), infinite or non-positive focal length, naming the batch index.
    """
    _refuse_unknown(f_px)
    return 1.0 / (canonical * _per_image(width / f_px, canonical)).clamp(*inverse_depth_range)


def canonical_inverse_depth_where_known(
    depth_m: Float[Tensor, "B ..."], f_px: Float[Tensor, " B"], width: int | Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B ..."], Bool[Tensor, " B"]]:
    """``(C, known)`` without synchronisation: C is 0 in an image whose focal length is unknown, and ``known[b]`` says so."""
    known = known_focal_length(f_px)
    return _divide(torch.where(known, f_px, 0.0) / width, depth_m), known


def depth_from_canonical_inverse_where_known(
    canonical: Float[Tensor, "B ..."],
    f_px: Float[Tensor, " B"],
    width: int | Float[Tensor, " B"],
    inverse_depth_range: tuple[float, float] = INVERSE_DEPTH_RANGE,
) -> tuple[Float[Tensor, "B ..."], Bool[Tensor, " B"]]:
    """``(depth_m, known)`` without synchronisation: depth is 0 in an image whose focal length is unknown.

    Gradients with respect to ``canonical`` are zero, not NaN, in such an image.
    """
    known = known_focal_length(f_px)
    ratio = width / torch.where(known, f_px, 1.0)
    depth_m = 1.0 / (canonical * _per_image(ratio, canonical)).clamp(*inverse_depth_range)
    return depth_m * _per_image(known.to(depth_m.dtype), depth_m), known


def known_focal_length(f_px: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Whether each focal length is finite and positive."""
    return f_px.isfinite() & (f_px > 0)


def _divide(ratio: Tensor, depth_m: Tensor) -> Tensor:
    measured = depth_m > 0
    return torch.where(measured, _per_image(ratio, depth_m) / torch.where(measured, depth_m, 1.0), 0.0)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def _refuse_unknown(f_px: Tensor) -> None:
    unknown = ~known_focal_length(f_px)
    if bool(unknown.any()):
        where = unknown.nonzero().flatten().tolist()
        raise ValueError(
            f"focal length unknown (or not positive) for batch index {where}: canonical inverse depth needs f_px; "
            "give the camera, or use the *_where_known function and its mask"
        )
