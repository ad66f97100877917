"""Independent writers of the rendered data sets: each lays down one frame in its maker's layout and encoding, with PIL, struct and the
format's own library, from a map of labels (metres; NaN = not measured, +inf = sky). None of the readers' code is used. Images are small
copies in the shape of the makers'.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import OpenEXR
from PIL import Image
from source_fixtures import write_codes, write_colour

WIDTH, HEIGHT = 64, 48


def codes(labels: np.ndarray, scale: float, invalid: int, sky: int) -> np.ndarray:
    """Whole numbers of ``labels * scale``, with the maker's codes for NaN and +inf."""
    finite = np.where(np.isfinite(labels), labels, 1.0)
    numbers = np.round(finite * scale).astype(np.int64)
    return np.where(np.isnan(labels), invalid, np.where(np.isinf(labels), sky, numbers))


def parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_exr(path: Path, values: np.ndarray, channel: str = "Y") -> Path:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    OpenEXR.File(header, {channel: values.astype(np.float32)}).write(str(parent(path)))
    return path


def write_hdf5(path: Path, dataset: str, values: np.ndarray) -> Path:
    with h5py.File(parent(path), "w") as file:
        file.create_dataset(dataset, data=values, compression="gzip")
    return path


def disparity(labels: np.ndarray, focal_baseline: float, invalid: float) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(labels), invalid, focal_baseline / labels).astype(np.float32)  # 0 for the sky


def hypersim(root: Path, labels: np.ndarray, ray_from_uv: np.ndarray | None = None, kind: str = "<f2") -> Path:
    """``labels`` are distances along the ray, half floats as the makers'; a camera of 55 px unless given."""
    if ray_from_uv is None:
        ray_from_uv = np.diag([WIDTH / 2 / 55.0, HEIGHT / 2 / 55.0, -1.0])
    columns = [f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3)]
    (root / "metadata_camera_parameters.csv").write_text(
        f"scene_name,camera_physical_fov,{','.join(columns)},settings_output_img_width\n"
        f"ai_001_002,1.0,{','.join(repr(float(value)) for value in ray_from_uv.ravel())},{WIDTH}\n"
        f"ai_009_009,1.0,{','.join([''] * 9)},{WIDTH}\n"
    )
    images = root / "ai_001_002" / "images"
    write_colour(images / "scene_cam_00_final_preview" / "frame.0007.tonemap.jpg", WIDTH, HEIGHT)
    return write_hdf5(images / "scene_cam_00_geometry_hdf5" / "frame.0007.depth_meters.hdf5", "dataset", labels.astype(kind))


def virtual_kitti(root: Path, labels: np.ndarray) -> Path:
    frames = root / "Scene01" / "15-deg-left" / "frames"
    parent(frames.parent / "intrinsic.txt").write_text(
        "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]\n0 0 1 1 1 1\n3 0 60.5 58.5 31.5 23.5\n3 1 9 9 31.5 23.5\n"
    )
    write_colour(frames / "rgb" / "Camera_0" / "rgb_00003.jpg", WIDTH, HEIGHT)
    return write_codes(frames / "depth" / "Camera_0" / "depth_00003.png", codes(labels, 100, 0, 65535))


def tartanair(root: Path, labels: np.ndarray) -> Path:
    trajectory = root / "hospital" / "hospital" / "Easy" / "P001"
    write_colour(trajectory / "image_left" / "000002_left.png", WIDTH, HEIGHT)
    path = parent(trajectory / "depth_left" / "000002_left_depth.npy")
    np.save(path, np.where(np.isnan(labels), 0, np.where(np.isinf(labels), 10_000, labels)).astype(np.float32))
    return path


def tartanair_v2(root: Path, labels: np.ndarray) -> Path:
    """The four bytes of each float by struct, lowest first: blue, green, red, alpha."""
    trajectory = root / "Hospital" / "Data_hard" / "P004"
    write_colour(trajectory / "image_rcam_top" / "000002_rcam_top.png", 64, 64)
    height, width = labels.shape
    values = np.where(np.isnan(labels), 0, np.where(np.isinf(labels), 1e6, labels)).ravel()
    bytes_of = [struct.pack("<f", value) for value in values]
    pixels = [(one[2], one[1], one[0], one[3]) for one in bytes_of]
    path = parent(trajectory / "depth_rcam_top" / "000002_rcam_top_depth.png")
    Image.fromarray(np.array(pixels, np.uint8).reshape(height, width, 4), "RGBA").save(path)
    return path


def irs(root: Path, labels: np.ndarray) -> Path:
    write_colour(root / "Home" / "Walk_1" / "l_12.png", 64, 36)
    return write_exr(root / "Home" / "Walk_1" / "d_12.exr", disparity(labels, 32 * 0.1, -1.0), "G")


def blended_mvs(root: Path, labels: np.ndarray) -> Path:
    scene = root / "5bfe5ae0fe0ea555e6a969ca"
    write_colour(scene / "blended_images" / "00000004.jpg", WIDTH, HEIGHT)
    write_colour(scene / "blended_images" / "00000004_masked.jpg", WIDTH, HEIGHT)
    parent(scene / "cams" / "00000004_cam.txt").write_text(
        "extrinsic\n1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n\nintrinsic\n61.5 0 30.25\n0 62.5 22.75\n0 0 1\n\n0.5 0.01 128 9.5\n"
    )
    path = parent(scene / "rendered_depth_maps" / "00000004.pfm")
    values = np.where(np.isnan(labels), 0, labels).astype("<f4")
    path.write_bytes(b"Pf\n%d %d\n-1.000000\n" % labels.shape[::-1] + values[::-1].tobytes())
    return path


def mvs_synth(root: Path, labels: np.ndarray) -> Path:
    sequence = root / "GTAV_540" / "0011"
    write_colour(sequence / "images" / "0005.png", WIDTH, HEIGHT)
    pose = {"f_x": 57.9, "f_y": 57.9, "c_x": 32.0, "c_y": 24.0, "extrinsic": np.eye(4).tolist()}
    parent(sequence / "poses" / "0005.json").write_text(json.dumps(pose))
    return write_exr(sequence / "depths" / "0005.exr", np.where(np.isnan(labels), 0, labels))


def unreal_stereo_4k(root: Path, labels: np.ndarray, ending: str = ".npy") -> Path:
    """Cameras 0.5 m apart that look along their own axes, turned against the world."""
    world = root / "00003"
    colour = write_colour(world / "Image0" / "00001.png", WIDTH, HEIGHT)
    Image.open(colour).convert("RGBA").save(colour)
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for view, centre in ((0, np.array([3.0, 2.0, 1.0])), (1, np.array([3.0, 2.5, 1.0]))):
        transform = np.concatenate([turn, -turn @ centre[:, None]], axis=1)
        parent(world / f"Extrinsics{view}" / "00001.txt").write_text(
            "52 0 32 0 52 24 0 0 1\n" + " ".join(map(str, transform.ravel())) + "\n"
        )
    path = parent(world / "Disp0" / f"00001{ending}")
    (np.save if ending == ".npy" else np.savez_compressed)(path, disparity(labels, 52 * 0.5, np.nan))
    return path


def spring(root: Path, labels: np.ndarray) -> Path:
    """Labels at twice the image's size, disparity in pixels of the image."""
    scene = root / "train" / "0041"
    write_colour(scene / "frame_left" / "frame_left_0002.png", WIDTH, HEIGHT)
    parent(scene / "cam_data" / "intrinsics.txt").write_text("9 9 32 24\n70.5 70.5 32.0 24.0\n")
    return write_hdf5(scene / "disp1_left" / "disp1_left_0002.dsp5", "disparity", disparity(labels, 70.5 * 0.065, np.nan))


def sintel(root: Path, labels: np.ndarray) -> Path:
    training = root / "training"
    write_colour(training / "final" / "alley_1" / "frame_0001.png", WIDTH, HEIGHT)
    camera = parent(training / "camdata_left" / "alley_1" / "frame_0001.cam")
    camera.write_bytes(struct.pack("<f9d12d", 202021.25, 68, 0, 31.5, 0, 69, 23.5, 0, 0, 1, *range(12)))
    path = parent(training / "depth" / "alley_1" / "frame_0001.dpt")
    height, width = labels.shape
    values = np.where(np.isnan(labels), 0, np.where(np.isinf(labels), 1e10, labels)).ravel()
    path.write_bytes(struct.pack(f"<fii{values.size}f", 202021.25, width, height, *values))
    return path


def mid_air(root: Path, labels: np.ndarray) -> Path:
    """``labels`` are distances along the ray; the bits of half floats by struct."""
    climate = root / "Kite_training" / "sunny"
    colour = climate / "color_left" / "trajectory_0008" / "000100.JPEG"
    write_colour(colour.with_suffix(".jpg"), 64, 64).rename(colour)
    values = np.where(np.isnan(labels), 0, np.where(np.isinf(labels), 1300, labels)).ravel()
    bits = struct.unpack(f"<{values.size}H", struct.pack(f"<{values.size}e", *values))
    path = write_codes(climate / "depth" / "trajectory_0008" / "000100.png", np.array(bits).reshape(labels.shape))
    return path.rename(path.with_suffix(".PNG"))


def synthia(root: Path, labels: np.ndarray) -> Path:
    sequence = root / "SYNTHIA-SEQS-05-SPRING"
    write_colour(sequence / "RGB" / "Stereo_Left" / "Omni_F" / "000009.png", 64, 38)
    path = parent(sequence / "Depth" / "Stereo_Left" / "Omni_F" / "000009.png")
    return write_png16(path, np.repeat(codes(labels, 100, 0, 65535)[:, :, None], 3, axis=2))


def write_png16(path: Path, channels: np.ndarray) -> Path:
    """Three channels of 16 bits, which PIL cannot write: signature, header, rows without a filter, end."""
    height, width, _ = channels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), channels.astype(">u2").reshape(height, -1).view(np.uint8)], axis=1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 1)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def synthia_sf(root: Path, labels: np.ndarray) -> Path:
    write_colour(root / "SEQ3" / "RGBLeft" / "0000017.png", 64, 36)
    numbers = codes(labels, (256**3 - 1) / 1000, 0, 256**3 - 1)
    pixels = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
    path = parent(root / "SEQ3" / "DepthLeft" / "0000017.png")
    Image.fromarray(pixels).save(path)
    return path


def replica(root: Path, labels: np.ndarray) -> Path:
    results = root / "room0" / "results"
    write_colour(results / "frame000030.jpg", WIDTH, HEIGHT)
    (root / "room0" / "traj.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1\n")
    return write_codes(results / "depth000030.png", codes(labels, 6553.5, 0, 65535))


def taskonomy(root: Path, labels: np.ndarray) -> Path:
    """``labels`` are distances along the ray; a field of view of 1.2 rad over the width."""
    places = {kind: root / kind / "taskonomy" / "cauthron" for kind in ("rgb", "depth_euclidean", "point_info")}
    write_colour(places["rgb"] / "point_0_view_3_domain_rgb.png", WIDTH, WIDTH)
    info = {"field_of_view_rads": 1.2, "resolution": 512, "camera_rotation_final": [1.5, 0, 0.3]}
    parent(places["point_info"] / "point_0_view_3_domain_point_info.json").write_text(json.dumps(info))
    return write_codes(places["depth_euclidean"] / "point_0_view_3_domain_depth_euclidean.png", codes(labels, 512, 65535, 65535))
