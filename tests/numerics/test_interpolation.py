"""Interpolation of sparse inverse depth against brute force, exact planes and scipy's own interpolator."""

import sys
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import LinearNDInterpolator
from scipy.spatial import Delaunay
from threadpoolctl import threadpool_info, threadpool_limits

from mdpretrain.prompts import interpolation
from mdpretrain.prompts.interpolation import linear_inverse_depth, nearest_inverse_depth

H, W = 30, 41


def sparse(inverse_depth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 1 / inverse_depth, 0).astype(np.float32)


def random_mask(count: int, seed: int = 0, shape: tuple[int, int] = (H, W)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask.flat[np.random.default_rng(seed).choice(mask.size, count, replace=False)] = True
    return mask


def test_nearest_takes_the_value_of_a_closest_point() -> None:
    mask = random_mask(25)
    depth_m = np.where(mask, np.random.default_rng(1).uniform(1, 9, (H, W)), 0).astype(np.float32)
    rows, columns = np.nonzero(mask)
    grid_rows, grid_columns = np.mgrid[:H, :W]
    squared = (grid_rows[..., None] - rows) ** 2 + (grid_columns[..., None] - columns) ** 2
    allowed = squared == squared.min(axis=-1, keepdims=True)  # ties may go to any of the closest
    equal = np.isclose(nearest_inverse_depth(depth_m, mask)[..., None], 1 / depth_m[rows, columns], rtol=1e-6)
    assert (allowed & equal).any(axis=-1).all()


def test_linear_is_exact_on_a_plane_inside_the_hull() -> None:
    rows, columns = np.mgrid[:H, :W]
    plane = 0.2 + 0.01 * columns + 0.004 * rows
    mask = random_mask(40)
    mask[[0, 0, -1, -1], [0, -1, 0, -1]] = True  # the hull is the whole image
    np.testing.assert_allclose(linear_inverse_depth(sparse(plane, mask), mask), plane, rtol=1e-6)


def test_linear_agrees_with_scipy_inside_and_with_nearest_outside() -> None:
    mask = random_mask(60, seed=3)
    inverse = np.random.default_rng(4).uniform(0.1, 2, (H, W))
    depth_m = sparse(inverse, mask)
    rows, columns = np.nonzero(mask)
    grid_rows, grid_columns = np.mgrid[:H, :W]
    points = np.stack([columns, rows], axis=1)
    oracle = LinearNDInterpolator(points, 1 / depth_m[rows, columns].astype(np.float64))(grid_columns, grid_rows)
    result = linear_inverse_depth(depth_m, mask)
    inside = np.isfinite(oracle)
    assert 0.4 < inside.mean() < 1
    np.testing.assert_allclose(result[inside], oracle[inside], rtol=1e-5)
    np.testing.assert_array_equal(result[~inside], nearest_inverse_depth(depth_m, mask)[~inside])
    np.testing.assert_allclose(result[mask], 1 / depth_m[mask], rtol=1e-6)


def test_a_regular_grid_has_no_holes() -> None:
    """Cocircular points are the triangulation's degenerate case."""
    rows, columns = np.mgrid[:H, :W]
    plane = 0.3 + 0.002 * columns - 0.001 * rows
    mask = np.zeros((H, W), bool)
    mask[::5, ::5] = True  # 0..25 and 0..40
    result = linear_inverse_depth(sparse(plane, mask), mask)
    np.testing.assert_allclose(result[:26, :41], plane[:26, :41], rtol=1e-6)
    assert np.isfinite(result).all()


@pytest.mark.parametrize("function", [nearest_inverse_depth, linear_inverse_depth])
def test_no_point_and_one_point(function) -> None:
    mask = np.zeros((H, W), bool)
    assert (function(np.zeros((H, W), np.float32), mask) == 0).all()
    mask[7, 9] = True
    result = function(sparse(np.full((H, W), 0.25), mask), mask)
    assert result.dtype == np.float32 and (result == 0.25).all()


def test_two_points_are_linear_between_and_constant_beyond() -> None:
    mask = np.zeros((H, W), bool)
    mask[10, 10] = mask[10, 30] = True
    inverse = np.ones((H, W))
    inverse[10, 30] = 3.0
    result = linear_inverse_depth(sparse(inverse, mask), mask)
    np.testing.assert_allclose(result, np.broadcast_to(np.interp(np.arange(W), [10, 30], [1, 3]), (H, W)), rtol=1e-6)


@pytest.mark.parametrize("slope", [(0, 1), (1, 0), (1, 1), (-1, 2)])
def test_collinear_points_are_linear_along_their_line(slope: tuple[int, int]) -> None:
    steps = np.arange(5) * 3
    start_row = 20 if slope[0] < 0 else 2
    rows, columns = start_row + slope[0] * steps, 4 + slope[1] * steps
    mask = np.zeros((H, W), bool)
    mask[rows, columns] = True
    values = np.array([1.0, 2.0, 0.5, 0.7, 3.0])
    inverse = np.ones((H, W))
    inverse[rows, columns] = values
    result = linear_inverse_depth(sparse(inverse, mask), mask)
    np.testing.assert_allclose(result[rows, columns], values, rtol=1e-6)
    middle = result[start_row + slope[0], 4 + slope[1]]  # a third of the way from the first to the second point
    assert middle == pytest.approx(1 + 1 / 3, rel=1e-6)
    assert np.isfinite(result).all() and result.min() >= 0.5 and result.max() <= 3.0


def test_a_masked_in_pixel_without_depth_is_refused() -> None:
    mask = random_mask(5)
    with pytest.raises(ValueError, match="finite and positive"):
        linear_inverse_depth(np.zeros((H, W), np.float32), mask)


def test_the_triangulation_keeps_to_one_thread_and_gives_the_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of scipy's BLAS made it thousands of times slower on a busy machine."""

    class Watched(Delaunay):
        @property
        def transform(self) -> np.ndarray:
            threads.append(blas_threads())
            return super().transform

    threads: list[list[int]] = []
    monkeypatch.setattr(interpolation, "Delaunay", Watched)
    mask = random_mask(300, shape=(144, 192))
    depth_m = sparse(np.random.default_rng(0).uniform(0.1, 2, (144, 192)), mask)
    with threadpool_limits(2, user_api="blas"):
        linear_inverse_depth(depth_m, mask)
        assert set(blas_threads()) == {2}
    assert threads and set(threads[0]) == {1}  # the first builds it; scipy keeps it


def test_no_loop_runs_over_pixels_or_triangles() -> None:
    """As many lines are executed for a larger image and a denser prompt."""
    assert lines_of_interpolation(300, (144, 192)) == lines_of_interpolation(2000, (288, 384)) > 20


def lines_of_interpolation(points: int, shape: tuple[int, int]) -> int:
    lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line" and frame.f_code.co_filename == interpolation.__file__
        return trace

    mask = random_mask(points, shape=shape)
    depth_m = sparse(np.random.default_rng(0).uniform(0.1, 2, shape), mask)
    linear_inverse_depth(depth_m, mask)  # what is done once is done
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        linear_inverse_depth(depth_m, mask)
    finally:
        sys.settrace(before)
    return lines


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_a_dense_prompt_is_interpolated_as_by_scipy(share: float) -> None:
    """Only the borders of the gaps are triangulated; with generic positions missing, the triangles over the gaps are the same."""
    rng = np.random.default_rng(6)
    rows, columns = np.mgrid[:H, :W]
    mask = rng.random((H, W)) < share
    mask[:, [0, -1]] = mask[[0, -1]] = False  # gaps at the border as well
    inverse = 0.3 + 0.01 * columns + 0.004 * rows  # linear: any choice among co-circular points gives the same
    depth_m = sparse(inverse, mask)
    oracle = LinearNDInterpolator(np.argwhere(mask), 1 / depth_m[mask].astype(np.float64))(rows, columns)
    result, inside = linear_inverse_depth(depth_m, mask), np.isfinite(oracle)
    assert mask.mean() >= 0.5 or share == 0.5
    np.testing.assert_allclose(result[inside], oracle[inside], rtol=1e-6)
    nearest = nearest_inverse_depth(depth_m, mask)
    np.testing.assert_allclose(result[~inside], nearest[~inside], atol=0.015)  # equally near points may differ by one pixel's step
    np.testing.assert_array_equal(result[mask], (1 / depth_m[mask].astype(np.float64)).astype(np.float32))


def test_a_hole_in_a_dense_prompt_is_filled_from_its_border() -> None:
    """Random values: a single missing pixel has four neighbours on one circle, and the mean of two opposite ones."""
    inverse = np.random.default_rng(7).uniform(0.2, 2, (H, W))
    mask = np.ones((H, W), bool)
    mask[10, 20] = mask[0, 0] = mask[-1, 7] = False
    depth_m = sparse(inverse, mask)
    result = linear_inverse_depth(depth_m, mask)
    kept = 1 / np.where(mask, depth_m, 1).astype(np.float64)
    pairs = (kept[9, 20] + kept[11, 20]) / 2, (kept[10, 19] + kept[10, 21]) / 2
    assert min(abs(result[10, 20] - pair) for pair in pairs) < 1e-6
    assert min(abs(result[0, 0] - kept[0, 1]), abs(result[0, 0] - kept[1, 0])) < 1e-6  # outside the hull: nearest
    assert abs(result[-1, 7] - (kept[-1, 6] + kept[-1, 8]) / 2) < 1e-6  # on the hull's edge
    np.testing.assert_array_equal(linear_inverse_depth(sparse(inverse, mask | True), mask | True), (1 / sparse(inverse, mask | True)))
