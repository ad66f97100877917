"""Do depth and colour show the same edges at the same place? Agreement of depth edges with colour edges over shifts of one on the other.

Where an object ends in depth, colour mostly changes too, across the same line. So the mean strength of the colour's gradient under
depth edges, counted across the edge, has a sharp peak at the shift that brings the two together: no shift at all in good data.

`P` depth edge pixels, `S` shifts along one axis, (row, column) order throughout. Shifts are fractions of the longer side, so that
surfaces of samples of different sizes can be added up.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from data_shards.lint_findings import ERROR, WARNING, Remark

LONGEST_PX = 640  # work at no more: edges of larger images are no more telling, and cost more
# 4 % of the longer side (26 px of 640) in steps of 0.25 %: a nominal instead of a measured extrinsic is off by less, and
# further away some other colour edge always fits.
LARGEST_SHIFT, SHIFT_STEP = 0.04, 0.0025
JUMP = 1.1  # a depth edge is a step to at least 10 % farther: occlusions, not creases
EDGE_REACH = 1 / 160  # of the width: how far behind the near side its farther side may begin (sensors leave a hole there)
MOST_EDGES = 1000  # edge pixels that are looked at; more sharpen nothing
BLOCK = 100  # edge pixels at a time, so that their shifts stay in the processor's cache
PARTS = 8  # the image is cut into 8x8 parts, whose gains are taken as independent
SMALLEST_PART = 8  # edge pixels that make a part count
SATURATION = 90  # the percentile of the colour gradient beyond which an edge is an edge
DENSE_SHARE = 0.2  # measured pixels below which a map (lidar) has no edges to speak of

# A sample is misaligned if its best shift is at least this far (and 1.5 working pixels), and better than none by this many standard
# errors over at least ten parts, while what agreement there is without a shift is less than half of that at the best one.
LEAST_SHIFT, LEAST_SHIFT_PX, CLEAR = 0.004, 1.5, 3.5
FEWEST_PARTS, FEWEST_EDGES = 10, 150
LEFT_WITHOUT_SHIFT, LEAST_GAIN = 0.5, 0.15
PART_ERROR = 0.15  # the spread of gains between parts is taken to be no smaller: few parts agree by chance
ENOUGH_SAMPLES, GAIN_OF_SOURCE = 5, 0.05
# A source is not registered at all if its edges agree no better without a shift than anywhere. Good sources: 0.12 to 0.7 better.
CHANCE, ENOUGH_TO_MISS = 0.05, 10


@dataclasses.dataclass(frozen=True)
class EdgeAgreement:
    """``parts`` float32 (parts, S, S): mean agreement (0 to 1) at every shift of depth on colour, per part of the image.

    ``weights`` (parts,) are their edge pixels, ``pixel`` is the size of one working pixel as a fraction of the longer side.
    """

    parts: np.ndarray
    weights: np.ndarray
    pixel: float

    @property
    def surface(self) -> np.ndarray:
        """float64 (S, S): mean agreement over all edge pixels at every shift."""
        return np.tensordot(self.weights / self.weights.sum(), self.parts, 1)


def shifts() -> np.ndarray:
    """float64 (S,): the shifts that are tried along each axis, as fractions of the longer side; 0 in the middle."""
    count = round(LARGEST_SHIFT / SHIFT_STEP)
    return np.arange(-count, count + 1) * SHIFT_STEP


def edge_agreement(grey: np.ndarray, depth: np.ndarray) -> EdgeAgreement | None:
    """Agreement of a depth map's edges with an 8-bit grey image's at every shift; None where there are no depth edges to look at."""
    if np.isfinite(depth).mean() < DENSE_SHARE:
        return None
    grey, depth = at_working_size(grey, depth)
    offsets = np.rint(shifts() * max(depth.shape)).astype(np.int64)
    margin = int(offsets[-1])
    edge, normal_x, normal_y = depth_edges(depth)
    edge[:margin], edge[depth.shape[0] - margin :], edge[:, :margin], edge[:, depth.shape[1] - margin :] = False, False, False, False
    rows, columns = np.nonzero(edge)
    if rows.size == 0:
        return None
    chosen = np.random.default_rng(0).permutation(rows.size)[:MOST_EDGES]
    rows, columns = rows[chosen], columns[chosen]
    part = (rows * PARTS // depth.shape[0]) * PARTS + columns * PARTS // depth.shape[1]
    counts = np.bincount(part, minlength=PARTS * PARTS)
    kept = np.flatnonzero(counts >= SMALLEST_PART)
    if kept.size == 0:
        return None
    around = (offsets[:, None] * depth.shape[1] + offsets[None, :]).ravel()
    across_x, across_y = normal_x[rows, columns], normal_y[rows, columns]
    factors = (across_x**2, 2 * across_x * across_y, across_y**2)
    fields = [field.ravel() for field in _gradient_products(grey)]
    means = np.zeros((kept.size, around.size), np.float32)
    for begin in range(0, rows.size, BLOCK):
        block = slice(begin, begin + BLOCK)
        places = (rows[block] * depth.shape[1] + columns[block])[:, None] + around  # (BLOCK, S * S), all inside the image
        agreement = sum(np.take(field, places, mode="clip") * factor[block, None] for field, factor in zip(fields, factors))
        belongs = (part[None, block] == kept[:, None]).astype(np.float32) / counts[kept, None].astype(np.float32)
        means += belongs @ agreement
    return EdgeAgreement(means.reshape(kept.size, offsets.size, offsets.size), counts[kept].astype(np.float64), 1 / max(depth.shape))


def depth_edges(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels on the near side of a step in depth: (mask, x and y of the unit normal across the edge), each (height, width).

    A hole between the near and the far side is stepped over; where nothing is measured behind a hole, there is no edge.
    """
    reach = max(1, round(depth.shape[1] * EDGE_REACH))
    measured = np.isfinite(depth)
    seen = measured | np.isposinf(depth)
    distance = np.where(np.isposinf(depth), np.float32(1e6), np.where(measured, depth, 0)).astype(np.float32)
    farthest_near_by = cv2.dilate(distance, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    hole_or_farther = cv2.dilate(np.where(seen, distance, np.float32(1e6)), cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))
    limit = np.where(measured, JUMP * np.where(measured, depth, 0), np.inf)
    edge = (farthest_near_by > limit) & (hole_or_farther > limit)
    weight = cv2.GaussianBlur(seen.astype(np.float32), (0, 0), reach)
    logarithm = np.where(seen, np.log(np.maximum(distance, np.float32(1e-6))), 0).astype(np.float32)
    smooth = cv2.GaussianBlur(logarithm, (0, 0), reach) / np.maximum(weight, 1e-3)
    x, y = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    length = np.maximum(np.hypot(x, y), 1e-9)
    return edge, x / length, y / length


def _gradient_products(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """xx, xy and yy of the colour gradient, scaled so that a full edge has length 1 however strong its contrast is."""
    smooth = cv2.GaussianBlur(grey, (0, 0), max(0.7, grey.shape[1] / LONGEST_PX))
    x, y = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    strength = np.hypot(x, y)
    strong = np.percentile(strength, SATURATION) + 1e-6
    weight = np.minimum(strength / strong, 1) / np.maximum(strength**2, 1e-6)
    return weight * x * x, weight * x * y, weight * y * y


def at_working_size(grey: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image (float32) at the depth map's size, both at most ``LONGEST_PX``; depth by picking pixels, never by mixing them."""
    step = max(1, int(np.ceil(max(depth.shape) / LONGEST_PX)))
    depth = depth[step // 2 :: step, step // 2 :: step]
    if grey.shape != depth.shape:
        grey = cv2.resize(grey, depth.shape[::-1], interpolation=cv2.INTER_AREA if grey.shape[0] > depth.shape[0] else cv2.INTER_LINEAR)
    return grey.astype(np.float32), depth


def best_shift(surface: np.ndarray) -> tuple[int, int]:
    """(row, column) of the shift at which the agreement is best."""
    row, column = np.unravel_index(int(surface.argmax()), surface.shape)
    return int(row), int(column)


def sample_remark(agreement: EdgeAgreement) -> Remark | None:
    """Whether one sample's depth fits its image better when it is shifted."""
    if agreement.weights.size < FEWEST_PARTS or agreement.weights.sum() < FEWEST_EDGES:
        return None
    surface, middle = agreement.surface, agreement.parts.shape[1] // 2
    best = best_shift(surface)
    far_enough = _length(best) >= max(LEAST_SHIFT, LEAST_SHIFT_PX * agreement.pixel)
    weights = agreement.weights / agreement.weights.sum()
    gains = agreement.parts[:, best[0], best[1]] - agreement.parts[:, middle, middle]
    gain = float(weights @ gains)
    error = float(np.sqrt(weights**2 @ ((gains - gain) ** 2 + PART_ERROR**2)))
    if not far_enough or gain < CLEAR * error or not _little_is_left(surface, best):
        return None
    return Remark("misaligned", WARNING, _length(best), _sentence(surface, best), gain)


@dataclasses.dataclass
class EdgeSums:
    """The agreement of a source's samples at every shift: running sums of surfaces and of gains over no shift."""

    samples: int = 0
    surface: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((shifts().size, shifts().size)))
    squared_gain: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((shifts().size, shifts().size)))

    def add(self, agreement: EdgeAgreement) -> bool:
        """One more sample; whether it has edges enough to count."""
        if agreement.weights.sum() < FEWEST_EDGES:
            return False
        surface, middle = agreement.surface, self.surface.shape[0] // 2
        self.samples += 1
        self.surface += surface
        self.squared_gain += (surface - surface[middle, middle]) ** 2
        return True

    def remark(self) -> Remark | None:
        """Whether the source's depth is shifted against its images, or lies on other images altogether."""
        if self.samples < ENOUGH_SAMPLES:
            return None
        surface = self.surface / self.samples
        middle, best = surface.shape[0] // 2, best_shift(surface)
        gain = surface[best] - surface[middle, middle]
        error = np.sqrt(max(self.squared_gain[best] / self.samples - gain**2, 1e-6) / self.samples)
        if _length(best) >= LEAST_SHIFT and gain >= max(GAIN_OF_SOURCE, CLEAR * error):
            return Remark("misaligned", ERROR, _length(best), _sentence(surface, best))
        background = float(np.median(surface))
        if self.samples >= ENOUGH_TO_MISS and surface[middle, middle] < background + CHANCE:
            message = (
                f"depth edges lie on colour edges as rarely as anywhere near ({surface[middle, middle]:.2f}, by chance {background:.2f}): "
                "depth of another camera that was not registered to colour, or of other frames?"
            )
            return Remark("misaligned", ERROR, 0.0, message)
        return None


def _length(best: tuple[int, int]) -> float:
    steps = shifts()
    return float(np.hypot(steps[best[0]], steps[best[1]]))


def _little_is_left(surface: np.ndarray, best: tuple[int, int]) -> bool:
    middle, background = surface.shape[0] // 2, float(np.median(surface))
    above = float(surface[best]) - background
    return above > LEAST_GAIN and float(surface[middle, middle]) - background < LEFT_WITHOUT_SHIFT * above


def _sentence(surface: np.ndarray, best: tuple[int, int]) -> str:
    middle, steps = surface.shape[0] // 2, shifts()
    return (
        f"depth fits the image better when it is shifted by {steps[best[1]]:+.2%} of the longer side to the right and "
        f"{steps[best[0]]:+.2%} down: edges agree {surface[best]:.2f}, as it is {surface[middle, middle]:.2f}"
    )
