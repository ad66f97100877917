"""The checks of ``data-shards lint`` that look at the camera of one sample."""

from __future__ import annotations

import math

from data_shards.lint_findings import ERROR, WARNING, Remark
from data_shards.schema import Camera, Sample

OUTSIDE, FAR_OFF = 0.5, 0.2  # of the image's size: how far the principal point may lie off the centre
# A camera of another resolution has its principal point off the centre by the same factor along both axes; real ones are off by
# a few percent. A top-left crop looks the same, but nobody crops so.
SAME_FACTOR, LEAST_FACTOR = 0.1, 1.2
POSSIBLE_VIEW_DEGREES = (5.0, 150.0)  # beyond a 500 mm lens, and beyond what a pinhole image can show
UNEQUAL, VERY_UNEQUAL = 0.1, 0.4  # |log(fx / fy)|: anamorphic resizing happens, half a width does not


def camera_remarks(sample: Sample) -> list[Remark]:
    """Objections to a sample's intrinsics; none where the camera is unknown."""
    camera, size = sample.meta.camera, sample.meta.image_size
    if camera is None:
        return []
    found = [other_resolution(camera, size) or principal_point(camera, size), *fields_of_view(camera, size), focal_lengths(camera)]
    return [remark for remark in found if remark is not None]


def resolution_factor(camera: Camera, size: tuple[int, int]) -> float | None:
    """How many times larger the image is that the camera was calibrated for, if the principal point says so; else None."""
    across, down = 2 * camera.cx / size[0], 2 * camera.cy / size[1]
    if min(across, down) <= 0 or abs(math.log(across / down)) > SAME_FACTOR:
        return None
    factor = math.sqrt(across * down)
    return factor if abs(math.log(factor)) > math.log(LEAST_FACTOR) else None


def other_resolution(camera: Camera, size: tuple[int, int]) -> Remark | None:
    """Principal point off the centre by one factor along both axes."""
    factor = resolution_factor(camera, size)
    if factor is None:
        return None
    width, height = size
    message = (
        f"principal point ({camera.cx:g}, {camera.cy:g}) in a {width}x{height} image: the camera of an image of about "
        f"{width * factor:.0f}x{height * factor:.0f}? Then multiply fx, fy, cx and cy by {1 / factor:.3g}"
    )
    return Remark("camera_resolution", ERROR, factor, message, abs(math.log(factor)))


def principal_point(camera: Camera, size: tuple[int, int]) -> Remark | None:
    """Principal point outside the image, or far off its centre."""
    width, height = size
    off_centre = max(abs(camera.cx / width - 0.5), abs(camera.cy / height - 0.5))
    where = f"principal point ({camera.cx:g}, {camera.cy:g}) in a {width}x{height} image"
    if off_centre > OUTSIDE:
        return Remark("principal_point", ERROR, off_centre, f"{where} lies outside: a camera of another image?", off_centre)
    if off_centre > FAR_OFF:
        return Remark(
            "principal_point", WARNING, off_centre, f"{where} is far off the centre: a crop, or another image's camera?", off_centre
        )
    return None


def fields_of_view(camera: Camera, size: tuple[int, int]) -> list[Remark]:
    """Width or height seen under an impossible angle."""
    found = []
    for name, pixels, focal in (("width", size[0], camera.fx), ("height", size[1], camera.fy)):
        degrees = math.degrees(2 * math.atan(pixels / (2 * focal)))
        if not POSSIBLE_VIEW_DEGREES[0] <= degrees <= POSSIBLE_VIEW_DEGREES[1]:
            message = f"a focal length of {focal:g} px over a {name} of {pixels} px sees {degrees:.1f} degrees"
            found.append(Remark("field_of_view", ERROR, degrees, message, abs(math.log(degrees / 50))))
    return found


def focal_lengths(camera: Camera) -> Remark | None:
    """Pixels far from square."""
    ratio = camera.fx / camera.fy
    uneven = abs(math.log(ratio))
    if uneven <= UNEQUAL:
        return None
    severity = ERROR if uneven > VERY_UNEQUAL else WARNING
    return Remark("focal_lengths", severity, ratio, f"fx / fy is {ratio:.3f}: pixels are rarely so far from square", uneven)
