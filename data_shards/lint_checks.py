"""The checks of ``data-shards lint`` that look at one sample. Each gives (severity, number, sentence) or nothing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data_shards.schema import Sample

ERROR, WARNING = "error", "warning"
FEW_PIXELS = 100
# The largest code of 16-bit maps, read as a distance by a reader that did not know that it means "nothing": unit -> metres.
LARGEST_CODES_M = {
    "65535 millimetres": 65.535,
    "65535 / 256": 65535 / 256,
    "65535 / 5000": 13.107,
    "65535 / 10000": 6.5535,
    "65535 / 100": 655.35,
    "65535 metres": 65535.0,
}


@dataclasses.dataclass(frozen=True)
class Remark:
    """One check's objection to one sample."""

    check: str
    severity: str
    number: float
    message: str


def remarks_on(sample: Sample) -> list[Remark]:
    """All objections to a sample that need no other sample."""
    values = np.sort(sample.depth[np.isfinite(sample.depth)])
    found = [few_pixels(sample, values), wrong_aspect(sample), *camera_remarks(sample)]
    if values.size >= FEW_PIXELS:
        found += [few_values(values), largest_code(sample, values) or spike_at_the_end(values), outlier(values)]
    return [remark for remark in found if remark is not None]


def few_pixels(sample: Sample, values: np.ndarray) -> Remark | None:
    """Almost no measured pixel: fewer than 100, or less than 0.05 %. Whether it is an error is decided per source."""
    fraction = values.size / sample.depth.size
    if values.size >= FEW_PIXELS and fraction >= 0.0005:
        return None
    return Remark("few_pixels", WARNING, fraction, f"only {values.size} of {sample.depth.size} pixels are measured ({fraction:.3%})")


def wrong_aspect(sample: Sample) -> Remark | None:
    """Depth and colour cover the same field of view, so their aspect ratios agree to 3 %."""
    (width, height), (depth_height, depth_width) = sample.meta.image_size, sample.depth.shape
    ratio = (depth_width / depth_height) / (width / height)
    if abs(math.log(ratio)) < 0.03:
        return None
    return Remark("aspect", ERROR, ratio, f"depth is {depth_width}x{depth_height}, the image {width}x{height}: another field of view")


def camera_remarks(sample: Sample) -> list[Remark | None]:
    """Principal point outside the image or far off its centre, impossible field of view, unequal focal lengths."""
    camera, (width, height) = sample.meta.camera, sample.meta.image_size
    if camera is None:
        return []
    found: list[Remark | None] = []
    off_centre = max(abs(camera.cx / width - 0.5), abs(camera.cy / height - 0.5))
    where = f"principal point ({camera.cx:g}, {camera.cy:g}) in a {width}x{height} image"
    if off_centre > 0.5:
        found.append(Remark("principal_point", ERROR, off_centre, f"{where} lies outside: a camera of another resolution?"))
    elif off_centre > 0.2:
        message = f"{where} is far off the centre: a crop, or a camera of another resolution?"
        found.append(Remark("principal_point", WARNING, off_centre, message))
    for name, size, focal in (("width", width, camera.fx), ("height", height, camera.fy)):
        degrees = math.degrees(2 * math.atan(size / (2 * focal)))
        if not 5 <= degrees <= 150:
            message = f"a focal length of {focal:g} px over a {name} of {size} px sees {degrees:.1f} degrees"
            found.append(Remark("field_of_view", ERROR, degrees, message))
    ratio = camera.fx / camera.fy
    if abs(math.log(ratio)) > 0.1:
        severity = ERROR if abs(math.log(ratio)) > 0.4 else WARNING
        found.append(Remark("focal_lengths", severity, ratio, f"fx / fy is {ratio:.3f}: pixels are rarely so far from square"))
    return found


def few_values(values: np.ndarray) -> Remark | None:
    """Constant depth, or so few distinct values that it went through 8 bits."""
    distinct = 1 + int(np.count_nonzero(np.diff(values)))
    spread = float(values[-1] / values[0] - 1)
    if spread < 1e-3:
        return Remark("constant", ERROR, spread, f"the depth is constant: {values[0]:g} to {values[-1]:g}")
    if distinct <= 16 and values.size > 20 * distinct:
        return Remark("quantised", ERROR, distinct, f"only {distinct} distinct depths in {values.size} pixels")
    if distinct <= 256 and values.size > 20 * distinct:
        return Remark("quantised", WARNING, distinct, f"only {distinct} distinct depths in {values.size} pixels: did it go through 8 bits?")
    return None


def largest_code(sample: Sample, values: np.ndarray) -> Remark | None:
    """Many pixels exactly at a distance that is the largest 16-bit code in a common unit."""
    if not sample.meta.metric:
        return None
    for unit, metres in LARGEST_CODES_M.items():
        first, last = np.searchsorted(values, [metres * (1 - 2e-5), metres * (1 + 2e-5)])
        if last - first > max(20, 1e-3 * values.size) and values[-1] <= metres * (1 + 2e-5):
            share = f"{(last - first) / values.size:.1%} of the pixels lie at {metres:g} m"
            message = f"{share}, the largest code ({unit}): 'not measured' or 'far' read as a distance?"
            return Remark("invalid_code", ERROR, metres, message)
    return None


def spike_at_the_end(values: np.ndarray) -> Remark | None:
    """Many pixels at exactly the largest or the smallest depth, and that depth far from all others."""
    for name, end, rest in (("largest", values[-1], values[values < values[-1]]), ("smallest", values[0], values[values > values[0]])):
        count = values.size - rest.size
        if rest.size < FEW_PIXELS or count <= max(20, 1e-3 * values.size):
            continue
        gap = float(end / rest[-1] if name == "largest" else rest[0] / end)
        if gap > 1.5:
            share = f"{count / values.size:.1%} of the pixels have the {name} depth {end:g}"
            message = f"{share}, {gap:.1f} times away from all others: an invalid code?"
            return Remark("invalid_code", ERROR, float(end), message)
    return None


def outlier(values: np.ndarray) -> Remark | None:
    """A few pixels far beyond the bulk: behind a gap of a factor of 5 above the 99th percentile, or 30 times beyond that.

    Ground that runs to the horizon reaches far, too, but without a gap and (at a few hundred rows) within 10 times.
    """
    first = int(0.99 * values.size) - 1
    tail = values[first:]
    steps = tail[1:] / tail[:-1]
    worst = int(np.argmax(steps))
    if steps[worst] >= 5:
        message = f"{steps.size - worst} pixels lie at {tail[worst + 1]:g} to {tail[-1]:g}, all others end at {tail[worst]:g}"
    elif tail[-1] >= 30 * tail[0]:
        message = f"99 % of the pixels end at {tail[0]:g}, the last ones reach {tail[-1]:g}: flying pixels?"
    else:
        return None
    return Remark("outlier", WARNING, float(tail[-1]), message)
