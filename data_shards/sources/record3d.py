"""Record3D recordings of an iPhone or iPad: ``X.r3d``, or the app's EXR export (``EXR_RGBD/{rgb,depth,metadata.json}``).

An .r3d file is a zip: ``metadata`` (JSON) and ``rgbd/N.jpg``, ``rgbd/N.depth`` and, from lidar devices, ``rgbd/N.conf``. Depth is float32
metres, z, row by row, ``dh`` x ``dw`` (256x192 upright), compressed with Apple's LZFSE; NaN or 0 = not measured; the confidence is one
byte a pixel, 0, 1 or 2. An EXR export holds the same depth without the confidence.

``perFrameIntrinsicCoeffs`` holds fx, fy, cx, cy per frame (autofocus changes them); without it ``K`` does, 3x3 *column* by column. Both
are in pixels of a ``w`` x ``h`` image, ARKit's way (first pixel's centre at 0); the jpg may be larger and the camera is scaled to it. The
face camera's recordings (480x640 depth) are read too.

The lidar map is all there is: it is stored as depth (pixels below ``min_confidence`` dropped) and, with ``as_prompt``, as prompt, with its
confidence. One recording is one group.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.phone_lidar import PROMPT_IS_DEPTH, attach_lidar, believe, check_least_confidence, check_levels
from data_shards.sources.raw_arrays import positive_or_nan
from data_shards.sources.raw_containers import read_exr, require_libraries
from data_shards.sources.raw_depth import make_sample, opencv_camera
from data_shards.sources.raw_files import (
    ColourImage,
    check_colour,
    check_every,
    clean_key,
    find_below,
    read_colour,
    require_folder,
    require_unique,
)
from data_shards.sources.record import SourceRecord, TrustTier

EXPORT = "metadata.json"
NUMBERS = dict[str, Any]


@dataclasses.dataclass
class Record3d:
    """``input_path``: a folder with recordings, at most three levels below. ``every``: take each n-th frame (they come at 30 or 60 Hz)."""

    name: ClassVar[str] = "record3d"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Record3D recordings (.r3d and EXR export)",
        homepage="https://record3d.app/",
        layout="X.r3d (zip of metadata, rgbd/N.jpg, N.depth, N.conf), or EXR_RGBD/{metadata.json,rgb/N.jpg,depth/N.exr}",
        unit="m",
        encoding="float32 compressed with LZFSE, or EXR; confidence bytes 0, 1, 2",
        invalid_codes="NaN, 0; confidence below min_confidence",
        depth_type=DepthType.Z,
        camera="perFrameIntrinsicCoeffs, else K",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="recording",
        licence="unknown",
        licence_url="",
        trust_tier=TrustTier.SENSOR,
        notes=PROMPT_IS_DEPTH,
    )

    input_path: Path
    every: int = 1
    min_confidence: int = 1
    as_prompt: bool = True
    sensor: str = "iphone_lidar"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, ("lzfse",))
        check_least_confidence(self.min_confidence)
        check_every(self.every)

    def items(self) -> list[SourceItem]:
        """One item per frame; its camera travels in the payload, so that reading it opens no metadata."""
        root = require_folder(self.input_path, self.record.layout)
        items = [item for path in find_below(root, "*.r3d", 3) for item in self._archive_items(path)]
        items += [item for path in find_below(root, EXPORT, 3) if (path.parent / "depth").is_dir() for item in self._export_items(path)]
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample, with its lidar map as prompt."""
        payload = item.payload
        path = self.input_path / payload["recording"]
        if path.suffix == ".r3d":
            colour, lidar, levels = read_archive(path, payload["frame"], (payload["dh"], payload["dw"]))
        else:
            colour, lidar, levels = read_colour(path / payload["rgb"]), positive_or_nan(read_exr(path / payload["depth"])), None
        believed = believe(lidar, levels, self.min_confidence)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            believed,
            path,
            camera=self._camera(payload, colour),
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        return [attach_lidar(sample, believed, levels, depth_is_lidar=True, as_prompt=self.as_prompt)]

    def _archive_items(self, path: Path) -> list[SourceItem]:
        try:
            with zipfile.ZipFile(path) as archive:
                metadata = json.loads(archive.read("metadata"))
                frames = sorted(int(Path(name).stem) for name in archive.namelist() if name.startswith("rgbd/") and name.endswith(".depth"))
            size = {"dw": int(metadata["dw"]), "dh": int(metadata["dh"])}
            return [self._item(path, path, frame, metadata, size | {"frame": frame}) for frame in frames[:: self.every]]
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{path}: not a readable Record3D recording ({type(error).__name__}: {error}); copy it again") from error

    def _export_items(self, path: Path) -> list[SourceItem]:
        folder = path.parent
        colours = {file.stem: file.name for file in sorted((folder / "rgb").glob("*"))}
        try:
            metadata = json.loads(path.read_bytes())
            frames = sorted((file for file in (folder / "depth").glob("*.exr")), key=lambda file: int(file.stem))
            files = [
                {"rgb": f"rgb/{colours.get(file.stem, file.stem + '.jpg')}", "depth": f"depth/{file.name}"}
                for file in frames[:: self.every]
            ]
            recording = folder.parent if folder.name == "EXR_RGBD" else folder
            return [self._item(folder, recording, int(Path(file["depth"]).stem), metadata, file) for file in files]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not the metadata of a Record3D export ({type(error).__name__}: {error})") from error

    def _item(self, place: Path, recording: Path, frame: int, metadata: NUMBERS, files: NUMBERS) -> SourceItem:
        group = (
            recording.relative_to(self.input_path).with_suffix("").as_posix() if recording != self.input_path else recording.resolve().name
        )
        payload = {
            "recording": place.relative_to(self.input_path).as_posix(),
            "group": group,
            "intrinsics": intrinsics_of(metadata, frame),
            "size": [int(metadata["w"]), int(metadata["h"])],
        }
        return SourceItem(clean_key(group, f"{frame:06d}"), payload | files)

    def _camera(self, payload: NUMBERS, colour: ColourImage) -> Camera:
        """The camera of the jpg, which may be larger than the image that the metadata speaks of."""
        width, height = payload["size"]
        path = self.input_path / payload["recording"]
        if abs(colour.width * height - colour.height * width) > max(width, height):
            raise RejectedSample(f"{path}: the jpg is {colour.width}x{colour.height}, the metadata speaks of {width}x{height}")
        try:
            # Scaling is exact where the image's corner is the origin, so the camera moves there first.
            return opencv_camera(*payload["intrinsics"]).scaled(colour.width / width, colour.height / height)
        except ValueError as error:
            raise RejectedSample(f"{path}: unusable intrinsics {payload['intrinsics']} ({error})") from error


def intrinsics_of(metadata: NUMBERS, frame: int) -> list[float]:
    """fx, fy, cx, cy of a frame in pixels of the ``w`` x ``h`` image; KeyError or TypeError if the metadata has none."""
    frames = metadata.get("perFrameIntrinsicCoeffs") or []
    if frame < len(frames):
        return [float(value) for value in frames[frame][:4]]
    matrix = np.array(metadata["K"], np.float64).reshape(3, 3).T
    return [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]


def read_archive(path: Path, frame: int, shape: tuple[int, int]) -> tuple[ColourImage, np.ndarray, np.ndarray | None]:
    """(colour, depth in metres, confidence levels if recorded) of one frame of an .r3d file.

    Raises:
        RejectedSample: a member is missing, damaged or of another size.
    """
    import lzfse

    name = f"rgbd/{frame}"
    try:
        with zipfile.ZipFile(path) as archive:
            colour = check_colour(archive.read(f"{name}.jpg"), path / f"{name}.jpg")
            depth = lzfse.decompress(archive.read(f"{name}.depth"))
            levels = lzfse.decompress(archive.read(f"{name}.conf")) if f"{name}.conf" in archive.namelist() else None
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, lzfse.error, MemoryError) as error:
        raise RejectedSample(f"{path}: frame {frame} cannot be read ({type(error).__name__}: {error}); copy the recording again") from error
    if len(depth) != 4 * shape[0] * shape[1]:
        raise RejectedSample(f"{path}: {name}.depth holds {len(depth)} bytes, expected {4 * shape[0] * shape[1]} for {shape[1]}x{shape[0]}")
    if levels is not None and len(levels) != shape[0] * shape[1]:
        raise RejectedSample(f"{path}: {name}.conf holds {len(levels)} bytes, expected {shape[0] * shape[1]} for {shape[1]}x{shape[0]}")
    lidar = positive_or_nan(np.frombuffer(depth, "<f4").reshape(shape))
    return colour, lidar, None if levels is None else check_levels(path, np.frombuffer(levels, np.uint8).reshape(shape), shape)
