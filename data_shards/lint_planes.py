"""What planes in a depth map tell: whether it holds z or ray distances, and how high the camera stands above the floor.

On a plane, 1/z is an affine function of the pixel coordinates, exactly. Distances along the ray are z times the length of the ray
``(x, y, 1)``, and their inverse bends towards the image's corners. So the reading under which more of the picture lies on one plane
is the true one.

`N` points: means over cells of a dense map, or pixels of a sparse one; `T` trial planes through three of them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.schema import Camera, DepthType

DENSE_SHARE = 0.3  # measured pixels from which cells are formed; below (lidar) every point speaks for itself
CELLS_ACROSS = 48  # cells along the longer side; averaging over a cell removes most sensor noise and keeps 1/z affine
MOST_POINTS, FEWEST_POINTS = 2500, 200
JUDGES = 500  # points that choose among the trial planes; all of them are counted on the best
TRIALS = 500  # a plane that holds 20 % of the points is hit by one of 500 triples with probability 0.98
ON_PLANE = 0.005  # relative distance in 1/z: twice a sensor's noise after averaging, a quarter of the bend at 20 degrees off axis
# A reading wins if its largest plane holds this share of the points and so many times more than under the other reading. On 322
# real and 240 rendered frames the true reading's plane is 1.3 to 18 times larger in 99 %, the other one's never 1.3 times.
PLANE_SHARE, CLEAR_RATIO = 0.1, 1.3

CONE_COSINES = (0.75, 0.94, 0.97)  # 41, 20 and 14 degrees: the search for the floor's direction narrows
FLOOR_SHARE = 0.05  # of the cells must face up
# Ground under sparse points: a plane that holds at least this share of them within 3 % of the height, with almost none below.
GROUND_SHARE, GROUND_TOLERANCE, BELOW_GROUND = 0.1, 0.03, 0.02
UPRIGHT_COSINE = 0.77  # the camera is held within 40 degrees of upright


@dataclasses.dataclass(frozen=True)
class Flatness:
    """Share of the points that lie on the largest plane if the depth is read as z, and as ray."""

    as_z: float
    as_ray: float

    def verdict(self) -> DepthType | None:
        """The reading that is clearly flatter; None where neither is."""
        if max(self.as_z, self.as_ray) < PLANE_SHARE:
            return None
        if self.as_z >= CLEAR_RATIO * self.as_ray:
            return DepthType.Z
        return DepthType.RAY if self.as_ray >= CLEAR_RATIO * self.as_z else None


def rays(shape: tuple[int, ...], image_size: tuple[int, int], camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """x / z and y / z of every pixel centre of a depth map (height, width) that covers the image's field of view."""
    height, width = shape
    scaled = camera.scaled(width / image_size[0], height / image_size[1])
    x = (np.arange(width) + 0.5 - scaled.cx) / scaled.fx
    y = (np.arange(height) + 0.5 - scaled.cy) / scaled.fy
    return np.broadcast_to(x, shape), np.broadcast_to(y[:, None], shape)


def flatness(depth: np.ndarray, image_size: tuple[int, int], camera: Camera) -> Flatness | None:
    """How flat the scene is under either reading of its depth; None where there are too few points."""
    x, y, inverse = _points(depth, image_size, camera)
    if x.size < FEWEST_POINTS:
        return None
    length = np.sqrt(1 + x * x + y * y)
    shares = [float(on_plane(largest_plane(x, y, values), x, y, values).mean()) for values in (inverse, inverse * length)]
    return Flatness(*shares)  # z = ray / length


def planes_of(depth: np.ndarray, image_size: tuple[int, int], camera: Camera) -> dict[DepthType, np.ndarray]:
    """For each reading, which pixels (height, width) lie on its largest plane: what ``flatness`` has counted, to be shown."""
    x, y, inverse = _points(depth, image_size, camera)
    length = np.sqrt(1 + x * x + y * y)
    every_x, every_y = rays(depth.shape, image_size, camera)
    every = 1 / np.where(np.isfinite(depth), depth, np.nan).astype(np.float64)
    every_length = np.sqrt(1 + every_x**2 + every_y**2)
    return {
        DepthType.Z: on_plane(largest_plane(x, y, inverse), every_x, every_y, every),
        DepthType.RAY: on_plane(largest_plane(x, y, inverse * length), every_x, every_y, every * every_length),
    }


def on_plane(plane: np.ndarray, x: np.ndarray, y: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Which inverse depths (of any shape) lie on a plane ``(a, b, c)``: 1/z = a x + b y + c."""
    return np.abs(plane[0] * x + plane[1] * y + plane[2] - inverse) < ON_PLANE * inverse


def largest_plane(x: np.ndarray, y: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """float64 (3,): the plane that holds the most of the points (N,), among ``TRIALS`` planes; NaN where all lie in one line."""
    design = np.stack([x, y, np.ones(x.size)], axis=1)
    triples = np.random.default_rng(0).integers(0, x.size, (TRIALS, 3))
    triples = triples[np.abs(np.linalg.det(design[triples])) > 1e-4]  # not in one line
    if triples.size == 0:
        return np.full(3, np.nan)
    planes = np.linalg.solve(design[triples], inverse[triples][..., None])[..., 0]
    judges = np.random.default_rng(1).permutation(x.size)[:JUDGES]
    near = np.abs(design[judges] @ planes.T - inverse[judges, None]) < ON_PLANE * inverse[judges, None]  # (JUDGES, T)
    plane = planes[int(near.sum(axis=0).argmax())]
    best = on_plane(plane, x, y, inverse)
    for _ in range(3):  # the plane through all of them holds a few more
        refined = np.linalg.lstsq(design[best], inverse[best], rcond=None)[0]
        again = on_plane(refined, x, y, inverse)
        if np.count_nonzero(again) <= np.count_nonzero(best):
            break
        plane, best = refined, again
    return plane


def camera_height(depth: np.ndarray, image_size: tuple[int, int], camera: Camera, declared: DepthType) -> float | None:
    """Distance from the camera to the floor or ground, in the depth's unit; None where there is none.

    The camera is taken to be held upright within 40 degrees. The figure is a plausibility, not a measurement: it may be a table.
    """
    if np.isfinite(depth).mean() > DENSE_SHARE:
        return _height_of_cells(depth, image_size, camera, declared)
    x, y, inverse = _points(depth, image_size, camera)
    if x.size < FEWEST_POINTS:
        return None
    z = 1 / (inverse * np.sqrt(1 + x * x + y * y) if declared == DepthType.RAY else inverse)
    return _height_of_points(np.stack([x * z, y * z, z], axis=1))


def _points(depth: np.ndarray, image_size: tuple[int, int], camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x / z, y / z and the inverse of the depth as it stands, each float64 (N,)."""
    x, y = rays(depth.shape, image_size, camera)
    measured = np.isfinite(depth)
    if measured.mean() > DENSE_SHARE:
        inverse = _cells(np.where(measured, 1 / np.where(measured, depth, 1), np.nan))
        good = np.isfinite(inverse)
        return _cells(x)[good], _cells(y)[good], inverse[good]
    places = np.flatnonzero(measured)
    if places.size > MOST_POINTS:
        places = np.random.default_rng(0).choice(places, MOST_POINTS, replace=False)
    rows, columns = np.unravel_index(places, depth.shape)
    return x[rows, columns], y[rows, columns], 1 / depth[rows, columns].astype(np.float64)


def _height_of_points(points: np.ndarray) -> float | None:
    """Height above the ground under points (N, 3), y down: the plane that holds the most points with almost none below it."""
    corners = points[np.random.default_rng(0).integers(0, len(points), (TRIALS, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    good = length > 1e-12
    normals = normals[good] / length[good, None]
    normals *= -np.sign(normals[:, 1:2])  # facing up
    heights = -np.sum(normals * corners[good, 0], axis=1)
    good = (normals[:, 1] < -UPRIGHT_COSINE) & (heights > 0)
    if not good.any():
        return None
    normals, heights = normals[good], heights[good]
    above = points @ normals.T + heights  # (N, T)
    on_ground = (np.abs(above) < GROUND_TOLERANCE * heights).mean(axis=0)
    below = (above < -3 * GROUND_TOLERANCE * heights).mean(axis=0)
    best = int(np.argmax(on_ground - 3 * below))
    if on_ground[best] < GROUND_SHARE or below[best] > BELOW_GROUND:
        return None
    return float(heights[best])


def _height_of_cells(depth: np.ndarray, image_size: tuple[int, int], camera: Camera, declared: DepthType) -> float | None:
    """Height above the lowest large surface of a dense map that faces up."""
    x, y = rays(depth.shape, image_size, camera)
    z = np.where(np.isfinite(depth), depth, np.nan).astype(np.float64)
    if declared == DepthType.RAY:
        z = z / np.sqrt(1 + x * x + y * y)
    points = np.stack([_cells(x) * (cell_z := 1 / _cells(1 / z)), _cells(y) * cell_z, cell_z], axis=-1)
    normals = np.cross(points[1:, :-1] - points[:-1, :-1], points[:-1, 1:] - points[:-1, :-1])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    usable = np.isfinite(length[..., 0]) & (length[..., 0] > 0)
    if usable.sum() < 100:
        return None
    normals, places = (normals / np.where(length > 0, length, 1))[usable], points[:-1, :-1][usable]
    up = np.array([0.0, -1.0, 0.0])  # y points down in the image
    for cosine in CONE_COSINES:
        facing_up = normals @ up > cosine
        if facing_up.sum() < FLOOR_SHARE * usable.sum():
            return None
        up = normals[facing_up].mean(axis=0)
        up /= np.linalg.norm(up)
    heights = -(places[facing_up] @ up)
    return float(np.percentile(heights, 75))


def _cells(values: np.ndarray) -> np.ndarray:
    """Means over square cells, about ``CELLS_ACROSS`` along the longer side; NaN where less than half of a cell is measured."""
    size = max(1, max(values.shape) // CELLS_ACROSS)
    rows, columns = values.shape[0] // size, values.shape[1] // size
    blocks = values[: rows * size, : columns * size].reshape(rows, size, columns, size)
    measured = np.isfinite(blocks)
    count = measured.sum(axis=(1, 3))
    sums = np.where(measured, blocks, 0).sum(axis=(1, 3), dtype=np.float64)
    return np.where(2 * count >= size * size, sums / np.maximum(count, 1), np.nan)
