"""Matterport3D, the undistorted layout: ``HOUSE/undistorted_camera_parameters/HOUSE.conf`` lists every image with its camera.

The .conf file is read from top to bottom: ``depth_directory`` and ``color_directory`` name folders beside it, an ``intrinsics_matrix`` line
(nine numbers, row by row) holds for the ``scan DEPTH COLOUR 16-numbers`` lines after it. Depth is a png in steps of 0.25 mm, 0 = no
reading, z (the makers write: not the euclidean distance), aligned with the colour image of the same size.

The makers count rows from the *bottom* of the image, and their undistortion keeps OpenCV's matrix (first pixel's centre at 0), so that
``cy`` here is ``height - 0.5 - cy``. Principal points lie some ten pixels from the centre: read from the top they would be wrong by
twice that.

The three PrimeSense cameras look up, ahead and down, turned by six steps a tripod place; one house is one group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_depth import depth_from_codes
from data_shards.sources.raw_files import ColourImage, find_below, read_codes
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class Matterport3d(FrameFiles):
    """``input_path``: one house, or any folder above houses (``v1/scans``)."""

    name: ClassVar[str] = "matterport3d"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Matterport3D, undistorted layout",
        homepage="https://niessner.github.io/Matterport/",
        layout="HOUSE/undistorted_camera_parameters/HOUSE.conf, undistorted_color_images/*_iC_Y.jpg, undistorted_depth_images/*_dC_Y.png",
        unit="0.25 mm",
        encoding="16-bit png, / 4000",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="intrinsics_matrix lines of the .conf file",
        first_pixel="(0, 0), rows counted from the bottom",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="house",
        licence="Matterport End User License Agreement, academic use",
        licence_url="https://kaldir.vc.in.tum.de/matterport/MP_TOS.pdf",
        trust_tier=TrustTier.SENSOR,
        notes="Structured light, reprojected to colour by the makers: mirrors, windows and shiny floors are holes or wrong.",
    )

    sensor: ClassVar[str] = "primesense_carmine"

    licence: str = record.licence

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for path in find_below(root, "undistorted_camera_parameters/*.conf", 3):
            yield from self._house_frames(path, root)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        fx, fy, cx, cy_from_bottom = frame["intrinsics"]
        try:
            camera = Camera(fx, fy, cx + 0.5, colour.height - 0.5 - cy_from_bottom)
        except ValueError as error:
            raise RejectedSample(f"{self.input_path / frame['colour']}: unusable intrinsics_matrix in the .conf file ({error})") from error
        return depth_from_codes(read_codes(self.input_path / frame["depth"]), 4000.0), camera

    def _house_frames(self, path: Path, root: Path) -> Iterable[SourceItem]:
        """The items of one .conf file; the camera travels in the payload, so that reading an item opens no .conf file."""
        house, folder = path.stem, path.parent.parent
        directories = {"depth_directory": "undistorted_depth_images", "color_directory": "undistorted_color_images"}
        intrinsics: list[float] | None = None
        for number, line in enumerate(path.read_text().splitlines(), 1):
            words = line.split()
            try:
                if words and words[0] in directories:
                    directories[words[0]] = words[1]
                elif words and words[0] == "intrinsics_matrix":
                    matrix = [float(word) for word in words[1:10]]
                    intrinsics = [matrix[0], matrix[4], matrix[2], matrix[5]]
                elif words and words[0] == "scan":
                    if intrinsics is None:
                        raise ValueError("no intrinsics_matrix before it")
                    depth = folder / directories["depth_directory"] / words[1]
                    colour = folder / directories["color_directory"] / words[2]
                    yield self._item(root, (house, colour.stem), house, colour, depth, intrinsics=intrinsics)
            except (ValueError, IndexError) as error:
                raise ValueError(f"{path}, line {number}: not a line of a Matterport3D .conf file ({error}): {line[:60]!r}") from error
