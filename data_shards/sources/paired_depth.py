"""Folders of colour images and depth images that pair up by name: the general source, and the base of several named ones.

data-shards build paired_depth --input scans --output shards --set codes_per_metre=1000 --set camera=525,525,319.5,239.5
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_depth import depth_from_codes, make_sample, parse_camera, rotate_bits_right
from data_shards.sources.raw_files import ColourImage, clean_key, read_codes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

# layout -> (colour folder, colour stem's ending, depth folder, depth stem's ending)
LAYOUTS = {
    "color/X + depth/X": ("color", "", "depth", ""),
    "rgb/X + depth/X": ("rgb", "", "depth", ""),
    "image/X + depth/X": ("image", "", "depth", ""),
    "X.color + X.depth": (".", ".color", ".", ".depth"),
    "X_color + X_depth": (".", "_color", ".", "_depth"),
    "X + X_depth": (".", "", ".", "_depth"),
}
COLOUR_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp")
DEPTH_EXTENSIONS = (".png", ".pgm")


@dataclasses.dataclass
class PairedDepth:
    """Options: how files pair up, what a depth code means, and which camera took the colour image.

    ``layout`` is a row of ``LAYOUTS`` or 'auto' (the first row that pairs at least one frame); ``names`` selects frames by a glob on X;
    ``invalid_codes`` are those that mean 'not measured'; ``rotate_bits`` undoes a rotation of the 16 bits to the left (SUN3D: 3);
    ``camera`` is 'unknown' or 'fx,fy,cx,cy' in pixels of the colour image with the centre of the first pixel at (0, 0).
    """

    name: ClassVar[str] = "paired_depth"
    expected_files: ClassVar[str] = ""
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Any folders of colour and depth images that pair up by name",
        homepage="",
        layout="color or rgb or image/X + depth/X, or X.color + X.depth, X_color + X_depth, X + X_depth",
        unit="by option",
        encoding="16-bit png or pgm, / codes_per_metre, bits rotated if rotate_bits says so",
        invalid_codes="0",
        depth_type=None,
        camera="option camera, else unknown",
        first_pixel="(0, 0)",
        label_kind=None,
        metric=None,
        group="folder",
        licence="unknown",
        licence_url="",
        trust_tier=TrustTier.MIXED,
    )

    input_path: Path
    layout: str = "auto"
    names: str = "*"
    codes_per_metre: float = 1000.0
    invalid_codes: str = "0"
    rotate_bits: int = 0
    camera: str = "unknown"
    depth_type: str = "z"
    label_kind: str = "captured"
    metric: bool = True
    sensor: str = "unknown"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        if self.layout != "auto" and self.layout not in LAYOUTS:
            raise ValueError(f"option layout={self.layout!r}: one of 'auto', {', '.join(map(repr, LAYOUTS))}")
        if not self.codes_per_metre > 0:
            raise ValueError(f"option codes_per_metre={self.codes_per_metre}: must be positive (1000 for millimetres)")
        if not 0 <= self.rotate_bits <= 15:
            raise ValueError(f"option rotate_bits={self.rotate_bits}: 0 to 15")
        if self.depth_type not in (known := [kind.value for kind in DepthType]):
            raise ValueError(f"option depth_type={self.depth_type!r}: one of {known}")
        if self.label_kind not in (known := [kind.value for kind in LabelKind if kind != LabelKind.PSEUDO]):
            raise ValueError(f"option label_kind={self.label_kind!r}: one of {known}")
        self._invalid = _parse_codes(self.invalid_codes)
        parse_camera(self.camera)

    def items(self) -> list[SourceItem]:
        """One item per frame; a frame whose partner is missing is an item too, which ``read`` rejects."""
        layouts = ", ".join(LAYOUTS) if self.layout == "auto" else self.layout
        root = require_folder(self.input_path, f"colour and depth images laid out as {self.expected_files or layouts}")
        items = []
        for folder, frames in self._scenes(root):
            prefix = folder.relative_to(root)
            scene = prefix.as_posix() if prefix.parts else root.resolve().name
            for stem, (colour, depth) in frames.items():
                payload = {"group": self._group_of(scene), "colour": _join(prefix, colour), "depth": _join(prefix, depth)}
                items.append(SourceItem(clean_key(scene, stem or "frame"), payload))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample."""
        payload = item.payload
        for kind, partner in (("colour", "depth"), ("depth", "colour")):
            if payload[kind] is None:
                raise RejectedSample(
                    f"{self.input_path / payload[partner]}: has no {kind} image of the same name; add it or remove this file"
                )
        depth_path = self.input_path / payload["depth"]
        colour = read_colour(self.input_path / payload["colour"])
        codes = read_codes(depth_path)
        if self.rotate_bits:
            codes = rotate_bits_right(codes, self.rotate_bits)
        camera = self._camera_of(payload)
        depth = self._on_colour(depth_from_codes(codes, self.codes_per_metre, self._invalid), colour, camera)
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth,
            depth_path,
            camera=camera,
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            label_kind=LabelKind(self.label_kind),
            depth_type=DepthType(self.depth_type),
            metric=self.metric,
        )
        return [sample]

    def _camera_of(self, payload: dict[str, Any]) -> Camera | None:
        """The camera of one frame; named sources look into their calibration files here."""
        return parse_camera(self.camera)

    def _group_of(self, scene: str) -> str:
        """What must not be split: the scene folder, unless a source knows that several folders show one place."""
        return scene

    def _on_colour(self, depth: np.ndarray, colour: ColourImage, camera: Camera | None) -> np.ndarray:
        """The depth map as the colour camera sees it; here the maker has registered it already."""
        return depth

    def _scenes(self, root: Path) -> list[tuple[Path, dict[str, tuple[str | None, str | None]]]]:
        """Every folder at or below ``root`` that pairs at least one frame, in sorted order, with its frames."""
        scenes = []
        for current, folders, _ in os.walk(root):
            folders.sort()
            if frames := self._pair(Path(current)):
                scenes.append((Path(current), frames))
                folders.clear()
        return scenes

    def _pair(self, folder: Path) -> dict[str, tuple[str | None, str | None]]:
        """X -> (colour file, depth file), relative to ``folder``; empty where no layout pairs a frame."""
        for layout in LAYOUTS.values() if self.layout == "auto" else [LAYOUTS[self.layout]]:
            frames = pair_by_name(folder, *layout)
            chosen = {stem: pair for stem, pair in frames.items() if fnmatch.fnmatchcase(stem, self.names)}
            if any(colour and depth for colour, depth in chosen.values()):
                return chosen
        return {}


def pair_by_name(
    folder: Path, colour_folder: str, colour_ending: str, depth_folder: str, depth_ending: str
) -> dict[str, tuple[str | None, str | None]]:
    """X -> (colour file, depth file) relative to ``folder``, None for a missing partner; {} if a folder is not there."""
    depth = _stems(folder / depth_folder, depth_ending, DEPTH_EXTENSIONS)
    colour = _stems(folder / colour_folder, colour_ending, COLOUR_EXTENSIONS)
    if colour_folder == depth_folder:  # with an empty ending, the depth files look like colour files too
        colour = {stem: file for stem, file in colour.items() if file not in depth.values()}
    return {
        stem: (
            (Path(colour_folder) / colour[stem]).as_posix() if stem in colour else None,
            (Path(depth_folder) / depth[stem]).as_posix() if stem in depth else None,
        )
        for stem in sorted(set(colour) | set(depth))
    }


def _stems(folder: Path, ending: str, extensions: tuple[str, ...]) -> dict[str, str]:
    """X -> file name, for the files ``X<ending><extension>`` of a folder."""
    if not folder.is_dir():
        return {}
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in extensions and path.stem.endswith(ending)]
    return {path.stem[: len(path.stem) - len(ending)]: path.name for path in files}


def _join(prefix: Path, file: str | None) -> str | None:
    return None if file is None else (prefix / file).as_posix()


def _parse_codes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(code) for code in text.split(",") if code.strip())
    except ValueError as error:
        raise ValueError(f"option invalid_codes={text!r}: write whole numbers separated by commas, such as '0,65535'") from error
