"""The simple layout: how people bring their own data (described for them in ``docs/sources.md``).

    <source>/<frame>.rgb.jpg (or .png)    colour
    <source>/<frame>.depth.png            16-bit, metres = code / depth_scale, 0 = not measured
    <source>/<frame>.json                 size, scale, kind and camera of the frame

The input is one such folder, or a folder of them; the folder's name is the samples' ``source``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_shards.schema import Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_depth import depth_from_codes, make_sample
from data_shards.sources.raw_files import clean_key, read_codes, read_colour, read_json, read_mask, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.simple_record import FrameRecord, parse_record

ENDINGS = (".rgb.jpg", ".rgb.jpeg", ".rgb.png", ".depth.png", ".json")
COLOUR_ENDINGS = ENDINGS[:3]


@dataclasses.dataclass
class Simple:
    """``licence``: for frames whose JSON does not name one."""

    name: ClassVar[str] = "simple"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="The simple layout described above",
        homepage="",
        layout="source/X.rgb.jpg or .png, X.depth.png, X.json",
        unit="stated per frame",
        encoding="16-bit png, / depth_scale",
        invalid_codes="0; sky by a mask",
        depth_type=None,
        camera="stated per frame, or unknown",
        first_pixel="stated",
        label_kind=None,
        metric=None,
        group="stated per frame, else the folder",
        licence="unknown",
        licence_url="",
        trust_tier=TrustTier.MIXED,
    )

    input_path: Path
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)

    def items(self) -> list[SourceItem]:
        """One item per frame of which any file is there; what is missing or wrong comes out in ``read``."""
        root = require_folder(self.input_path, "<source>/<frame>.rgb.jpg, .depth.png and .json")
        folders = [root] if _frames(root) else sorted(path for path in root.iterdir() if path.is_dir())
        items = []
        for folder in folders:
            source = folder.resolve().name
            place = folder.relative_to(root).as_posix()
            for frame in _frames(folder):
                items.append(SourceItem(clean_key(source, frame), {"folder": place, "source": source, "frame": frame}))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample."""
        folder, frame = self.input_path / item.payload["folder"], item.payload["frame"]
        record_path, depth_path = folder / f"{frame}.json", folder / f"{frame}.depth.png"
        colour_path = next(
            (folder / (frame + end) for end in COLOUR_ENDINGS if (folder / (frame + end)).exists()), folder / f"{frame}.rgb.jpg"
        )
        for path in (colour_path, depth_path, record_path):
            if not path.exists():
                raise RejectedSample(f"{path}: the file is missing; add it or remove the frame's other files")
        record = parse_record(read_json(record_path), record_path)
        colour = read_colour(colour_path)
        codes = read_codes(depth_path)
        _check_size(colour_path, (colour.width, colour.height), record.image_size, record_path, "width, height")
        _check_size(depth_path, (codes.shape[1], codes.shape[0]), record.depth_size, record_path, "depth_width, depth_height")
        depth = depth_from_codes(codes, record.depth_scale)
        sky = _read_sky(folder, record, depth.shape)
        if sky is not None:
            depth[sky] = np.inf
        sample = make_sample(
            item.key,
            item.payload["source"],
            colour,
            depth,
            depth_path,
            camera=record.camera,
            group=record.group or item.payload["source"],
            sensor=record.sensor,
            licence=record.licence or self.licence,
            label_kind=record.label_kind,
            depth_type=record.depth_type,
            metric=record.metric,
        )
        sample.sky = sky
        if record.prior is not None:
            sample.prior = depth_from_codes(read_codes(folder / record.prior), record.prior_scale)
        return [sample]


def _frames(folder: Path) -> list[str]:
    """The frames of a folder: what stands before one of ``ENDINGS`` in a file name."""
    frames = set()
    for path in folder.iterdir():
        ending = next((end for end in ENDINGS if path.name.endswith(end)), None)
        if ending is not None and path.is_file():
            frames.add(path.name.removesuffix(ending))
    return sorted(frames)


def _check_size(path: Path, size: tuple[int, int], stated: tuple[int, int], record_path: Path, fields: str) -> None:
    if size != stated:
        raise RejectedSample(
            f"{path}: is {size[0]}x{size[1]}, but {record_path.name} says {fields} = {stated[0]}x{stated[1]}; correct the one that is wrong"
        )


def _read_sky(folder: Path, record: FrameRecord, shape: tuple[int, ...]) -> np.ndarray | None:
    if record.sky is None:
        return None
    sky = read_mask(folder / record.sky)
    if sky.shape != shape:
        raise RejectedSample(f"{folder / record.sky}: mask {sky.shape[1]}x{sky.shape[0]} must have the depth's size {shape[1]}x{shape[0]}")
    return sky
