"""Is the unit right? A source is judged by what cameras see, by its sensor, by the floor, and a sample by the rest of its source.

`S` samples of one source and sensor. Medians, steps and heights are in the unit that the samples declare to be metres.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_shards.lint_findings import ERROR, WARNING, Remark
from data_shards.schema import Sample

PLAUSIBLE_MEDIAN_M = (0.05, 300.0)  # a shelf before a close-up sensor, a landscape
TYPICAL_MEDIAN_M = (0.3, 80.0)  # where a suggested unit should bring the median
# Plausible median depth of a source by what its sensor's name contains; the first match counts.
SENSOR_MEDIAN_M = {
    "iphone": (0.2, 6.0),
    "sr300": (0.08, 2.5),
    "realsense": (0.1, 10.0),
    "kinect": (0.4, 7.0),
    "primesense": (0.3, 7.0),
    "hololens": (0.3, 8.0),
    "lidar": (2.0, 80.0),
    "velodyne": (2.0, 80.0),
}
LARGEST_STEP_M, FEWEST_CODES = 0.1, 50  # no depth map is made in steps of 10 cm
# How high a camera stands: on a table or a small robot, held, on a car's roof, on a mast. Beyond the second range it flew or crawled.
PLAUSIBLE_HEIGHT_M, POSSIBLE_HEIGHT_M = (0.2, 4.0), (0.1, 10.0)
ENOUGH_HEIGHTS = 3
# A sample against its source: it must lie a factor of 3 outside the bulk (10th to 90th percentile) of at least ten, come back
# into the bulk (within a factor of 1.5) when a power of ten is taken out, and its floor, if seen, must be off by the same power.
ENOUGH_OTHERS, BULK = 10, (0.1, 0.9)
POSSIBLE_LOGARITHMS = math.log10(POSSIBLE_HEIGHT_M[0]), math.log10(POSSIBLE_HEIGHT_M[1])
OUTSIDE_BULK, INSIDE_BULK, SAME_POWER, POWERS = math.log10(3), math.log10(1.5), 0.4, (-3, -2, -1, 1, 2, 3)
UNITS = {1000.0: "millimetres", 100.0: "centimetres", 10.0: "a tenth of the declared unit", 0.1: "ten times the declared unit"}
UNITS |= {0.01: "a hundred times the declared unit", 0.001: "kilometres, or metres divided by 1000 once more"}


@dataclasses.dataclass(frozen=True)
class Scale:
    """What tells a metric sample's unit: its median depth, the step of its codes (0: on no grid), its camera's height if seen."""

    median_m: float
    step_m: float
    height_m: float | None


def step_of(sample: Sample, values: np.ndarray) -> float:
    """The largest step that divides all depths: a multiple of the one they are stored with; 0 where they are on no grid."""
    stored_step_m = sample.meta.encodings.get("depth", {}).get("step_m")
    if stored_step_m is None:
        return 0.0
    codes = np.unique(np.rint(values[:: max(1, values.size // 4096)] / stored_step_m).astype(np.int64))
    if codes.size < FEWEST_CODES:
        return 0.0  # a handful of depths have a large common step by chance
    return float(np.gcd.reduce(codes) * stored_step_m)


def judge_source(scales: list[Scale], sensor: str) -> Remark | None:
    """Whether all of a source's depths are in a wrong unit."""
    if not scales:
        return None
    median = float(np.median([scale.median_m for scale in scales]))
    step = float(np.median([scale.step_m for scale in scales]))
    low, high = PLAUSIBLE_MEDIAN_M
    if not low <= median <= high:
        message = f"median depth {median:g} m, plausible is {low:g} to {high:g} m{_suggestion(median, TYPICAL_MEDIAN_M)}"
        return Remark("unit", ERROR, median, message)
    if step >= 0.99 * LARGEST_STEP_M:
        return Remark("unit", ERROR, step, f"all depths are multiples of {step:g} m: integers of a smaller unit read as {step:g} m each?")
    plausible = next((limits for word, limits in SENSOR_MEDIAN_M.items() if word in sensor.lower()), None)
    if plausible is not None and not plausible[0] <= median <= plausible[1]:
        low, high = plausible
        message = f"median depth {median:g} m, the sensor {sensor!r} sees {low:g} to {high:g} m{_suggestion(median, plausible)}"
        return Remark("unit", ERROR, median, message)
    return _judge_height([scale.height_m for scale in scales if scale.height_m is not None])


def _judge_height(heights: list[float]) -> Remark | None:
    if not heights:
        return None
    height = float(np.median(heights))
    few = len(heights) < ENOUGH_HEIGHTS
    possible = POSSIBLE_HEIGHT_M[0] <= height <= POSSIBLE_HEIGHT_M[1]
    if possible and (few or PLAUSIBLE_HEIGHT_M[0] <= height <= PLAUSIBLE_HEIGHT_M[1]):
        return None
    stands = f"the camera stands {height:.2g} m above the floor (median of {len(heights)} samples)"
    severity = WARNING if possible or few else ERROR
    return Remark("unit", severity, height, f"{stands}: a wrong unit, unless it flew or crawled")


def judge_samples(scales: list[Scale]) -> dict[int, Remark]:
    """Number of a sample -> remark, for samples that are a power of ten off the rest of their source."""
    if len(scales) < ENOUGH_OTHERS:
        return {}
    medians = np.log10([scale.median_m for scale in scales])
    heights = np.log10([np.nan if scale.height_m is None else scale.height_m for scale in scales])
    limits = _bulk(medians), _bulk(heights)
    centre = float(np.median(medians))
    found = {}
    for number, values in enumerate(zip(medians, heights)):
        outside = [not _inside(value, bulk, OUTSIDE_BULK) for value, bulk in zip(values, limits)]
        outside[1] = outside[1] and not _inside(values[1], POSSIBLE_LOGARITHMS, 0)  # it may be a table that was taken for the floor
        if not any(outside):
            continue
        tolerances = [INSIDE_BULK if is_outside else SAME_POWER for is_outside in outside]
        for power in sorted(POWERS, key=lambda power: abs(values[0] - power - centre)):
            if all(_inside(value - power, bulk, tolerance) for value, bulk, tolerance in zip(values, limits, tolerances)):
                found[number] = _off_by(10.0**power, 10 ** values[0], 10**centre)
                break
    return found


def _off_by(factor: float, median: float, usual: float) -> Remark:
    message = f"median depth {median:.3g} m, that of the source's samples is {usual:.3g} m: off by {factor:g}?"
    return Remark("unit", WARNING, median / usual, message, abs(math.log10(median / usual)))


def _bulk(logarithms: np.ndarray) -> tuple[float, float]:
    """Between which values most of a source's samples lie; everything where too few are known."""
    known = logarithms[np.isfinite(logarithms)]
    if known.size < ENOUGH_OTHERS:
        return -math.inf, math.inf
    low, high = np.quantile(known, BULK)
    return float(low), float(high)


def _inside(value: float, bulk: tuple[float, float], tolerance: float) -> bool:
    """Whether a logarithm lies in the bulk, or is not known."""
    return not np.isfinite(value) or bulk[0] - tolerance <= value <= bulk[1] + tolerance


def _suggestion(median: float, wanted: tuple[float, float]) -> str:
    """The power of ten that brings the median closest to the middle of what is wanted, in words."""
    middle = np.sqrt(wanted[0] * wanted[1])
    factor = min(UNITS, key=lambda factor: abs(np.log(median / factor / middle)))
    return f"; declared unit probably wrong by {factor:g}: {UNITS[factor]} read as metres?"
