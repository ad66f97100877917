"""NYU Depth v2 and iBims-1, written as Matlab writes them: axes reversed, pixels counted from 1."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io
from source_fixtures import pixels_of, plane_z, read_all, read_only

from data_shards.schema import Camera, LabelKind
from data_shards.sources.base import RejectedSample
from data_shards.sources.ibims1 import Ibims1
from data_shards.sources.nyu_v2 import NyuV2

SIZE = (64, 48)

# NYU Depth v2 ---------------------------------------------------------------------------------------------------------------


def write_nyu(folder, scenes=("kitchen_0004", "kitchen_0004", "office_0001a")):
    """As Matlab 7.3 writes it: axes reversed, text as cells that refer to columns of UTF-16 codes."""
    h5py = pytest.importorskip("h5py", reason="the extra 'sources' is not installed")
    count = len(scenes)
    images = np.zeros((count, 3, 640, 480), np.uint8)
    images[:, 0], images[:, 1] = np.arange(640)[None, :, None] // 4, np.arange(480)[None, None, :] // 2
    images[:, 2] = np.arange(count)[:, None, None]
    # The toolbox counts pixels from 1: column c of 1..640 looks along (c - cx) / fx.
    plane = plane_z(518.857901, 519.469611, 325.582449 - 1, 253.736166 - 1, 640, 480)
    raw = np.stack([plane.T + n for n in range(count)]).astype(np.float32)
    filled = raw.copy()
    raw[:, :7], raw[:, 630:] = 0, 10
    folder.mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["rawDepths"], file["depths"] = images, raw, filled
        cells = file.create_dataset("scenes", (1, count), h5py.ref_dtype)
        for n, scene in enumerate(scenes):
            text = file.create_dataset(f"#refs#/{n}", data=np.array([[ord(letter)] for letter in scene], np.uint16))
            cells[0, n] = text.ref
    scipy.io.savemat(folder / "splits.mat", {"trainNdxs": [[3]], "testNdxs": [[1], [2]]})
    return plane


def test_nyu_v2(tmp_path):
    plane = write_nyu(tmp_path / "nyu")
    for place in (tmp_path / "nyu", tmp_path / "nyu/nyu_depth_v2_labeled.mat"):
        samples = read_all(NyuV2(place))
        assert list(samples) == ["kitchen_0004/0001", "kitchen_0004/0002", "office_0001a/0003"]
        for n, sample in enumerate(samples.values()):
            np.testing.assert_allclose(sample.depth[:, 7:630], plane[:, 7:630] + n, rtol=1e-6)
            assert np.isnan(sample.depth[:, :7]).all() and np.isnan(sample.depth[:, 630:]).all(), "neither missing nor capped is a depth"
            assert tuple(pixels_of(sample)[100, 200]) == (50, 50, n), "columns and rows are not mixed up, red is red"
            camera = sample.meta.camera
            assert (camera.cx, camera.cy) == pytest.approx((325.082449, 253.236166))
        assert samples["office_0001a/0003"].meta.group == "office_0001a"


def test_nyu_v2_options(tmp_path):
    write_nyu(tmp_path)
    assert [item.key for item in NyuV2(tmp_path, split="test").items()] == ["kitchen_0004/0001", "kitchen_0004/0002"]
    sample = read_only(NyuV2(tmp_path, split="train", depth="filled"))
    assert sample.meta.key == "office_0001a/0003" and sample.meta.label_kind == LabelKind.RECONSTRUCTED
    assert np.isfinite(sample.depth).all()
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(ValueError, match=r"splits\.mat: no such file; split=test needs"):
        NyuV2(tmp_path, split="test").items()
    scipy.io.savemat(tmp_path / "splits.mat", {"testNdxs": [[4]]})
    with pytest.raises(ValueError, match="outside 1 to 3"):
        NyuV2(tmp_path, split="test").items()
    for options in ({"depth": "smooth"}, {"split": "val"}):
        with pytest.raises(ValueError, match="option"):
            NyuV2(tmp_path, **options)


def test_nyu_v2_bad_file(tmp_path):
    write_nyu(tmp_path)
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    source = NyuV2(tmp_path)
    items = source.items()
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(RejectedSample, match=r"nyu_depth_v2_labeled\.mat: frame 1 of rawDepths cannot be read"):
        source.read(items[0])
    with pytest.raises(ValueError, match="not the labelled NYU Depth v2 file"):
        source.items()
    with pytest.raises(ValueError, match="no such file"):
        NyuV2(tmp_path / "nowhere").items()


# iBims-1 --------------------------------------------------------------------------------------------------------------------


def write_ibims(path, **changes):
    """Matlab's struct: calib transposed, pixels counted from 1."""
    plane = plane_z(60.0, 61.0, 30.0 - 1, 20.0 - 1, *SIZE)
    depth = plane.copy()
    depth[:2] = 0
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[..., 0] = np.arange(64)
    invalid, transparent = np.ones((48, 64), np.uint8), np.ones((48, 64), np.uint8)
    invalid[10:12], transparent[:, :5] = 0, 0
    data = {"rgb": rgb, "depth": depth, "calib": np.array([[60.0, 0, 0], [0, 61.0, 0], [30.0, 20.0, 1]]), "edges": invalid}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"data": data | {"mask_invalid": invalid, "mask_transp": transparent} | changes}, do_compression=True)
    return plane


def test_ibims1(tmp_path):
    plane = write_ibims(tmp_path / "ibims1_core_mat/corridor_03.mat")
    sample = read_only(Ibims1(tmp_path))
    assert (sample.meta.key, sample.meta.group) == ("corridor_03", "corridor")
    assert sample.meta.camera == Camera(60, 61, 29.5, 19.5)
    invalid = np.zeros((48, 64), bool)
    invalid[:2], invalid[10:12], invalid[:, :5] = True, True, True
    assert np.array_equal(np.isnan(sample.depth), invalid)
    np.testing.assert_allclose(sample.depth[~invalid], plane[~invalid], rtol=1e-6)
    assert tuple(pixels_of(sample)[3, 40]) == (40, 0, 0)


def test_ibims1_bad_input(tmp_path):
    path = tmp_path / "corridor_03.mat"
    write_ibims(path, mask_invalid=np.ones((3, 3)))
    with pytest.raises(RejectedSample, match="all must cover the same pixels"):
        read_only(Ibims1(tmp_path))
    write_ibims(path, calib=np.array([[60.0, 0, 30.0], [0, 61.0, 20.0], [0, 0, 1]]))
    with pytest.raises(RejectedSample, match=r"expected \[\[fx, 0, 0\]"):
        read_only(Ibims1(tmp_path))
    write_ibims(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RejectedSample, match=r"corridor_03\.mat: not an iBims-1 \.mat file"):
        read_only(Ibims1(tmp_path))
