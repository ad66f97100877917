"""The compiled loops give what the numpy code gives, bit by bit. Without numba the same loops run as they are written, on small maps."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from data_shards.codecs import encode_image
from data_shards.schema import Camera, DepthType, LabelKind, Sample, SampleMeta
from mdpretrain.data import area_resize, pipeline, resample
from mdpretrain.data.crops import random_view
from mdpretrain.data.pipeline import Augmentation, RowOptions, SamplePipeline

SIZE, MAP_SHAPES = (40, 30), ((30, 40), (17, 23), (61, 80))


def each_way(monkeypatch: pytest.MonkeyPatch, run):
    """What ``run()`` gives by numpy and by the loops."""
    results = []
    for loops in (False, True):
        for module in (area_resize, pipeline, resample):
            monkeypatch.setattr(module, "COMPILED", loops)
        with np.errstate(divide="ignore", invalid="ignore"):
            results.append(run())
    return results


def random_depth(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A slope with noise, an edge, holes that are not measured, and sky."""
    depth = (np.linspace(2, 3, shape[0])[:, None] + rng.normal(0, 0.03, shape)).astype(np.float32)
    depth[:, shape[1] // 2 :] *= 4
    depth[rng.random(shape) < rng.choice([0, 0.2, 0.9])] = np.nan
    depth[: rng.integers(0, 8)] = np.inf
    return depth


@pytest.mark.parametrize("shape", MAP_SHAPES)
def test_depth_of_random_views(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for _ in range(12):
        depth = random_depth(rng, shape)
        before = depth.copy()
        view = random_view(SIZE, (9, 14), (0.2, 1.0), 1.5, 0.5, rng)
        expected, got = each_way(monkeypatch, functools.partial(resample.sample_depth, depth, view, SIZE))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got.view(np.uint32)[~np.isnan(got)], expected.view(np.uint32)[~np.isnan(expected)])
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
        np.testing.assert_array_equal(depth, before)


@pytest.mark.parametrize("flip", [False, True])
def test_colour_shrinks_to_the_same_picture(flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    for out, size in [((7, 9), (10, 13)), ((7, 9), (20, 9)), ((5, 6), (5, 17)), ((8, 8), (15, 31))]:
        box = rng.integers(0, 256, (size[0] + 2, size[1] + 2, 3)).astype(np.uint8)[1:-1, 1:-1]
        expected, got = each_way(monkeypatch, functools.partial(area_resize.shrink_area, box, *out, flip))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("with_sky", [False, True])
def test_whole_rows(with_sky: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    augmented = SamplePipeline((12, 12), Augmentation(), None, seed=1)
    image = encode_image(rng.integers(0, 256, (*reversed(SIZE), 3)).astype(np.uint8))
    for position in range(6):
        meta = SampleMeta(f"a/{position}", "a", LabelKind.CAPTURED, DepthType.Z, True, Camera(40, 40, 20, 15), SIZE)
        depth = random_depth(rng, MAP_SHAPES[0])
        sky = rng.random(depth.shape) < 0.2 if with_sky else None
        sample = Sample(meta, image, "jpg", depth, sky=sky)

        expected, got = each_way(monkeypatch, functools.partial(augmented, sample, position, RowOptions()))
        for field in ("image", "depth", "valid", "sky"):
            one, other = getattr(expected, field), getattr(got, field)
            assert one.dtype == other.dtype and np.array_equal(one, other), field
        assert (got.depth > 0)[got.valid].all() and not (got.valid & got.sky).any() and not got.depth[~got.valid].any()


def test_nothing_valid_is_an_error_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = SampleMeta("a/0", "a", LabelKind.CAPTURED, DepthType.Z, True, None, SIZE)
    depth = np.full(MAP_SHAPES[0], np.inf, np.float32)
    sample = Sample(meta, encode_image(np.zeros((*reversed(SIZE), 3), np.uint8)), "jpg", depth)

    def run() -> str:
        with pytest.raises(ValueError, match="no measured depth in view") as caught:
            SamplePipeline((12, 12), None, None, seed=1)(sample, 0, RowOptions())
        return str(caught.value)

    expected, got = each_way(monkeypatch, run)
    assert expected == got
