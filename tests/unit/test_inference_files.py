"""Prediction files read back by other programs' readers: units, axes, edges, and what stands in the json beside them."""

from __future__ import annotations

import io
import json

import cv2
import numpy as np
import OpenEXR
import pytest
import trimesh
from inference_parts import noise_image

from data_shards.schema import Camera
from mdpretrain.inference import formats
from mdpretrain.inference.formats import WriteOptions, to_codes
from mdpretrain.inference.mesh import EDGE_RATIO, glb_bytes, mesh_step, surface_triangles
from mdpretrain.inference.photographs import Photograph
from mdpretrain.inference.point_cloud import unproject_pixels
from mdpretrain.inference.writers import HowPredicted, is_whole, read_record, write_prediction

F_PX = 50.0
HOW = HowPredicted("runs/x", "Student", (28, 42), "32", lambda: "abc")


def photograph(f_px=F_PX, height=30, width=40):
    return Photograph("photo.jpg", noise_image(height, width), f_px, "--focal-px" if f_px else "unknown")


def scene():
    depth = np.random.default_rng(0).uniform(0.5, 60, (30, 40)).astype(np.float32)
    depth[0, 0], depth[0, 1], depth[0, 2] = np.nan, 70.0, 0.0
    return depth


def slanted_plane(camera, height, width):
    """z of 0.2 x - 0.3 y + z = 3, and the camera's rays."""
    x = (np.arange(width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(height) + 0.5 - camera.cy) / camera.fy
    return (3 / (0.2 * x[None, :] - 0.3 * y[:, None] + 1)).astype(np.float32)


def read_ply(data: bytes):
    header, body = data.split(b"end_header\n", 1)
    count = int(header.split(b"element vertex ")[1].split(b"\n")[0])
    raw = np.frombuffer(body, dtype=np.uint8).reshape(count, 15)
    return raw[:, :12].copy().view("<f4"), raw[:, 12:]


def test_files_hold_what_they_say(tmp_path):
    depth, photo = scene(), photograph()
    written = write_prediction(tmp_path / "out", "photo", depth, photo, HOW, WriteOptions(), {"precision": "32"})
    assert [f.name for f in written.files] == ["photo.npy", "photo_mm.png", "photo_colour.png", "photo.ply", "photo.json"]
    back = np.load(tmp_path / "out/photo.npy")
    assert back.dtype == np.float32 and np.array_equal(back, depth, equal_nan=True)
    millimetres = cv2.imread(str(tmp_path / "out/photo_mm.png"), cv2.IMREAD_UNCHANGED)
    assert millimetres.dtype == np.uint16 and millimetres[0, :3].tolist() == [0, 65535, 0]
    np.testing.assert_allclose(millimetres[1:] / 1000, depth[1:], atol=0.000501)
    assert any("photo_mm.png: 1 pixels beyond 65.535 m" in note for note in written.notes)
    assert cv2.imread(str(tmp_path / "out/photo_colour.png")).shape == (30, 40, 3)
    points, colours = read_ply((tmp_path / "out/photo.ply").read_bytes())
    has_depth = depth > 0
    assert len(points) == has_depth.sum() == 1198
    rows, columns = np.nonzero(has_depth)
    np.testing.assert_allclose(points[:, 0] / points[:, 2] * F_PX + 20, columns + 0.5, atol=1e-3)
    np.testing.assert_allclose(points[:, 1] / points[:, 2] * F_PX + 15, rows + 0.5, atol=1e-3)
    np.testing.assert_array_equal(points[:, 2], depth[has_depth])
    np.testing.assert_array_equal(colours, photo.pixels[has_depth])
    record = json.loads((tmp_path / "out/photo.json").read_text())
    assert record["camera"]["f_px"] == F_PX and record["camera"]["f_px_source"] == "--focal-px" and not record["camera"]["f_px_is_estimate"]
    assert record["network"] | {"fingerprint": "abc", "height": 28, "width": 42} == record["network"]
    assert "metres" in record["depth"] and list(record["files"]) == [f.name for f in written.files[:-1]]
    assert not [path for path in (tmp_path / "out").iterdir() if ".tmp-" in path.name]


def test_without_a_camera_there_is_no_cloud_and_a_note_says_so(tmp_path):
    options = WriteOptions(("npy", "ply", "glb"))
    written = write_prediction(tmp_path, "x", scene(), photograph(None), HOW, options)
    assert [f.name for f in written.files] == ["x.npy", "x.json"] and sum("--focal-px" in note for note in written.notes) == 2
    assert json.loads((tmp_path / "x.json").read_text())["left_out"] == ["x.ply", "x.glb"]
    assert is_whole(tmp_path, "x", options, {})
    with pytest.raises(ValueError, match="one size"):
        write_prediction(tmp_path, "x", scene()[:5], photograph(None), HOW, options)


def test_codes_keep_zero_for_no_depth_only():
    codes, clipped = to_codes(np.array([[0.0001, -1.0, np.inf, 65.5351]]), 1000.0)
    assert codes.tolist() == [[1, 0, 65535, 65535]] and clipped == 1
    assert to_codes(np.array([[200.0, 300.0]]), 256.0)[0].tolist() == [[51200, 65535]]


def test_a_png_of_another_scale_says_it_in_its_name(tmp_path):
    options = WriteOptions(("png16",), png_scale=256.0)
    write_prediction(tmp_path, "x", scene(), photograph(), HOW, options)
    np.testing.assert_allclose(cv2.imread(str(tmp_path / "x_x256.png"), cv2.IMREAD_UNCHANGED)[1:] / 256, scene()[1:], atol=0.5 / 256 + 1e-6)
    assert "value / 256" in json.loads((tmp_path / "x.json").read_text())["files"]["x_x256.png"]
    assert not is_whole(tmp_path, "x", WriteOptions(("png16",)), {})


def test_exr_holds_float32_metres(tmp_path):
    write_prediction(tmp_path, "x", scene(), photograph(), HOW, WriteOptions(("exr",)))
    channels = OpenEXR.File(str(tmp_path / "x.exr")).channels()
    assert list(channels) == ["Z"] and channels["Z"].pixels.dtype == np.float32
    np.testing.assert_array_equal(channels["Z"].pixels, scene())


@pytest.mark.parametrize(("change", "words"), [({"formats": ("npz",)}, "--write npz"), ({"png_scale": 0.0}, "--png-scale 0")])
def test_options_that_cannot_be_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        WriteOptions(**change)


def test_a_missing_library_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"OpenEXR.*mdpretrain\[predict\]"):
        WriteOptions(("exr",))


def load_glb(data: bytes) -> trimesh.Trimesh:
    return trimesh.load(io.BytesIO(data), file_type="glb", process=False).to_mesh()


def test_glb_is_in_metres_with_y_up_and_seen_from_its_origin():
    photo = photograph(f_px=35.0, height=24, width=32)
    depth = slanted_plane(photo.camera, 24, 32)
    mesh = load_glb(glb_bytes(depth, photo.pixels, photo.camera))
    vertices = np.asarray(mesh.vertices)
    assert len(vertices) == 24 * 32 and len(mesh.faces) == 2 * 23 * 31
    x, y, z = vertices[:, 0], -vertices[:, 1], -vertices[:, 2]  # back to the camera's frame
    np.testing.assert_allclose(0.2 * x - 0.3 * y + z, 3, rtol=1e-5)  # every vertex on the plane, in metres
    np.testing.assert_allclose(np.sort(z), np.sort(depth.ravel()), rtol=1e-6)
    assert vertices[:, 2].max() < 0  # in front of a glTF camera, which looks along -z
    top = vertices[0]
    assert top[0] < 0 < top[1]  # the image's first pixel is at the upper left
    facing = np.einsum("ij,ij->i", mesh.face_normals, -mesh.triangles_center)
    assert (facing > 0).all()  # counter-clockwise from the origin
    # the texture's coordinates are where the camera sees the vertices (trimesh turns v upside down)
    u, v = 35.0 * x / z / 32 + 0.5, 35.0 * y / z / 24 + 0.5
    np.testing.assert_allclose(mesh.visual.uv, np.stack([u, 1 - v], 1), atol=1e-5)
    texture = np.asarray(mesh.visual.material.baseColorTexture.convert("RGB")).astype(int)
    assert np.abs(texture - photo.pixels).mean() < 6  # jpeg


def test_glb_is_cut_at_depth_edges_and_where_there_is_no_depth():
    photo = photograph(height=20, width=30)
    depth = np.full((20, 30), 2.0, np.float32)
    depth[:, 15:] = 2.0 * EDGE_RATIO * 1.01
    depth[3, 4] = np.nan
    mesh = load_glb(glb_bytes(depth, photo.pixels, photo.camera))
    assert len(mesh.split(only_watertight=False)) == 2
    assert len(mesh.vertices) == 20 * 30 - 1
    z = -np.asarray(mesh.vertices)[:, 2][mesh.faces]
    np.testing.assert_allclose(z.max(axis=1), z.min(axis=1))
    assert len(mesh.faces) == 2 * 19 * 14 * 2 - 6  # six triangles touch the missing pixel
    joined = depth.copy()
    joined[:, 15:] = 2.0 * EDGE_RATIO * 0.99
    assert len(surface_triangles(joined)) == 2 * 19 * 29 - 6


def test_a_large_map_becomes_a_thinner_mesh_of_the_same_shape(monkeypatch):
    monkeypatch.setattr("mdpretrain.inference.mesh.MOST_VERTICES", 400)
    photo = photograph(f_px=90.0, height=60, width=80)
    assert mesh_step(60, 80) == 4
    mesh = load_glb(glb_bytes(slanted_plane(photo.camera, 60, 80), photo.pixels, photo.camera))
    assert len(mesh.vertices) == 15 * 20
    x, y, z = np.asarray(mesh.vertices).T * np.array([[1], [-1], [-1]])
    np.testing.assert_allclose(0.2 * x - 0.3 * y + z, 3, rtol=1e-5)
    np.testing.assert_allclose(mesh.visual.uv[:, 0], 90 * x / z / 80 + 0.5, atol=1e-5)
    assert mesh.visual.material.baseColorTexture.size == (80, 60)


def test_a_map_without_surface_has_no_mesh_and_says_so(tmp_path):
    depth = np.where(np.indices((30, 40)).sum(0) % 2, 1.0, 2.0).astype(np.float32)
    written = write_prediction(tmp_path, "x", depth, photograph(), HOW, WriteOptions(("glb",)))
    assert [f.name for f in written.files] == ["x.json"] and "x.glb: not written" in written.notes[0]
    assert is_whole(tmp_path, "x", WriteOptions(("glb",)), {})


def test_points_are_nan_where_there_is_no_depth():
    points = unproject_pixels(scene(), Camera(50, 50, 20, 15))
    assert points.shape == (30, 40, 3) and np.isnan(points[0, 0]).all() and np.isnan(points[0, 2]).all()
    np.testing.assert_allclose(points[4, 7], np.array([(7.5 - 20) / 50, (4.5 - 15) / 50, 1]) * scene()[4, 7], rtol=1e-6)


def test_a_prediction_is_whole_when_its_json_is_there(tmp_path, monkeypatch):
    options, settings = WriteOptions(("npy", "colour")), {"network": "abc"}
    assert not is_whole(tmp_path, "x", options, settings)
    write_prediction(tmp_path, "x", scene(), photograph(), HOW, options, settings)
    assert is_whole(tmp_path, "x", options, settings)
    assert not is_whole(tmp_path, "x", WriteOptions(("npy", "exr")), settings)
    with pytest.raises(ValueError, match=r"another network \(abc, now def\)"):
        is_whole(tmp_path, "x", options, {"network": "def"})
    (tmp_path / "x.npy").unlink()
    assert not is_whole(tmp_path, "x", options, settings)
    # killed between its files, a second call leaves no json that would vouch for the first one's files
    monkeypatch.setitem(formats.FORMATS, "colour", formats.Format("_colour.png", interrupt))
    with pytest.raises(KeyboardInterrupt):
        write_prediction(tmp_path, "x", scene(), photograph(), HOW, options, settings)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npy", "x_colour.png"] and read_record(tmp_path / "x.json") is None


def test_files_of_another_prediction_do_not_stay_beside_it(tmp_path):
    (tmp_path / "x_notes.txt").write_text("somebody's")
    write_prediction(tmp_path, "x", scene(), photograph(), HOW, WriteOptions(("npy", "colour")))
    write_prediction(tmp_path, "x", scene(), photograph(), HOW, WriteOptions(("exr",)))  # of the same: another format joins
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.exr", "x.json", "x.npy", "x_colour.png", "x_notes.txt"]
    assert json.loads((tmp_path / "x.json").read_text())["also_there"] == ["x.npy", "x_colour.png"]
    other = HowPredicted("runs/y", "Student", (28, 42), "32", lambda: "def")
    write_prediction(tmp_path, "x", scene(), photograph(), other, WriteOptions(("png16",)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x_mm.png", "x_notes.txt"]


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.parametrize("content", ['{"width": 64}', "[1]", "no json"])
def test_somebody_elses_json_is_not_written_over(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json: is there and is not a prediction's"):
        write_prediction(tmp_path, "x", scene(), photograph(), HOW, WriteOptions(("npy",)))
    assert (tmp_path / "x.json").read_text() == content and sorted(p.name for p in tmp_path.iterdir()) == ["x.json"]
