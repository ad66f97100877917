"""Named protocols of prompted depth: a pixel protocol, the prompt that is drawn, and how the benchmark cuts its images.

A protocol's prompt is drawn from the evaluated depth itself, and pixels that carry a point do not count: the rest is the truth. (Published
tables count them; ``--count-prompt-pixels`` does, too.) Sources: OMNI-DC for NYU and KITTI, Prior Depth Anything for the columns of
MetricAnything's Table 1, PromptDA for phones (spec sections 1.7, 2 and 6).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mdpretrain.data.crops import Cut
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation.protocols import Protocol, find_protocol
from mdpretrain.prompts.dense_sensors import LowResolution
from mdpretrain.prompts.lidar import ROWS_PER_LINE, Beam, SpinningLidar

NYU_SIZE, NYU_CUT = (228, 304), Cut(rows=240)
KITTI_SIZE, KITTI_CUT = (352, 1216), Cut(vertical="bottom")
# A pulse returns what the depth map holds at its pixel: in a benchmark the sensor has been wrong already.
EXACT_BEAM = Beam(divergence_mrad=0.0, edge_loss=0.0, max_range_m=(1000.0, 1000.0), dropout=(0.0, 0.0), sigma_m=0.0)


@dataclasses.dataclass(frozen=True)
class PromptProtocol:
    """``pixel`` names the pixel protocol; ``image_size`` (height, width) and ``cut`` are the benchmark's own, None: the caller chooses.

    ``size_note`` states them, and is left out of the report where the caller has chosen another size.
    """

    name: str
    prompt: PromptOptions
    note: str
    pixel: str = "completion"
    image_size: tuple[int, int] | None = None
    cut: Cut | None = None
    exclude_prompt_pixels: bool = True
    size_note: str = ""

    def protocol(self, own_size: bool = True) -> Protocol:
        """What is measured, under this protocol's name, at its own size or at the caller's."""
        pixel = find_protocol(self.pixel)
        size = "" if self.image_size is None else f" {self.size_note}" if own_size else " At the caller's size, not the benchmark's."
        note = f"{self.note}{size} Pixels as in {self.pixel}."
        return dataclasses.replace(pixel, name=self.name, note=note, exclude_prompt_pixels=self.exclude_prompt_pixels)


def points(count: int) -> PromptOptions:
    """Exactly ``count`` uniform points."""
    return PromptOptions((count, count), interpolate=True)


def lidar(lines: int, density: float, coverage: float = 1.0) -> PromptOptions:
    """A level lidar of ``lines`` lines over ``coverage`` of the vertical field of view, without noise of its own."""
    sensor = SpinningLidar(
        lines=(lines, lines),
        coverage=(coverage, coverage),
        pitch=0.0,
        roll_deg=0.0,
        yaw_deg=(360.0, 360.0),
        density=(density, density),
        beam=EXACT_BEAM,
    )
    return _of_kind("lidar", lidar=sensor)


def _of_kind(kind: str, **settings: Any) -> PromptOptions:
    """Prompts of one kind, with a number of points of its own; the count is of the kinds that ``--robustness patterns`` adds."""
    return PromptOptions((500, 500), interpolate=True, weights={kind: 1.0}, **settings)


def _nyu(count: int) -> PromptProtocol:
    size = "Resized to 240 rows, centre 228 x 304 (OMNI-DC)."
    return PromptProtocol(f"nyu_{count}", points(count), f"NYUv2, {count} random points.", "completion", NYU_SIZE, NYU_CUT, size_note=size)


def _kitti(lines: int) -> PromptProtocol:
    note = f"KITTI, {lines} simulated lines over the view (at most one in {ROWS_PER_LINE} rows), one pulse in two columns."
    prompt = lidar(lines, 0.5, (lines - 1) / lines)  # the outermost lines half a spacing inside the view, where they are seen
    return PromptProtocol(
        f"kitti_{lines}_lines", prompt, note, "completion", KITTI_SIZE, KITTI_CUT, size_note="Bottom 352 x 1216 at full size."
    )


def _super_resolution(factor: int) -> PromptProtocol:
    prompt = _of_kind("low_resolution", low_resolution=LowResolution(resolutions=(f"x{factor}",), estimator="nearest"))
    note = f"Super-resolution by {factor}: one exact point in a block of {factor} x {factor}, the pixel nearest to its middle."
    return PromptProtocol(f"table1_x{factor}", prompt, f"MetricAnything Table 1, {factor}x. {note}")


def _phone(name: str, prompt: PromptOptions, note: str) -> PromptProtocol:
    note, size = f"{note} Every pixel counts: the map is no copy of the truth.", "PromptDA's 756 x 1008."
    return PromptProtocol(f"arkit_{name}", prompt, note, image_size=(756, 1008), exclude_prompt_pixels=False, size_note=size)


_BUILT_IN = (
    *(_nyu(count) for count in (500, 200, 100, 50, 5)),
    *(_kitti(lines) for lines in (64, 16, 8)),
    *(PromptProtocol(f"points_{count}", points(count), f"{count} random points of any data set.") for count in (500, 2000)),
    # Prior Depth Anything's lidar has pitch +-0.5 rad at f = H, 1.08 of the view, and 200 pulses over yaw +-pi / 2.1, of which a 4:3 view
    # holds 80
    _super_resolution(8),
    _super_resolution(16),
    PromptProtocol(
        "table1_lidar",
        lidar(8, 0.125, 1.08),
        "MetricAnything Table 1, LiDAR: 8 lines (their number is not published), one pulse in eight columns: Prior Depth Anything's "
        "80 a line at 640 columns, fewer or more at other widths.",
    ),
    PromptProtocol("table1_extreme", points(100), "MetricAnything Table 1, Extreme: 100 random points (their number is not published)."),
    _phone(
        "low_resolution",
        _of_kind("low_resolution", low_resolution=LowResolution(resolutions=("192x256",), estimator="median", spread=True)),
        "A phone's 192 x 256 map: the median of each block.",
    ),
    _phone("anchors", _of_kind("anchors"), "PromptDA's simulated phone lidar: anchors on 192 x 256, filled by similarity of colour."),
)
PROMPT_PROTOCOLS: dict[str, PromptProtocol] = {protocol.name: protocol for protocol in _BUILT_IN}


def find_prompt_protocol(name: str) -> PromptProtocol:
    """A built-in prompt protocol, or one over other pixels: ``table1_x8@kitti_garg`` is ``table1_x8`` under ``kitti_garg``.

    Raises:
        ValueError: an unknown prompt or pixel protocol, listing what there is.
    """
    base, at, pixel = name.partition("@")
    if base not in PROMPT_PROTOCOLS:
        raise ValueError(f"unknown prompt protocol {base!r}; there are {sorted(PROMPT_PROTOCOLS)}")
    if not at:
        return PROMPT_PROTOCOLS[base]
    find_protocol(pixel)
    return dataclasses.replace(PROMPT_PROTOCOLS[base], name=name, pixel=pixel)
