"""A predicted depth map as files, each written aside and renamed, and beside them ``STEM.json``, which says what they are.

The json is written last: where it is, the prediction is whole. It holds the camera and where its focal length is from, the units, the
network's fingerprint, and the settings by which a later call sees whether it would write the same.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_shards.atomic import write_atomically
from mdpretrain.inference.formats import FORMATS, WriteOptions, file_name
from mdpretrain.inference.photographs import Photograph

DEPTH_SAYS = "z, the distance along the optical axis, in metres"
CAMERA_SAYS = "pinhole, square pixels, principal point in the middle, first pixel's centre at (0.5, 0.5)"


@dataclasses.dataclass(frozen=True)
class HowPredicted:
    """What stands behind a depth map. ``fingerprint`` is asked for when it is written: it hashes every weight."""

    checkpoint: str
    network: str
    network_size: tuple[int, int]  # (height, width)
    precision: str
    fingerprint: Callable[[], str]


@dataclasses.dataclass
class WrittenPrediction:
    """The files of one prediction, and sentences about what a file could not hold."""

    files: list[pathlib.Path] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def write_prediction(
    folder: pathlib.Path,
    stem: str,
    depth_m: np.ndarray,
    photo: Photograph,
    how: HowPredicted,
    options: WriteOptions,
    settings: Mapping[str, Any] | None = None,
) -> WrittenPrediction:
    """Write the asked formats and ``STEM.json``; point cloud and mesh are left out, with a note, where the camera is unknown.

    Args:
        folder: made if absent.
        stem: beginning of the file names.
        depth_m: (H, W) metres; NaN or <= 0 = no depth.
        photo: of the same size.
        how: what predicted it.
        options: formats and scales.
        settings: what an equal call would have to repeat (see ``is_whole``).

    Raises:
        ValueError: sizes differ, a file cannot be written, ``STEM.json`` is there and not a prediction's, or a mesh has no triangle.
    """
    if depth_m.shape != photo.pixels.shape[:2]:
        raise ValueError(f"depth is {depth_m.shape} and the image {photo.pixels.shape[:2]}; they must have one size")
    folder.mkdir(parents=True, exist_ok=True)
    record_path = folder / f"{stem}.json"
    earlier, description = read_record(record_path), _record(photo, how)
    kept: set[str] = set()
    if earlier is not None:
        record_path.unlink()  # until all files are of this call, there is no whole prediction
        kept = _files_that_stay(folder, earlier, description)
    written = WrittenPrediction()
    says: dict[str, str] = {}
    left_out: list[str] = []
    for name in options.formats:
        path = folder / file_name(stem, name, options)
        if FORMATS[name].needs_camera and photo.camera is None:
            written.notes.append(f"{path.name}: not written, it needs the focal length (--focal-px)")
            left_out.append(path.name)
            continue
        encoded = FORMATS[name].encode(depth_m, photo.pixels, photo.camera, options)
        if encoded.data:
            write_atomically(path, encoded.data)
            written.files.append(path)
            says[path.name] = encoded.says
        else:
            left_out.append(path.name)
        if encoded.note:
            written.notes.append(f"{path.name}: {encoded.note}")
    record = description | {"files": says, "left_out": left_out, "also_there": sorted(kept - says.keys()), "settings": dict(settings or {})}
    write_atomically(record_path, (json.dumps(record, indent=1) + "\n").encode())
    written.files.append(record_path)
    return written


def _files_that_stay(folder: pathlib.Path, earlier: Mapping[str, Any], description: Mapping[str, Any]) -> set[str]:
    """The files that earlier calls wrote of the same image, camera and network. Those of others are removed: the new record would seem to
    speak of them."""
    names = {name for name in (*earlier["files"], *earlier.get("also_there", ())) if pathlib.Path(name).name == name}
    if all(earlier.get(part) == description[part] for part in ("image", "camera", "network")):
        return names
    for name in names:
        (folder / name).unlink(missing_ok=True)
    return set()


def _record(photo: Photograph, how: HowPredicted) -> dict[str, Any]:
    width, height = photo.size
    return {
        "image": {"name": photo.name, "width": width, "height": height},
        "camera": {
            "f_px": photo.f_px,
            "f_px_source": photo.f_px_source,
            "f_px_is_estimate": photo.f_px_is_estimate,
            "model": CAMERA_SAYS,
        },
        "depth": DEPTH_SAYS,
        "network": {
            "checkpoint": how.checkpoint,
            "class": how.network,
            "fingerprint": how.fingerprint(),
            "height": how.network_size[0],
            "width": how.network_size[1],
            "precision": how.precision,
        },
    }


def read_record(path: pathlib.Path) -> dict[str, Any] | None:
    """A prediction's ``STEM.json``; None where there is none.

    Raises:
        ValueError: a file of that name that is not a prediction's: it is somebody's, and not written over.
    """
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: is there and is not a prediction's ({error}); choose another --output") from error
    if not isinstance(record, dict) or not {"depth", "network", "files", "settings"} <= record.keys():
        raise ValueError(f"{path}: is there and is not a prediction's; choose another --output")
    return record


def is_whole(folder: pathlib.Path, stem: str, options: WriteOptions, settings: Mapping[str, Any]) -> bool:
    """Whether an earlier call has written all that ``options`` ask for.

    Raises:
        ValueError: it wrote with other settings, naming the first; or see ``read_record``.
    """
    path = folder / f"{stem}.json"
    record = read_record(path)
    if record is None:
        return False
    for name, value in settings.items():
        if record["settings"].get(name) != value:
            earlier = record["settings"].get(name)
            raise ValueError(
                f"{path}: predicted with another {name} ({earlier}, now {value}); choose another --output, or --overwrite: nothing is mixed"
            )
    asked = {file_name(stem, name, options) for name in options.formats}
    return asked <= {*record["files"], *record["left_out"]} and all((folder / name).exists() for name in asked & record["files"].keys())
