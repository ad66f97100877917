"""MVS-Synth: drives through the streets of GTA V.

Layout: ``GTAV_540|GTAV_720|GTAV_1080/SSSS/images/IIII.png``, ``depths/IIII.exr`` and ``poses/IIII.json`` (f_x, f_y, c_x, c_y, extrinsic).
Depth is one float channel along the optical axis in the game's units, +inf for the sky. The makers do not say what a unit is; others
found 10 units to a metre by measuring cars and pedestrians. So depth is not metric here, unless ``units_per_metre=10`` says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_containers import read_exr
from data_shards.sources.raw_files import ColourImage, read_json
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import rendered_camera, rendered_depth


@dataclasses.dataclass
class MvsSynth(FrameFiles):
    """``units_per_metre``: 0 leaves depth in game units and not metric; 10 is what others measured."""

    name: ClassVar[str] = "mvs_synth"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="MVS-Synth (GTA V)",
        homepage="https://phuang17.github.io/DeepMVS/mvs-synth.html",
        layout="SSSS/images/IIII.png + depths/IIII.exr, poses/IIII.json",
        unit="game units (about 10 to a metre)",
        encoding="exr of one float channel",
        invalid_codes="not positive; +inf is sky",
        depth_type=DepthType.Z,
        camera="f_x, f_y, c_x, c_y of poses/IIII.json",
        first_pixel="told by the principal point: W / 2 is (0.5, 0.5), (W - 1) / 2 is (0, 0)",
        label_kind=LabelKind.RENDERED,
        metric=False,
        group="sequence",
        licence="see the MVS-Synth page (pictures of a game, for research)",
        licence_url="https://phuang17.github.io/DeepMVS/mvs-synth.html",
        trust_tier=TrustTier.EXACT,
        notes="--set units_per_metre=10 turns depth into metres, on the word of others who measured cars and pedestrians.",
    )
    libraries: ClassVar[tuple[str, ...]] = ("OpenEXR",)
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    units_per_metre: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.units_per_metre >= 0:
            raise ValueError(f"option units_per_metre={self.units_per_metre}: must be positive, or 0 for 'unknown'")

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample, metric if ``units_per_metre`` is given."""
        samples = super().read(item)
        for sample in samples:
            sample.meta = dataclasses.replace(sample.meta, metric=self.units_per_metre > 0)
        return samples

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for folder in sorted(root.glob("**/depths")):
            sequence = folder.parent.resolve().name
            for depth in sorted(folder.glob("*.exr")):
                colour = folder.parent / "images" / f"{depth.stem}.png"
                pose = folder.parent / "poses" / f"{depth.stem}.json"
                yield self._item(root, (sequence, depth.stem), sequence, colour, depth, pose=pose)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera]:
        path = self.input_path / frame["pose"]
        pose = read_json(path)
        try:
            intrinsics = [float(pose[field]) for field in ("f_x", "f_y", "c_x", "c_y")]
        except (KeyError, TypeError, ValueError) as error:
            raise RejectedSample(f"{path}: needs the numbers f_x, f_y, c_x and c_y ({error!r}); fetch it again") from error
        camera = rendered_camera(intrinsics, colour.width, colour.height, path)
        units = read_exr(self.input_path / frame["depth"])
        return rendered_depth(units / (self.units_per_metre or 1.0), np.inf), camera
