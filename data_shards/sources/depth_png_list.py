"""A JSON list of colour and depth files with their cameras (Metric3D's ``test_annotations.json``): KITTI depth, NYU and the like.

    {"files": [{"rgb": "rgb/1.png", "depth": "depth/1.png", "cam_in": [fx, fy, cx, cy], "depth_scale": 256.0}]}

``depth_scale`` is codes per metre: 256 for the KITTI depth benchmark's accumulated lidar, 1000 for NYU in millimetres; 0 = not measured,
z. ``cam_in`` counts pixel centres from (0, 0), as KITTI's and NYU's calibrations do; null or absent = unknown camera. File names are
relative to the list's folder or, as Metric3D writes them, to some folder above it. One list is one group unless an entry has ``group``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_depth import depth_from_codes, make_sample, opencv_camera
from data_shards.sources.raw_files import clean_key, read_codes, read_colour, require_unique
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class DepthPngList:
    """``input_path``: the list, a folder that holds ``list_name``, or a folder of such folders."""

    name: ClassVar[str] = "depth_png_list"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="A JSON list of depth png files (KITTI depth, NYU)",
        homepage="https://github.com/YvanYin/Metric3D",
        layout="test_annotations.json: {'files': [{rgb, depth, cam_in, depth_scale}]}",
        unit="stated per entry",
        encoding="16-bit png, / depth_scale (256 for KITTI, 1000 for mm)",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="cam_in of the entry, or unknown",
        first_pixel="(0, 0)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="list, or the entry's group",
        licence="unknown",
        licence_url="",
        trust_tier=TrustTier.SENSOR,
    )

    input_path: Path
    list_name: str = "test_annotations.json"
    sensor: str = "unknown"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)

    def items(self) -> list[SourceItem]:
        """One item per entry of every list.

        Raises:
            ValueError: no list, or a list without the "files" array of objects.
        """
        if not self.input_path.exists():
            raise ValueError(f"{self.input_path}: no such file or folder; expected {self.list_name} or a folder with it")
        lists = [self.input_path] if self.input_path.is_file() else sorted(self.input_path.rglob(self.list_name))
        if not lists:
            raise ValueError(f"{self.input_path}: no {self.list_name} in it; name the list by --set list_name=...")
        items = []
        for path in lists:
            place = path.parent.relative_to(self._root()).as_posix()
            for number, entry in enumerate(_entries(path)):
                group = str(entry.get("group", path.parent.resolve().name if place == "." else place))
                payload = {"list": path.relative_to(self._root()).as_posix(), "number": number, "group": group, "entry": entry}
                stem = Path(str(entry.get("rgb", number))).with_suffix("").name
                items.append(SourceItem(clean_key(group, stem), payload))
        return require_unique(items, self.input_path)

    def read(self, item: SourceItem) -> list[Sample]:
        """The entry as one sample."""
        entry, path = item.payload["entry"], self._root() / item.payload["list"]
        where = f"{path}, entry {item.payload['number']}"
        if missing := [field for field in ("rgb", "depth", "depth_scale") if entry.get(field) is None]:
            raise RejectedSample(f"{where}: lacks {missing[0]!r}; add it")
        scale = entry["depth_scale"]
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
            raise RejectedSample(
                f"{where}: depth_scale {scale!r} must be a positive number of codes per metre (256 KITTI, 1000 millimetres)"
            )
        depth_path = _locate(path, entry["depth"])
        colour = read_colour(_locate(path, entry["rgb"]))
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth_from_codes(read_codes(depth_path), float(scale)),
            depth_path,
            camera=_camera(entry.get("cam_in"), where),
            group=item.payload["group"],
            sensor=str(entry.get("sensor", self.sensor)),
            licence=self.licence,
            **self.record.label(),
        )
        return [sample]

    def _root(self) -> Path:
        return self.input_path.parent if self.input_path.is_file() else self.input_path


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    entries = content.get("files") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path}: expected {{"files": [{{"rgb": ..., "depth": ..., "cam_in": ..., "depth_scale": ...}}]}}')
    return entries


def _locate(list_path: Path, file: str) -> Path:
    """The file relative to the list's folder or the nearest folder above it that has it (the list's own folder if none does)."""
    for folder in list_path.resolve().parents:
        if (folder / file).exists():
            return folder / file
    return list_path.parent / file


def _camera(values: Any, where: str) -> Camera | None:
    if values is None:
        return None
    try:
        fx, fy, cx, cy = (float(value) for value in values)
        return opencv_camera(fx, fy, cx, cy)
    except (TypeError, ValueError) as error:
        raise RejectedSample(f"{where}: cam_in {values!r} must be four numbers [fx, fy, cx, cy], fx and fy positive, or null") from error
