"""The checks of ``data-shards lint`` that look at the depth values of one sample. Each gives a remark or nothing."""

from __future__ import annotations

import math

import cv2
import numpy as np

from data_shards.lint_findings import ERROR, WARNING, Remark
from data_shards.schema import Sample

# With fewer measured pixels a frame teaches nothing, and its statistics are noise; a car's lidar has 0.2 % of two million.
FEW_PIXELS, FEW_SHARE = 100, 0.0005
ASPECT_TOLERANCE = 0.03  # rounding of sizes: 160x90 for 640x359
# The largest code of 16-bit maps, read as a distance by a reader that did not know that it means "nothing": unit -> metres.
LARGEST_CODES_M = {
    "65535 millimetres": 65.535,
    "65535 / 256": 65535 / 256,
    "65535 / 5000": 13.107,
    "65535 / 10000": 6.5535,
    "65535 / 100": 655.35,
    "65535 metres": 65535.0,
}
CODE_TOLERANCE = 1e-4  # relative; log16 stores a depth within 5e-5 where the map ranges over 1:1000
CODE_NEIGHBOURHOOD = 0.01  # relative: where true depths lie there, too, the code's pixels must outnumber them
# So many pixels at exactly one value are no coincidence of measured depth.
SPIKE_PIXELS, SPIKE_SHARE = 20, 1e-3
SPIKE_GAP = 1.5  # a spike this many times away from everything else is no surface of the scene
CONSTANT_SPREAD = 1e-3
# 8 bits have 256 codes; a sensor's own codes are many more, except where the scene is all at one distance (then they are fine).
FEW_VALUES, EIGHT_BITS, PIXELS_PER_VALUE = 16, 256, 20
FINE_STEP = 0.003  # relative; the last of 255 steps is 0.4 % of the depth, all others are coarser
# Structured light (Kinect 1, PrimeSense) measures disparity in steps of 1/8 px: 0.0029 to 0.0036 per metre in 1/z, growing with z^2.
STRUCTURED_LIGHT_STEP, STRUCTURED_LIGHT_POWER = 0.0045, (1.85, 2.15)
# Ground that runs to the horizon reaches far beyond the bulk, but without a gap and (at a few hundred rows) within 10 times.
OUTLIER_GAP, OUTLIER_REACH = 5.0, 30.0
# What lies far away is seen through windows and doors as regions; false matches and flying pixels are specks: below 0.1 % of the image.
SPECK_SHARE = 1e-3
# A pile at the end: as many pixels as 1 % of the map at one exact value, five times more than at any of the eight values before it.
PILE_SHARE, PILE_FACTOR, PILE_NEIGHBOURS = 0.01, 5.0, 8


def value_remarks(sample: Sample, values: np.ndarray) -> list[Remark]:
    """All objections to a sample's depth that need no other sample, no image and no camera; ``values`` are its sorted depths."""
    found = [few_pixels(sample, values), wrong_aspect(sample)]
    if values.size >= FEW_PIXELS:
        found += [few := few_values(values), largest_code(sample, values)]
        if few is None and found[-1] is None:  # steps of coarse depth are spikes and gaps, too
            found.append(spike_at_the_end(values) or outlier(sample.depth, values))
    return [remark for remark in found if remark is not None]


def few_pixels(sample: Sample, values: np.ndarray) -> Remark | None:
    """Almost no measured pixel. Whether it is an error is decided per source."""
    fraction = values.size / sample.depth.size
    if values.size >= FEW_PIXELS and fraction >= FEW_SHARE:
        return None
    message = f"only {values.size} of {sample.depth.size} pixels are measured ({fraction:.3%})"
    return Remark("few_pixels", WARNING, fraction, message, -fraction)


def wrong_aspect(sample: Sample) -> Remark | None:
    """Depth and colour cover the same field of view, so their aspect ratios agree."""
    (width, height), (depth_height, depth_width) = sample.meta.image_size, sample.depth.shape
    ratio = (depth_width / depth_height) / (width / height)
    if abs(math.log(ratio)) < ASPECT_TOLERANCE:
        return None
    message = f"depth is {depth_width}x{depth_height}, the image {width}x{height}: another field of view"
    return Remark("aspect", ERROR, ratio, message, abs(math.log(ratio)))


def few_values(values: np.ndarray) -> Remark | None:
    """Constant depth, or so few distinct values, so far apart, that it went through 8 bits."""
    levels, counts = np.unique(values, return_counts=True)
    spread = float(levels[-1] / levels[0] - 1)
    if spread < CONSTANT_SPREAD:
        return Remark("constant", ERROR, spread, f"the depth is constant: {values[0]:g} to {values[-1]:g}", -spread)
    if levels.size > EIGHT_BITS or values.size <= PIXELS_PER_VALUE * levels.size:
        return None
    step = _typical_step(levels, counts)
    if step <= FINE_STEP or (levels.size > FEW_VALUES and _is_structured_light(levels, counts)):
        return None
    message = f"only {levels.size} distinct depths in {values.size} pixels, {step:.1%} apart"
    severity = ERROR if levels.size <= FEW_VALUES else WARNING
    return Remark("quantised", severity, levels.size, message + ": did it go through 8 bits?", step)


def _typical_step(levels: np.ndarray, counts: np.ndarray) -> float:
    """The median, over pixels, of the relative distance to the next level."""
    steps = np.diff(levels) / levels[:-1]
    weights = np.minimum(counts[:-1], counts[1:])
    order = np.argsort(steps)
    reached = np.cumsum(weights[order])
    return float(steps[order][np.searchsorted(reached, reached[-1] / 2)])


def _is_structured_light(levels: np.ndarray, counts: np.ndarray) -> bool:
    """Steps grow with the square of the depth, and are those of the known sensors."""
    steps, middle = np.diff(levels.astype(np.float64)), (levels[1:] + levels[:-1]) / 2
    weights = np.sqrt(np.minimum(counts[:-1], counts[1:]))
    design = np.stack([np.log(middle), np.ones(middle.size)], axis=1) * weights[:, None]
    power, _ = np.linalg.lstsq(design, np.log(steps) * weights, rcond=None)[0]
    low, high = STRUCTURED_LIGHT_POWER
    return bool(low <= power <= high and np.median(steps / middle**2) <= STRUCTURED_LIGHT_STEP)


def largest_code(sample: Sample, values: np.ndarray) -> Remark | None:
    """Pixels exactly at a distance that is the largest 16-bit code in a common unit: many, or a few far beyond all others."""
    if not sample.meta.metric:
        return None
    for unit, metres in LARGEST_CODES_M.items():
        first, last = np.searchsorted(values, [metres * (1 - CODE_TOLERANCE), metres * (1 + CODE_TOLERANCE)])
        before, after = np.searchsorted(values, [metres * (1 - CODE_NEIGHBOURHOOD), metres * (1 + CODE_NEIGHBOURHOOD)])
        count = int(last - first)
        many = count > max(SPIKE_PIXELS, SPIKE_SHARE * values.size) and 2 * count > after - before
        far_away = first > 0 and last == values.size and values[-1] > SPIKE_GAP * values[first - 1]
        if many or (count and far_away):
            pixels = f"{count} pixels ({count / values.size:.2%}) lie at {metres:g} m, the largest code ({unit})"
            message = f"{pixels}: 'not measured' or 'far' read as a distance?"
            return Remark("invalid_code", ERROR if many else WARNING, metres, message, count / values.size)
    return None


def spike_at_the_end(values: np.ndarray) -> Remark | None:
    """Many pixels at exactly the largest or the smallest depth, and that depth far from all others."""
    for name, end, rest in (("largest", values[-1], values[values < values[-1]]), ("smallest", values[0], values[values > values[0]])):
        count = values.size - rest.size
        if rest.size < FEW_PIXELS or count <= max(SPIKE_PIXELS, SPIKE_SHARE * values.size):
            continue
        gap = float(end / rest[-1] if name == "largest" else rest[0] / end)
        if gap > SPIKE_GAP:
            share = count / values.size
            message = f"{share:.1%} of the pixels have the {name} depth {end:g}, {gap:.1f} times away from all others: an invalid code?"
            return Remark("invalid_code", ERROR, float(end), message, share)
    return None


def outlier(depth: np.ndarray, values: np.ndarray) -> Remark | None:
    """Specks far beyond the bulk: behind a gap above the 99th percentile, or far beyond that, and not a view through an opening."""
    limit = outlier_limit(values)
    if limit is None:
        return None
    beyond = np.isfinite(depth) & (depth >= limit)
    _, labels, figures, _ = cv2.connectedComponentsWithStats((beyond | np.isposinf(depth)).astype(np.uint8), connectivity=8)
    in_specks = figures[:, cv2.CC_STAT_AREA][labels[beyond]] < SPECK_SHARE * depth.size
    if 2 * np.count_nonzero(in_specks) <= in_specks.size:
        return None
    rest = values[np.searchsorted(values, limit) - 1]
    message = (
        f"{in_specks.size} pixels in specks lie at {limit:g} to {values[-1]:g}, all others end at {rest:g}: flying pixels or false matches?"
    )
    return Remark("outlier", WARNING, float(values[-1]), message, float(values[-1] / rest))


def outlier_limit(values: np.ndarray) -> float | None:
    """The nearest depth that lies far beyond the bulk of sorted depths; None where there is no such depth."""
    tail = values[int(0.99 * values.size) - 1 :]
    steps = tail[1:] / tail[:-1]
    if steps.max() >= OUTLIER_GAP:
        return float(tail[1 + int(np.argmax(steps))])
    if tail[-1] >= OUTLIER_REACH * tail[0]:
        return float(tail[np.searchsorted(tail, OUTLIER_GAP * tail[0])])
    return None


def piles(values: np.ndarray) -> list[tuple[float, float]]:
    """(depth, share of the pixels) of a pile at the nearest or farthest of sorted depths, as clipping makes; both, one or none.

    An even wall seen head-on by a renderer piles up just so, therefore only several samples with the same pile are a finding.
    """
    levels, counts = np.unique(values, return_counts=True)
    if levels.size <= PILE_NEIGHBOURS:
        return []
    found = []
    for end, neighbours in ((0, counts[1 : PILE_NEIGHBOURS + 1]), (-1, counts[-PILE_NEIGHBOURS - 1 : -1])):
        if counts[end] >= PILE_SHARE * values.size and counts[end] > PILE_FACTOR * neighbours.max():
            found.append((float(levels[end]), float(counts[end] / values.size)))
    return found
