"""COLMAP dense workspaces, and those of programs that write the same: ``stereo/depth_maps/X.geometric.bin`` with a ``sparse`` model.

A workspace is what ``colmap image_undistorter`` and ``patch_match_stereo`` leave: ``images/X``, ``sparse/{cameras,images,points3D}``
(binary or text, also in ``sparse/0``) and the depth maps. Depth is z in the model's unit, 0 = not reconstructed; it may be smaller than
the image (``max_image_size``) and covers the same field of view. COLMAP's pixels are ours. Undistorted workspaces are pinhole; should
the cameras bend, colour and depth are undistorted here.

The model's unit is arbitrary: depth is *not metric* unless the option ``metres_per_unit`` says what one unit is (from a known distance
or GPS). One workspace is one place, so one group.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import ClassVar

import numpy as np

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.colmap_model import LIBRARIES, Lens, find_model, read_lenses
from data_shards.sources.raw_arrays import positive_or_nan
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_files import clean_key, find_below, read_bytes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.undistortion import undistorted_sample

KINDS = ("geometric", "photometric")


@dataclasses.dataclass
class Colmap:
    """``input_path``: one workspace, or any folder above workspaces. ``metres_per_unit``: 0 = unknown, the depth is not metric.

    ``kind``: 'geometric' (consistent between views) or 'photometric' (denser, with more outliers).
    """

    name: ClassVar[str] = "colmap"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="COLMAP dense workspaces",
        homepage="https://colmap.github.io/format.html",
        layout="images/X, sparse/{cameras,images,points3D}.{bin,txt}, stereo/depth_maps/X.geometric.bin",
        unit="the model's own",
        encoding="'width&height&1&' then float32, * metres_per_unit if given",
        invalid_codes="0 and negative",
        depth_type=DepthType.Z,
        camera="the model's; bent ones are undistorted here",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RECONSTRUCTED,
        metric=None,
        group="workspace",
        licence="unknown",
        licence_url="",
        trust_tier=TrustTier.RECONSTRUCTED,
        notes="Metric only with metres_per_unit. Multi-view stereo fails on sky, water, glass, people and blank walls.",
    )

    input_path: Path
    metres_per_unit: float = 0.0
    kind: str = "geometric"
    sensor: str = "multi_view_stereo"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, LIBRARIES)
        if not (math.isfinite(self.metres_per_unit) and self.metres_per_unit >= 0):
            raise ValueError(f"option metres_per_unit={self.metres_per_unit}: how many metres one unit of the model is, or 0 if unknown")
        if self.kind not in KINDS:
            raise ValueError(f"option kind={self.kind!r}: one of {', '.join(map(repr, KINDS))}")

    def items(self) -> list[SourceItem]:
        """One item per depth map."""
        root = require_folder(self.input_path, f"COLMAP workspaces with images, sparse and stereo/depth_maps/*.{self.kind}.bin")
        items = []
        for maps in find_below(root, "stereo/depth_maps", 3):
            workspace = maps.parent.parent
            model = find_model(workspace)
            if model is None:
                raise ValueError(f"{workspace}: has depth maps but no cameras.bin or cameras.txt in it, in sparse or in sparse/0")
            lenses = read_lenses(model)
            place = workspace.relative_to(root).as_posix()
            group = workspace.resolve().name if place == "." else place
            for path in sorted(maps.rglob(f"*.{self.kind}.bin")):
                image = path.relative_to(maps).as_posix().removesuffix(f".{self.kind}.bin")
                lens = dataclasses.asdict(lenses[image]) if image in lenses else None
                payload = {"workspace": place, "image": image, "lens": lens, "group": group}
                items.append(SourceItem(clean_key(group, Path(image).with_suffix("").as_posix()), payload))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The image with its depth map as one sample."""
        payload = item.payload
        workspace = self.input_path / payload["workspace"]
        image_path = workspace / "images" / payload["image"]
        depth_path = workspace / "stereo/depth_maps" / f"{payload['image']}.{self.kind}.bin"
        if payload["lens"] is None:
            raise RejectedSample(
                f"{depth_path}: the model has no image {payload['image']!r}; remove the map or use the model it belongs to"
            )
        lens = Lens.from_json(payload["lens"])
        colour = read_colour(image_path)
        lens.check_size(image_path, colour.width, colour.height)
        depth = positive_or_nan(read_dense_array(depth_path).astype(np.float64) * (self.metres_per_unit or 1.0))
        sample = undistorted_sample(
            item.key,
            self.name,
            colour,
            depth,
            depth_path,
            lens,
            group=payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            label_kind=LabelKind.RECONSTRUCTED,
            depth_type=DepthType.Z,
            metric=self.metres_per_unit > 0,
        )
        return [sample]


def read_dense_array(path: Path) -> np.ndarray:
    """A depth map of COLMAP as float32 (height, width). (pycolmap reads these too, but takes a truncated file for a whole one.)

    Raises:
        RejectedSample: missing, truncated, or not one channel.
    """
    data = read_bytes(path)
    header = re.match(rb"(\d+)&(\d+)&(\d+)&", data)
    if header is None:
        raise RejectedSample(f"{path}: no COLMAP depth map (it must begin 'width&height&1&'); run patch_match_stereo again")
    width, height, channels = (int(number) for number in header.groups())
    body = data[header.end() :]
    if channels != 1 or len(body) != 4 * width * height:
        raise RejectedSample(
            f"{path}: {len(body)} bytes and {channels} channel(s) for {width}x{height} pixels of float32; run patch_match_stereo again"
        )
    return np.frombuffer(body, "<f4").reshape(height, width)
