"""MegaDepth v1: multi-view stereo from tourists' photographs, ``SCENE/denseK/imgs/X.jpg`` with ``SCENE/denseK/depths/X.h5``.

The h5 file holds ``depth``: float32 z in the unit of its reconstruction, 0 = not reconstructed, already cleaned by the makers (people,
sky and trees removed). It is *not metric*: right up to one factor per frame.

Some files hold no depth at all but *ordinal* labels (what is in front, what behind): they contain negative numbers, and their positive ones
are labels too. Such frames are rejected. The images are undistorted; their cameras are in another release (MegaDepth_v1_SfM), so the
camera is unknown here. One landmark (SCENE) is one group.
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
from data_shards.sources.raw_arrays import positive_or_nan
from data_shards.sources.raw_containers import read_hdf5
from data_shards.sources.raw_files import ColourImage
from data_shards.sources.record import SourceRecord, TrustTier


@dataclasses.dataclass
class MegaDepth(FrameFiles):
    """``input_path``: one scene, or any folder above scenes (``phoenix/S6/zl548/MegaDepth_v1``)."""

    name: ClassVar[str] = "megadepth"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="MegaDepth v1",
        homepage="https://www.cs.cornell.edu/projects/megadepth/",
        layout="SCENE/denseK/imgs/X.jpg, SCENE/denseK/depths/X.h5",
        unit="the reconstruction's own",
        encoding="HDF5 float32, data set 'depth'",
        invalid_codes="0; a file with negative numbers is ordinal and rejected",
        depth_type=DepthType.Z,
        camera="unknown (published apart, in MegaDepth_v1_SfM)",
        first_pixel="-",
        label_kind=LabelKind.RECONSTRUCTED,
        metric=False,
        group="scene (landmark)",
        licence="photographs: their authors' Creative Commons licences; depth: see the MegaDepth page",
        licence_url="https://www.cs.cornell.edu/projects/megadepth/",
        trust_tier=TrustTier.RECONSTRUCTED,
        notes="Facades are good, thin and moving things are missing, borders are eroded.",
    )
    libraries: ClassVar[tuple[str, ...]] = ("h5py",)
    sensor: ClassVar[str] = "multi_view_stereo"

    licence: str = record.licence

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for depths in sorted(path for path in root.rglob("dense*/depths") if path.is_dir()):
            dense = depths.parent
            scene = dense.parent.resolve().name
            images = {path.stem: path for path in sorted((dense / "imgs").glob("*"))}
            for depth in sorted(depths.glob("*.h5")):
                colour = images.get(depth.stem, dense / "imgs" / f"{depth.stem}.jpg")
                yield self._item(root, (scene, dense.name, depth.stem), scene, colour, depth)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera | None]:
        path = self.input_path / frame["depth"]
        depth = read_hdf5(path, "depth")
        if depth.ndim != 2:
            raise RejectedSample(f"{path}: 'depth' has shape {depth.shape}, expected (height, width); fetch it again")
        if bool((depth < 0).any()):
            raise RejectedSample(f"{path}: ordinal labels (negative numbers), no depth; leave the frame out")
        return positive_or_nan(depth), None
