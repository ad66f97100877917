"""Named evaluation protocols: which pixels count, how a prediction is aligned, and how pixels are averaged.

Published numbers differ by exactly these choices, so a row of a table always names its protocol. The ranges and crops are those of
the public evaluations that spec section 6 lists (Lotus / Marigold, UniDepth, Depth Pro, MetricAnything).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from mdpretrain.metrics.alignment import Alignment

LARGEST_DEPTH_M = 1e4  # what a prediction of "infinitely far" is clamped to where a protocol has no upper bound
# rows and columns as shares of the image: top, bottom, left, right
CROPS: dict[str, tuple[float, float, float, float]] = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
    "nyu": (45 / 480, 471 / 480, 41 / 640, 601 / 640),
}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Ground truth counts where min_depth_m < t < max_depth_m, inside ``crop``; aligned predictions are clamped to that range.

    ``aggregation``: "image" averages per-image metrics (the usual way), "pixel" pools all pixels of a source. ``exclude_prompt_pixels``:
    pixels that carry a prompt point do not count (see ``runner.excluded_pixels``).
    """

    name: str
    min_depth_m: float
    max_depth_m: float
    alignment: Alignment = Alignment.NONE
    crop: Literal["garg", "eigen", "nyu"] | None = None
    aggregation: Literal["image", "pixel"] = "image"
    note: str = ""
    exclude_prompt_pixels: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_depth_m < self.max_depth_m:
            raise ValueError(
                f"protocol {self.name!r}: the range {self.min_depth_m} to {self.max_depth_m} m must be positive and increasing"
            )
        if self.crop is not None and self.crop not in CROPS:
            raise ValueError(f"protocol {self.name!r}: unknown crop {self.crop!r}; there are {sorted(CROPS)}")
        if self.aggregation not in ("image", "pixel"):
            raise ValueError(f"protocol {self.name!r}: aggregation {self.aggregation!r} is not 'image' or 'pixel'")

    @property
    def clamp_m(self) -> tuple[float, float]:
        """The range that predictions are clamped to, finite."""
        return self.min_depth_m, min(self.max_depth_m, LARGEST_DEPTH_M)

    def crop_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) in pixels, truncated as the public code does (1e-6 absorbs 45 / 480 * 480 = 44.99...)."""
        top, bottom, left, right = CROPS[self.crop] if self.crop else (0.0, 1.0, 0.0, 1.0)
        return int(top * height + 1e-6), int(bottom * height + 1e-6), int(left * width + 1e-6), int(right * width + 1e-6)

    def describe(self) -> str:
        """One sentence for the report."""
        far = "no upper bound" if math.isinf(self.max_depth_m) else f"{self.max_depth_m:g} m"
        crop = f", {self.crop} crop" if self.crop else ""
        unit = "per image, then averaged" if self.aggregation == "image" else "over all pixels pooled"
        rest = "; prompt pixels do not count" if self.exclude_prompt_pixels else ""
        return f"depth {self.min_depth_m:g} m to {far}{crop}{rest}; alignment: {self.alignment.value}; metrics {unit}. {self.note}".strip()


_BUILT_IN = (
    Protocol("metric_default", 1e-3, 80.0, note="One range for indoor and outdoor: 80 m is where lidar ground truth thins out."),
    Protocol("metric_pooled", 1e-3, 80.0, aggregation="pixel", note="The range of metric_default, pixels pooled."),
    Protocol("scale_default", 1e-3, 80.0, Alignment.SCALE, note="The range of metric_default after median scaling."),
    Protocol("affine_depth", 1e-3, 80.0, Alignment.SCALE_AND_SHIFT, note="Least squares in depth."),
    Protocol("affine_disparity", 1e-3, 80.0, Alignment.DISPARITY, note="Least squares in inverse depth, floor 0.001 / m."),
    Protocol("completion", 1e-4, math.inf, note="Depth completion: every measured pixel beyond 0.1 mm (OMNI-DC)."),
    Protocol("nyu", 1e-3, 10.0, crop="nyu", note="NYUv2, rows 45:471 and columns 41:601 of 480 x 640."),
    Protocol("kitti_eigen", 1e-5, 80.0, crop="eigen", note="KITTI, Eigen crop of the 352 x 1216 image (Lotus)."),
    Protocol("kitti_garg", 1e-5, 80.0, crop="garg", note="KITTI, Garg crop of the 352 x 1216 image (UniDepth)."),
    Protocol("eth3d", 1e-5, math.inf, note="ETH3D (Lotus)."),
    Protocol("eth3d_unidepth", 0.01, 50.0, note="ETH3D (UniDepth)."),
    Protocol("eth3d_depth_pro", 0.1, 200.0, note="ETH3D (Depth Pro)."),
    Protocol("scannet", 1e-3, 10.0, note="ScanNet."),
    Protocol("diode", 0.6, 350.0, note="DIODE with its own mask (Lotus)."),
    Protocol("diode_indoor", 0.01, 25.0, note="DIODE indoor (UniDepth)."),
    Protocol("diode_outdoor", 0.01, 80.0, note="DIODE outdoor (UniDepth)."),
    Protocol("ibims", 0.01, 25.0, note="iBims-1 (UniDepth)."),
    Protocol("ibims_depth_pro", 0.1, 10.0, note="iBims-1 (Depth Pro)."),
    Protocol("ddad", 0.01, 120.0, note="DDAD."),
    Protocol("nuscenes", 0.01, 80.0, note="nuScenes."),
    Protocol("sun_rgbd", 0.01, 8.0, note="SUN RGB-D (UniDepth)."),
    Protocol("sun_rgbd_depth_pro", 1e-3, 10.0, note="SUN RGB-D (Depth Pro)."),
    Protocol("sintel", 0.01, 80.0, note="Sintel (Depth Pro)."),
    Protocol("middlebury", 1e-3, 10.0, note="Middlebury (Depth Pro)."),
    Protocol("booster", 1e-3, 10.0, note="Booster (Depth Pro)."),
    Protocol("booster_pooled", 1e-3, 10.0, aggregation="pixel", note="Booster, pixels pooled over the set (MetricAnything's own check)."),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _BUILT_IN}


def find_protocol(name: str) -> Protocol:
    """A built-in protocol, or one with another alignment: ``nyu+disparity`` is ``nyu`` after least squares in inverse depth.

    Raises:
        ValueError: an unknown name or alignment, listing what there is.
    """
    base, plus, alignment = name.partition("+")
    if base not in PROTOCOLS:
        raise ValueError(f"unknown protocol {base!r}; there are {sorted(PROTOCOLS)}")
    if not plus:
        return PROTOCOLS[base]
    choices = [choice.value for choice in Alignment]
    if alignment not in choices:
        raise ValueError(f"protocol {name!r}: unknown alignment {alignment!r}; after '+' stands one of {choices}")
    return dataclasses.replace(PROTOCOLS[base], name=name, alignment=Alignment(alignment))
