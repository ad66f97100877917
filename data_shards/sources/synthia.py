"""SYNTHIA video sequences (SYNTHIA-SEQS) and SYNTHIA-RAND-CITYSCAPES: a town rendered in Unity.

Layout of the sequences: ``SYNTHIA-SEQS-NN-SEASON/RGB/Stereo_Left/Omni_F/IIIIII.png`` and ``Depth/Stereo_Left/Omni_F/IIIIII.png``, for
Stereo_Right and Omni_B, _L, _R too. Of the random views: ``RAND_CITYSCAPES/RGB/IIIIIII.png`` and ``Depth/Depth/IIIIIII.png``. Depth is a
16-bit png in centimetres along the optical axis, the same number in each of its three channels (or in one); 65535 is the sky or further
than 655 m.

The sequences have one camera: focal 532.740352 px, principal point (640, 380), the centre of 1280x760 pixels. The random views have
changing cameras that are not given: unknown. SYNTHIA-SF packs its depth differently: see ``synthia_sf``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, DepthType, LabelKind
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.frame_files import FrameFiles
from data_shards.sources.raw_depth import depth_from_codes
from data_shards.sources.raw_files import ColourImage, read_pixels
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.rendered_depth import fixed_camera

CAMERA, SIZE = Camera(532.740352, 532.740352, 640, 380), (1280, 760)
SKY_CODE = 65535
CODES_PER_METRE = 100.0


@dataclasses.dataclass
class Synthia(FrameFiles):
    """``views``: a glob on the sequences' view folders, such as 'Stereo_Left/Omni_F' or 'Stereo_*/Omni_*'."""

    name: ClassVar[str] = "synthia"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="SYNTHIA video sequences and RAND-CITYSCAPES",
        homepage="https://synthia-dataset.net/",
        layout="SYNTHIA-SEQS-NN-SEASON/RGB/Stereo_Left/Omni_F/I.png + Depth/Stereo_Left/Omni_F/I.png; "
        "RAND_CITYSCAPES/RGB/I.png + Depth/Depth/I.png",
        unit="cm",
        encoding="16-bit png, the same number in every channel, / 100",
        invalid_codes="0; 65535 is sky",
        depth_type=DepthType.Z,
        camera="532.740352, image centre for the sequences; unknown for RAND_CITYSCAPES",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.RENDERED,
        metric=True,
        group="sequence (all its seasons); all of RAND_CITYSCAPES",
        licence="CC BY-NC-SA 3.0",
        licence_url="https://synthia-dataset.net/",
        trust_tier=TrustTier.EXACT,
        notes="The seasons of a sequence show the same drive; sequences of one town may share streets.",
    )
    knows_sky: ClassVar[bool] = True

    licence: str = record.licence
    views: str = "Stereo_Left/Omni_F"

    def _frames(self, root: Path) -> Iterable[SourceItem]:
        for folder in sorted(path for path in root.glob("**/Depth") if (path.parent / "RGB").is_dir()):
            sequence = folder.parent
            name = sequence.resolve().name
            for depth in sorted(folder.glob(f"{self.views}/*.png")):
                place = depth.parent.relative_to(folder)
                group = re.sub(r"(?<=SEQS-\d\d)-.*", "", name)
                key = (name, place.as_posix(), depth.stem)
                yield self._item(root, key, group, sequence / "RGB" / place / depth.name, depth, calibrated=True)
            for depth in sorted(folder.glob("Depth/*.png")):
                yield self._item(root, (name, depth.stem), name, sequence / "RGB" / depth.name, depth, calibrated=False)

    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera | None]:
        path = self.input_path / frame["depth"]
        codes = read_pixels(path)
        if codes.dtype != np.uint16:
            raise RejectedSample(f"{path}: {codes.dtype}; depth must have 16 bits (SYNTHIA-SF is the source 'synthia_sf')")
        if codes.ndim == 3:
            if (codes[:, :, 1:] != codes[:, :, :1]).any():
                raise RejectedSample(f"{path}: the channels differ, but depth must be the same in each; fetch it again")
            codes = codes[:, :, 0]
        depth = depth_from_codes(codes, CODES_PER_METRE)
        depth[codes == SKY_CODE] = np.inf
        camera = fixed_camera(CAMERA, SIZE, colour, self.input_path / frame["colour"]) if frame["calibrated"] else None
        return depth, camera
