"""Taskonomy: photographs of scanned buildings with the distance to the scanned mesh (as Omnidata distributes them).

Layout: ``rgb/taskonomy/BUILDING/point_P_view_V_domain_rgb.png``, ``depth_euclidean/...domain_depth_euclidean.png`` and
``point_info/...domain_point_info.json`` (older downloads: ``domain_fixatedpose.json``); ``BUILDING/rgb/...`` works as well. Depth is a
16-bit png in 1/512 m; 65535 = no surface (a hole of the mesh, a window). The makers offer z ("zbuffer") and the *distance along the ray*
("euclidean"); this source reads the latter.

Images are square crops of panoramas of 512 pixels with a field of view of their own: ``field_of_view_rads`` of the JSON, from edge to
edge, with the principal point in the centre. The mesh is a reconstruction: wrong or missing at glass, mirrors and thin things.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_depth import depth_from_codes
from data_shards.sources.raw_files import ColourImage, read_codes, read_json
from data_shards.sources.record import SourceRecord, TrustTier

CODES_PER_METRE = 512.0
NO_SURFACE = 65535
DEPTH_FOLDER, DEPTH_ENDING = "depth_euclidean", "_domain_depth_euclidean.png"
POSE_ENDINGS = ("_domain_point_info.json", "_domain_fixatedpose.json")


@dataclasses.dataclass
class Taskonomy(FrameFiles):
    """Options: none but the licence."""

    name: ClassVar[str] = "taskonomy"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="Taskonomy",
        homepage="http://taskonomy.stanford.edu/",
        layout="rgb/taskonomy/BUILDING/X_domain_rgb.png + depth_euclidean/taskonomy/BUILDING/X_domain_depth_euclidean.png, "
        "point_info/taskonomy/BUILDING/X_domain_point_info.json",
        unit="1/512 m",
        encoding="16-bit png, / 512, distance along the ray",
        invalid_codes="65535, 0",
        depth_type=DepthType.RAY,
        camera="field_of_view_rads of point_info, principal point in the image centre",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RECONSTRUCTED,
        metric=True,
        group="building",
        licence="Taskonomy licence, non-commercial",
        licence_url="https://github.com/StanfordVL/taskonomy/blob/master/data/LICENSE",
        trust_tier=TrustTier.RECONSTRUCTED,
        notes="Distances end at 128 m. The depth_zbuffer images of the same set are z and are not read here.",
    )
    sensor: ClassVar[str] = "matterport_pro"

    licence: str = record.licence

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for depth in sorted(root.glob(f"**/*{DEPTH_ENDING}")):
            frame = depth.name.removesuffix(DEPTH_ENDING)
            building = depth.parent.parent if depth.parent.name == DEPTH_FOLDER else depth.parent
            colour = _beside(depth, root, "rgb", f"{frame}_domain_rgb.png")
            poses = [_beside(depth, root, "point_info", frame + ending) for ending in POSE_ENDINGS]
            pose = next((path for path in poses if path.exists()), poses[0])
            name = building.resolve().name
            yield self._item(root, (name, frame), name, colour, depth, pose=pose)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["pose"]
        pose = read_json(path)
        field_of_view = pose.get("field_of_view_rads") if isinstance(pose, dict) else None
        if not isinstance(field_of_view, int | float) or not 0 < field_of_view < math.pi:
            raise RejectedSample(f"{path}: field_of_view_rads is {field_of_view!r}, not an angle between 0 and pi; fetch it again")
        focal_px = colour.width / 2 / math.tan(field_of_view / 2)
        codes = read_codes(self.input_path / frame["depth"])
        camera = Camera(focal_px, focal_px, colour.width / 2, colour.height / 2)
        return depth_from_codes(codes, CODES_PER_METRE, (0, NO_SURFACE)), camera


def _beside(depth: Path, root: Path, folder: str, name: str) -> Path:
    """The file ``name`` of another modality: the same place with the folder ``depth_euclidean`` (the lowest of that name) replaced."""
    parts = list(depth.parent.relative_to(root).parts)
    places = [index for index, part in enumerate(parts) if part == DEPTH_FOLDER]
    if places:
        parts[places[-1]] = folder
    return root.joinpath(*parts, name)
