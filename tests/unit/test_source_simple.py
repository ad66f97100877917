"""The simple layout: a good frame comes out right, and every bad one comes out as a reason."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from source_fixtures import plane_z, write_codes, write_colour

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample
from data_shards.sources.registry import CLASSES
from data_shards.sources.simple import Simple
from data_shards.sources.simple_record import NOTES, OPTIONAL, REQUIRED, UNITS

CAMERA = {"fx": 60.0, "fy": 61.0, "cx": 31.5, "cy": 23.5}
RECORD = {
    "width": 64, "height": 48, "depth_width": 32, "depth_height": 24, "depth_scale": 1000, "depth_type": "z", "label": "captured", **CAMERA,
}  # fmt: skip


def write_frame(folder, name="0000", changes=None, drop=(), codes=None, colour="jpg"):
    """One frame with a 64x48 image and a 32x24 depth of the test plane in millimetres."""
    if codes is None:
        # The depth camera at half the resolution: focal / 2, and (c + 0.5) / 2 - 0.5 for pixel centres at whole numbers.
        codes = np.round(plane_z(30.0, 30.5, 15.5, 11.5, 32, 24) * 1000)
        codes[2:4, 5:9] = 0
    write_codes(folder / f"{name}.depth.png", codes)
    write_colour(folder / f"{name}.rgb.{colour}", 64, 48)
    record = {field: value for field, value in {**RECORD, **(changes or {})}.items() if field not in drop}
    (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


def read_one(folder):
    source = pickle.loads(pickle.dumps(Simple(folder)))
    (item,) = source.items()
    json.dumps(item.payload)
    (sample,) = source.read(item)
    return sample


def test_a_good_frame(tmp_path):
    folder = write_frame(tmp_path / "my scans")
    sample = read_one(tmp_path)
    assert sample.meta.key == "my_scans/0000"
    assert sample.meta.source == "my scans" == sample.meta.group
    assert sample.meta.camera == Camera(60.0, 61.0, 32.0, 24.0)
    assert (sample.meta.depth_type, sample.meta.label_kind, sample.meta.metric) == (DepthType.Z, LabelKind.CAPTURED, True)
    assert sample.image_bytes == (folder / "0000.rgb.jpg").read_bytes()
    assert np.isnan(sample.depth[2:4, 5:9]).all() and np.isnan(sample.depth).sum() == 8
    expected = plane_z(30.0, 30.5, 15.5, 11.5, 32, 24)
    assert np.nanmax(np.abs(sample.depth - expected)) < 0.51e-3


def test_one_source_folder_is_enough_and_order_is_fixed(tmp_path):
    for name in ("0010", "0002", "0001"):
        write_frame(tmp_path / "scans", name, colour="png")
    items = Simple(tmp_path / "scans").items()
    assert [item.key for item in items] == ["scans/0001", "scans/0002", "scans/0010"]
    assert [item.key for item in Simple(tmp_path).items()] == [item.key for item in items]


def test_optional_fields(tmp_path):
    changes = {
        "pixel_centre": 0.5, "metric": False, "licence": "CC0", "sensor": "tof", "group": "room 7", "label": "rendered",
        "depth_type": "ray", "sky": "0000.sky.png", "prior": "0000.prior.png", "prior_scale": 256,
    }  # fmt: skip
    folder = write_frame(tmp_path / "s", changes=changes)
    sky = np.zeros((24, 32), np.uint8)
    sky[:5] = 255
    Image.fromarray(sky).save(folder / "0000.sky.png")
    write_codes(folder / "0000.prior.png", np.full((24, 32), 512))
    sample = read_one(folder)
    assert sample.meta.camera == Camera(60.0, 61.0, 31.5, 23.5)
    assert (sample.meta.metric, sample.meta.licence, sample.meta.sensor, sample.meta.group) == (False, "CC0", "tof", "room 7")
    assert (sample.meta.label_kind, sample.meta.depth_type) == (LabelKind.RENDERED, DepthType.RAY)
    assert np.isposinf(sample.depth[:5]).all() and np.isfinite(sample.depth[5:]).all()
    assert np.array_equal(sample.sky, sky > 0)
    assert (sample.prior == 2.0).all()


def test_unknown_camera_and_units_by_name(tmp_path):
    write_frame(tmp_path / "s", changes={"fx": None, "fy": None, "cx": None, "cy": None, "depth_unit": "mm"}, drop=["depth_scale"])
    sample = read_one(tmp_path)
    assert sample.meta.camera is None
    assert np.nanmedian(sample.depth) == pytest.approx(np.median(plane_z(30.0, 30.5, 15.5, 11.5, 32, 24)), rel=0.01)


@pytest.mark.parametrize(
    ("changes", "drop", "message"),
    [
        ({"depth_type": "euclidean"}, [], "depth_type is 'euclidean', expected one of 'z', 'ray'"),
        ({"depth_unit": "inch"}, ["depth_scale"], "depth_unit is 'inch', expected one of 'm/256', 'm/5000', 'mm'"),
        ({"depth_unit": "cm"}, [], "expected 100, which depth_unit 'cm' means"),
        ({"label": "pseudo"}, [], "label is 'pseudo', expected one of 'captured', 'reconstructed', 'rendered'"),
        ({}, ["depth_scale"], "lacks 'depth_scale'"),
        ({}, ["fx"], "lacks 'fx'"),
        ({"depth_scale": 0}, [], "depth_scale is 0, expected a positive number"),
        ({"depth_scale": "1000"}, [], "depth_scale is '1000', expected a number"),
        ({"fx": None}, [], "fx is None, expected a number"),
        ({"fx": -1.0}, [], "fx is -1.0, expected a positive number"),
        ({"pixel_centre": 1.0}, [], "pixel_centre is 1.0, expected 0.0"),
        ({"metric": "yes"}, [], "metric is 'yes', expected true or false"),
        ({"width": 65}, [], r"is 64x48, but 0000.json says width, height = 65x48"),
        ({"depth_height": 48}, [], r"is 32x24, but 0000.json says depth_width, depth_height = 32x48"),
        ({"licenec": "CC0"}, [], "unknown field 'licenec'"),
        ({"sky": "../x.png"}, [], "sky is '../x.png', expected the name of a file beside"),
        ({"sky": "none.png"}, [], r"none\.png: the file is missing"),
        ({"prior": "p.png"}, [], "prior_scale is None, expected a number"),
    ],
)
def test_bad_records_are_named(tmp_path, changes, drop, message):
    write_frame(tmp_path / "s", changes=changes, drop=drop)
    with pytest.raises(RejectedSample, match=message):
        read_one(tmp_path)


@pytest.mark.parametrize("ending", ["rgb.jpg", "depth.png", "json"])
def test_a_missing_file_rejects_only_its_frame(tmp_path, ending):
    write_frame(tmp_path / "s", "good")
    write_frame(tmp_path / "s", "lame")
    (tmp_path / "s" / f"lame.{ending}").unlink()
    source = Simple(tmp_path)
    good, lame = source.items()
    assert source.read(good)
    with pytest.raises(RejectedSample, match=rf"lame\.{ending}: the file is missing"):
        source.read(lame)


def test_bad_pixels_are_named(tmp_path):
    write_frame(tmp_path / "s", codes=np.zeros((24, 32)))
    with pytest.raises(RejectedSample, match=r"0000\.depth\.png: not one measured pixel"):
        read_one(tmp_path)
    path = write_frame(tmp_path / "s") / "0000.rgb.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(RejectedSample, match=r"0000\.rgb\.jpg: corrupt jpg"):
        read_one(tmp_path)
    path = write_frame(tmp_path / "s") / "0000.depth.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RejectedSample, match=r"0000\.depth\.png: truncated png"):
        read_one(tmp_path)
    (write_frame(tmp_path / "s") / "0000.json").write_text("[1]")
    with pytest.raises(RejectedSample, match=r"0000\.json: must hold one JSON object"):
        read_one(tmp_path)


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        Simple(tmp_path / "nowhere").items()
    with pytest.raises(ValueError, match="no frames found"):
        Simple(tmp_path).items()


def test_the_documented_example_is_read(tmp_path, repository):
    """The JSON in docs/sources.md, word for word, describes a frame that reads."""
    example = (repository / "docs/sources.md").read_text().split("```json\n")[1].split("```")[0]
    folder = tmp_path / "kitchen"
    write_colour(folder / "0000.rgb.jpg", 640, 480)
    write_codes(folder / "0000.depth.png", np.full((240, 320), 1500))
    write_codes(folder / "0000.prior.png", np.full((240, 320), 512))
    sky = np.zeros((240, 320), np.uint8)
    sky[:9] = 1
    Image.fromarray(sky).save(folder / "0000.sky.png")
    (folder / "0000.json").write_text(example)
    sample = read_one(tmp_path)
    assert sample.meta.camera == Camera(525.0, 525.0, 320.0, 240.0)
    assert (sample.depth[9:] == 1.5).all() and np.isposinf(sample.depth[:9]).all()
    assert (sample.prior == 2.0).all() and sample.meta.group == "kitchen, first floor"


def test_every_source_and_field_is_documented(repository):
    text = (repository / "docs/sources.md").read_text()
    assert [name for name in CLASSES if f"| `{name}` |" not in text] == []
    assert [field for field in REQUIRED + OPTIONAL + NOTES + tuple(UNITS) if f"`{field}`" not in text] == []
