"""Colours for depth, prompts and errors. One scale serves truth and prediction alike, and a bar beside them says what it is.

Maps are numpy ``(H, W)``; pictures uint8 ``(H, W, 3)`` RGB. Near is warm, far is cold; what has no value is grey.
"""

from __future__ import annotations

import dataclasses
import math

import matplotlib
import numpy as np

NO_VALUE = np.array([228, 230, 235], dtype=np.uint8)
ERROR_LIMIT = 0.25  # relative error at which the error colours saturate


@dataclasses.dataclass(frozen=True)
class DepthScale:
    """Depth in metres on a logarithmic axis from ``near`` to ``far``."""

    near: float
    far: float

    def colour(self, depth_m: np.ndarray) -> np.ndarray:
        """uint8 RGB of a depth map; NaN and non-positive depths are grey, infinity has the colour of ``far``."""
        has_value = depth_m > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            position = (np.log(np.where(has_value, depth_m, 1.0)) - math.log(self.near)) / math.log(self.far / self.near)
        return _paint(1.0 - np.clip(position, 0, 1), has_value, "turbo")

    def ticks(self) -> list[tuple[float, float]]:
        """(position in [0, 1], metres) of round numbers inside the range, for a bar."""
        decades = range(math.floor(math.log10(self.near)) - 1, math.ceil(math.log10(self.far)) + 1)
        for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            values = [step * 10.0**decade for decade in decades for step in steps]
            inside = [value for value in values if self.near <= value <= self.far]
            if len(inside) >= 3:
                break
        inside = inside or [self.near, self.far]
        return [(math.log(value / self.near) / math.log(self.far / self.near), value) for value in inside]

    def gradient(self, stops: int = 24) -> list[str]:
        """CSS colours from near to far."""
        return _css_stops("turbo", np.linspace(1.0, 0.0, stops))


def depth_colours() -> matplotlib.colors.Colormap:
    """The colours of ``DepthScale`` from near (0) to far (1), for a matplotlib bar."""
    return matplotlib.colormaps["turbo"].reversed()


def depth_scale(*depth_maps_m: np.ndarray) -> DepthScale:
    """The scale that shows the 1st to 99th percentile of all given depths, at least a factor of 1.5 wide."""
    values = np.concatenate([depth[np.isfinite(depth) & (depth > 0)].ravel() for depth in depth_maps_m] or [np.ones(1)])
    if values.size == 0:
        return DepthScale(1.0, 10.0)
    near, far = (float(x) for x in np.percentile(values, [1, 99]))
    if far < 1.5 * near:
        middle = math.sqrt(near * far)
        near, far = middle / math.sqrt(1.5), middle * math.sqrt(1.5)
    return DepthScale(near, far)


def colour_relative_error(prediction_m: np.ndarray, truth_m: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """|p - t| / t from 0 (dark) to ``ERROR_LIMIT`` (bright); grey where there is no ground truth."""
    has_value = valid & np.isfinite(prediction_m)
    error = np.abs(np.where(has_value, prediction_m, 1.0) - np.where(has_value, truth_m, 1.0)) / np.where(has_value, truth_m, 1.0)
    return _paint(np.clip(error / ERROR_LIMIT, 0, 1), has_value, "inferno")


def colour_error_difference(depth_m: np.ndarray, reference_m: np.ndarray, truth_m: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """|p - t| / t of a map minus that of a reference: blue where the map is nearer the truth, white where they are equal, red where it is
    farther; saturated at ``ERROR_LIMIT``, grey where either or the truth is missing."""
    has_value = valid & np.isfinite(depth_m) & np.isfinite(reference_m)
    truth = np.where(has_value, truth_m, 1.0)
    errors = [np.abs(np.where(has_value, map_, 1.0) - truth) / truth for map_ in (depth_m, reference_m)]
    return _paint(np.clip(0.5 + 0.5 * (errors[0] - errors[1]) / ERROR_LIMIT, 0, 1), has_value, "RdBu_r")


def difference_gradient(stops: int = 24) -> list[str]:
    """CSS colours from the map being better by ``ERROR_LIMIT`` to its being worse by as much."""
    return _css_stops("RdBu_r", np.linspace(0.0, 1.0, stops))


def colour_log_ratio(log_ratio: np.ndarray) -> np.ndarray:
    """log(a / b): blue where a is the smaller, white where they are equal, red where it is the larger; saturated at a factor of
    1 + ``ERROR_LIMIT``, grey where it is NaN. ``difference_gradient`` are its colours."""
    has_value = ~np.isnan(log_ratio)
    return _paint(np.clip(0.5 + 0.5 * np.where(has_value, log_ratio, 0.0) / math.log1p(ERROR_LIMIT), 0, 1), has_value, "RdBu_r")


def colour_share(share: np.ndarray) -> np.ndarray:
    """Values in [0, 1] from dark to bright; grey where they are NaN."""
    has_value = ~np.isnan(share)
    return _paint(np.where(has_value, share, 0.0), has_value, "viridis")


def share_gradient(stops: int = 24) -> list[str]:
    """CSS colours of ``colour_share`` from 0 to 1."""
    return _css_stops("viridis", np.linspace(0.0, 1.0, stops))


def error_gradient(stops: int = 24) -> list[str]:
    """CSS colours from no error to ``ERROR_LIMIT``."""
    return _css_stops("inferno", np.linspace(0.0, 1.0, stops))


def colour_relative(values: np.ndarray) -> np.ndarray:
    """A map without unit (inverse depth up to scale and shift), its 1st to 99th percentile in greys of its own."""
    finite = np.isfinite(values)
    if not finite.any():
        return _paint(np.zeros_like(values), finite, "magma")
    low, high = np.percentile(values[finite], [1, 99])
    return _paint(np.clip((np.where(finite, values, low) - low) / max(float(high - low), 1e-12), 0, 1), finite, "magma")


def colour_sparse(depth_m: np.ndarray, mask: np.ndarray, scale: DepthScale, image: np.ndarray) -> np.ndarray:
    """Prompt points as dots over a darkened image, large enough to be seen (about 1 % of the width)."""
    radius = max(1, round(mask.shape[1] / 200))
    picture = (image.astype(np.float32) * 0.3).astype(np.uint8)
    rows, columns = np.nonzero(mask)
    colours = scale.colour(depth_m[rows, columns][None])[0]
    for row_step in range(-radius, radius + 1):
        for column_step in range(-radius, radius + 1):
            inside_rows = np.clip(rows + row_step, 0, mask.shape[0] - 1)
            picture[inside_rows, np.clip(columns + column_step, 0, mask.shape[1] - 1)] = colours
    return picture


def _paint(position: np.ndarray, has_value: np.ndarray, name: str) -> np.ndarray:
    picture = (matplotlib.colormaps[name](position)[..., :3] * 255).round().astype(np.uint8)
    picture[~has_value] = NO_VALUE
    return picture


def _css_stops(name: str, positions: np.ndarray) -> list[str]:
    colours = (matplotlib.colormaps[name](positions)[:, :3] * 255).round().astype(int)
    return [f"rgb({r},{g},{b})" for r, g, b in colours.tolist()]
