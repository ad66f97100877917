"""Sources whose cameras come from COLMAP: workspaces, ETH3D and ScanNet++, and the undistortion that they share."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
from lens_fixtures import (
    fisheye,
    opencv,
    plane_along,
    ray_colours,
    rays,
    thin_prism_fisheye,
    write_binary_model,
    write_ray_image,
    write_text_model,
)
from PIL import Image
from source_fixtures import PLANE_DISTANCE_M, PLANE_NORMAL, write_codes

from data_shards.samples import check_sample
from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample
from data_shards.sources.colmap import Colmap
from data_shards.sources.colmap_model import Lens, read_lenses
from data_shards.sources.eth3d import Eth3d
from data_shards.sources.scannetpp import ScanNetPp
from data_shards.sources.undistortion import pinhole_target, undistort_map

pytest.importorskip("pycolmap", reason="the extra 'sources' is not installed")

SIZE = (96, 72)
PINHOLE = (80.0, 82.0, 47.0, 37.5)
THIN_PRISM = (0.21, 0.05, -0.002, 0.003, -0.1, 0.05, 0.004, -0.003)
BENT = {
    "OPENCV": ((0.12, 0.03, 0.004, -0.003), opencv),
    "OPENCV_FISHEYE": ((0.05, -0.01, 0.004, 0.0), fisheye),
    "THIN_PRISM_FISHEYE": (THIN_PRISM, thin_prism_fisheye),
}


def read_only(source):
    source = pickle.loads(pickle.dumps(source))
    (item,) = source.items()
    item = type(item)(item.key, json.loads(json.dumps(item.payload)))
    (sample,) = source.read(item)
    check_sample(sample)
    return sample


def camera_rays(camera, width, height):
    row, column = np.mgrid[:height, :width] + 0.5
    return (column - camera.cx) / camera.fx, (row - camera.cy) / camera.fy


def check_plane(depth, camera, image_size, tolerance_px=0.75, least=0.97):
    """1/z of a plane is affine in the pixel: nearest sampling may be off by what the plane changes over ``tolerance_px`` depth pixels."""
    height, width = depth.shape
    scaled = camera.scaled(width / image_size[0], height / image_size[1])
    u, v = camera_rays(scaled, width, height)
    slope = abs(PLANE_NORMAL[0] / scaled.fx) + abs(PLANE_NORMAL[1] / scaled.fy)
    valid = np.isfinite(depth)
    assert valid.mean() > least
    error = np.abs(1 / depth - 1 / plane_along(u, v))[valid]
    assert error.max() <= tolerance_px * slope / PLANE_DISTANCE_M


def check_colour(sample, tolerance):
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(sample.image_bytes, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    assert image.shape[1::-1] == sample.meta.image_size
    u, v = camera_rays(sample.meta.camera, *sample.meta.image_size)
    inside = (slice(2, -2), slice(2, -2))
    assert np.abs(image.astype(int) - ray_colours(u, v))[inside].max() <= tolerance
    # Half a pixel would shift every level by 0.6.
    shift = [(image[..., channel] - (128 + 100 * ray))[inside].mean() for channel, ray in enumerate((u, v))]
    assert np.abs(shift).max() < 0.2


@pytest.mark.parametrize("model", BENT)
@pytest.mark.parametrize("scale", [1, 4])
def test_a_bent_map_becomes_the_plane_that_it_shows(model, scale):
    """At the image's resolution and at a phone lidar's; ignoring the lens would miss by far more than a pixel."""
    params, bend = BENT[model]
    lens = Lens(model, *SIZE, PINHOLE + params)
    width, height = SIZE[0] // scale, SIZE[1] // scale
    depth = plane_along(*rays(tuple(value / scale for value in PINHOLE), bend(*params), width, height)).astype(np.float32)
    camera, *size = pinhole_target(lens)
    straight = undistort_map(depth, lens)
    check_plane(straight, camera, size, 1.0 if scale > 1 else 0.75)
    if scale == 1:  # in a lidar's large pixels the lens is bent by less than one of them
        with pytest.raises(AssertionError):
            check_plane(depth, Camera(*PINHOLE), SIZE)


def test_a_pinhole_lens_changes_nothing():
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    lens = Lens("OPENCV", 8, 6, (9.0, 9.5, 4.0, 3.0, 0.0, 0.0, 0.0, 0.0))
    assert undistort_map(depth, lens) is depth
    assert pinhole_target(lens) == (Camera(9.0, 9.5, 4.0, 3.0), 8, 6)


def write_dense(path, depth):
    """COLMAP's Mat::Write: 'width&height&channels&', then the rows as float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"{depth.shape[1]}&{depth.shape[0]}&1&".encode() + depth.astype("<f4").tobytes())


def write_workspace(root, write_model=write_binary_model, where="sparse", scale=1):
    camera = ("PINHOLE", *SIZE, PINHOLE)
    write_model(root / where, camera, ["day/a.jpg", "b.png"])
    u, v = rays(PINHOLE, None, *SIZE)
    for name in ("day/a.jpg", "b.png"):
        write_ray_image(root / "images" / name, u, v)
    small = rays(tuple(value / scale for value in PINHOLE), None, SIZE[0] // scale, SIZE[1] // scale)
    depth = plane_along(*small) / 2.5  # one unit of this model is 2.5 m
    depth[:2], depth[2, :5] = 0, -1
    write_dense(root / "stereo/depth_maps/day/a.jpg.geometric.bin", depth)
    return root


@pytest.mark.parametrize(
    ("write_model", "where"), [(write_binary_model, "sparse"), (write_text_model, "sparse/0"), (write_text_model, ".")]
)
def test_colmap_workspace(tmp_path, write_model, where):
    root = write_workspace(tmp_path / "chapel", write_model, where, scale=2)
    sample = read_only(Colmap(root))
    assert (sample.meta.key, sample.meta.group) == ("chapel/day/a", "chapel")
    assert (sample.meta.metric, sample.meta.label_kind, sample.meta.depth_type) == (False, LabelKind.RECONSTRUCTED, DepthType.Z)
    assert sample.meta.camera == Camera(*PINHOLE), "COLMAP's pixels are ours"
    assert sample.image_bytes == (root / "images/day/a.jpg").read_bytes(), "a pinhole image keeps its bytes"
    assert np.isnan(sample.depth[:2]).all() and np.isnan(sample.depth[2, :5]).all()
    check_plane(sample.depth * 2.5, sample.meta.camera, SIZE, 1e-3, least=0.9)
    scaled = read_only(Colmap(root, metres_per_unit=2.5))
    assert scaled.meta.metric
    check_plane(scaled.depth, scaled.meta.camera, SIZE, 1e-3, least=0.9)


def test_colmap_bad_input(tmp_path):
    for options, message in [({"metres_per_unit": -1.0}, "metres_per_unit"), ({"kind": "dense"}, "kind='dense'")]:
        with pytest.raises(ValueError, match=message):
            Colmap(tmp_path, **options)
    root = write_workspace(tmp_path / "chapel")
    path = root / "stereo/depth_maps/day/a.jpg.geometric.bin"
    data = path.read_bytes()
    for damaged, message in [(data[:-4], "bytes and 1 channel"), (b"P5 4 4 255", "no COLMAP depth map"), (b"", "is empty")]:
        path.write_bytes(damaged)
        with pytest.raises(RejectedSample, match=message):
            read_only(Colmap(root))
    path.write_bytes(data)
    path.rename(path.with_name("c.jpg.geometric.bin"))
    with pytest.raises(RejectedSample, match=r"has no image 'day/c\.jpg'"):
        read_only(Colmap(root))
    (root / "sparse/cameras.bin").unlink()
    with pytest.raises(ValueError, match=r"no cameras\.bin or cameras\.txt"):
        Colmap(root).items()


@pytest.mark.parametrize("name", ["cameras", "images"])
@pytest.mark.parametrize("cut", [1, 8, 20, 60])
def test_a_truncated_model_is_an_error(tmp_path, name, cut):
    """pycolmap would take most of these for whole."""
    path = write_workspace(tmp_path) / f"sparse/{name}.bin"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=rf"{name}\.bin: not a whole file of a COLMAP model"):
        Colmap(tmp_path).items()


def test_a_text_model_with_odd_lines(tmp_path):
    (tmp_path / "cameras.txt").write_text("# comment\n3 SIMPLE_RADIAL 8 6 9.5 4 3 0.01\n\n1 PINHOLE 8 6 9 9.5 4 3\n")
    (tmp_path / "images.txt").write_text("# comment\n1 1 0 0 0 0 0 0 3 with blank.jpg\n\n2 1 0 0 0 0 0 0 1 b/c.png\n1 2 -1 3 4 5\n")
    assert read_lenses(tmp_path) == {
        "with blank.jpg": Lens("SIMPLE_RADIAL", 8, 6, (9.5, 4, 3, 0.01)),
        "b/c.png": Lens("PINHOLE", 8, 6, (9, 9.5, 4, 3)),
    }
    for row, message in [("3 NOPE 8 6 1", "NOPE"), ("3 PINHOLE 8 6 1", "PINHOLE 8x6"), ("1 PINHOLE 8 6 9 9 4 3", "KeyError: 3")]:
        (tmp_path / "cameras.txt").write_text(row)
        with pytest.raises(ValueError, match=message):
            read_lenses(tmp_path)


def write_eth3d(root):
    params, bend = BENT["THIN_PRISM_FISHEYE"]
    u, v = rays(PINHOLE, bend(*params), *SIZE)
    name = "dslr_images/DSC_0286.JPG"
    write_text_model(root / "dslr_calibration_jpg", ("THIN_PRISM_FISHEYE", *SIZE, PINHOLE + params), [name])
    write_ray_image(root / "images" / name, u, v)
    depth = plane_along(u, v).astype("<f4")
    depth[20:30, 20:40] = np.inf
    path = root / "ground_truth_depth" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(depth.tobytes())
    return root


def test_eth3d_undistorts_colour_and_depth_together(tmp_path):
    root = write_eth3d(tmp_path / "courtyard")
    sample = read_only(Eth3d(tmp_path))
    assert (sample.meta.key, sample.meta.group, sample.image_format) == ("courtyard/DSC_0286", "courtyard", "jpg")
    assert sample.meta.metric and sample.meta.depth_type == DepthType.Z
    assert (sample.meta.camera.fx, sample.meta.camera.fy) == PINHOLE[:2]
    assert sample.depth.shape == sample.meta.image_size[::-1]
    hole = np.isnan(sample.depth).sum()
    assert 150 <= hole <= 280, "about the 200 pixels that were not measured"
    check_plane(sample.depth, sample.meta.camera, sample.meta.image_size, least=0.95)
    check_colour(sample, tolerance=5)
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[40:60, 50:80], mask[:10] = 1, 2
    (root / "masks_for_images/dslr_images").mkdir(parents=True)
    Image.fromarray(mask).save(root / "masks_for_images/dslr_images/DSC_0286.png")
    masked = read_only(Eth3d(root))
    assert hole + 450 <= np.isnan(masked.depth).sum() <= hole + 800, "1 in the mask is not measured, 2 is"


def test_eth3d_bad_input(tmp_path):
    root = write_eth3d(tmp_path / "courtyard")
    path = root / "ground_truth_depth/dslr_images/DSC_0286.JPG"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RejectedSample, match=r"DSC_0286\.JPG: 27644 bytes, expected 27648"):
        read_only(Eth3d(root))
    write_ray_image(root / "images/dslr_images/DSC_0286.JPG", np.zeros((10, 12)), np.zeros((10, 12)))
    with pytest.raises(RejectedSample, match="the image is 12x10, its COLMAP camera is for 96x72"):
        read_only(Eth3d(root))


def write_scannetpp(root, device, name, rendered=True):
    model = "OPENCV" if device == "iphone" else "OPENCV_FISHEYE"
    params, bend = BENT[model]
    folder = root / "data/0a5c013435" / device
    u, v = rays(PINHOLE, bend(*params), *SIZE)
    write_text_model(folder / "colmap", (model, *SIZE, PINHOLE + params), [name])
    write_ray_image(folder / ("rgb" if device == "iphone" else "resized_images") / name, u, v)
    stem = name.split(".")[0]
    if rendered:
        codes = np.round(plane_along(u, v) * 1000)
        codes[:6] = 0
        write_codes(folder / f"render_depth/{stem}.png", codes)
    if device == "iphone":
        lidar = plane_along(*rays(tuple(value / 4 for value in PINHOLE), bend(*params), SIZE[0] // 4, SIZE[1] // 4))
        lidar[-1] = 0
        write_codes(folder / f"depth/{stem}.png", np.round(lidar * 1000))
    return root


def test_scannetpp_iphone_has_the_laser_as_depth_and_the_lidar_as_prompt(tmp_path):
    write_scannetpp(tmp_path, "iphone", "frame_000120.jpg")
    sample = read_only(ScanNetPp(tmp_path))
    assert (sample.meta.key, sample.meta.group) == ("0a5c013435/iphone/frame_000120", "0a5c013435")
    assert sample.meta.sensor == "iphone_laser"
    check_plane(sample.depth, sample.meta.camera, sample.meta.image_size, 0.8, least=0.85)
    assert np.isnan(sample.depth[:4]).all()
    assert abs(sample.prompt.shape[1] - sample.meta.image_size[0] / 4) <= 1, "the lidar keeps its resolution"
    check_plane(sample.prompt, sample.meta.camera, sample.meta.image_size, 1.1, least=0.85)
    assert np.isnan(sample.prompt[-1]).all()
    check_colour(sample, tolerance=5)
    alone = read_only(ScanNetPp(tmp_path, depth="lidar"))
    assert np.array_equal(alone.depth, sample.prompt, equal_nan=True) and alone.meta.sensor == "iphone_lidar"
    assert np.array_equal(alone.prompt, alone.depth, equal_nan=True) and alone.prompt is not alone.depth


def test_scannetpp_dslr(tmp_path):
    write_scannetpp(tmp_path, "dslr", "DSC00001.JPG")
    sample = read_only(ScanNetPp(tmp_path / "data/0a5c013435", device="dslr"))
    assert sample.prompt is None and sample.meta.sensor == "dslr_laser"
    check_plane(sample.depth, sample.meta.camera, sample.meta.image_size, 0.8, least=0.85)
    check_colour(sample, tolerance=5)


def test_scannetpp_bad_input(tmp_path):
    for options in ({"device": "phone"}, {"depth": "mesh"}, {"device": "dslr", "depth": "lidar"}):
        with pytest.raises(ValueError, match="option d"):
            ScanNetPp(tmp_path, **options)
    write_scannetpp(tmp_path, "iphone", "frame_000120.jpg", rendered=False)
    with pytest.raises(ValueError, match=r"no folder 'render_depth'; render it .* --set depth=lidar"):
        ScanNetPp(tmp_path).items()
    path = tmp_path / "data/0a5c013435/iphone/depth/frame_000120.png"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RejectedSample, match=r"frame_000120\.png: truncated png"):
        read_only(ScanNetPp(tmp_path, depth="lidar"))
