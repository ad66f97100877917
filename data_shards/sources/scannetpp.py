"""ScanNet++: iPhone or DSLR images of a laser-scanned scene, prepared by the makers' toolbox.

Per scene, below ``data/SCENE``: ``iphone/rgb/frame_000000.jpg`` and ``iphone/depth/frame_000000.png`` (unpacked by
``prepare_iphone_data``),
``dslr/resized_images/DSC00001.JPG``, ``{iphone,dslr}/colmap`` (text model; OPENCV for the phone, OPENCV_FISHEYE for the DSLR) and
``{iphone,dslr}/render_depth/X.png`` (``common.render`` draws the laser scan's mesh through the COLMAP camera, distortion included).
Both depths are png in millimetres, 0 = nothing there, z. ``iphone/depth`` is ARKit's 256x192 lidar map of the whole image.

``depth=laser`` (default) takes ``render_depth``, with the phone's lidar as the sensor's *prompt*; ``depth=lidar`` takes the lidar map as
depth too (phone only). Colour, depth and prompt are undistorted to a pinhole camera here. The frames are those that COLMAP
placed; the cameras are COLMAP's (aligned with the scan), not ARKit's. The mesh ends at 20 m and has no glass. One scene is one group.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.sources.base import SourceItem
from data_shards.sources.colmap_model import LIBRARIES, Lens, find_model, read_lenses
from data_shards.sources.phone_lidar import attach_lidar
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_depth import depth_from_codes
from data_shards.sources.raw_files import clean_key, find_below, read_codes, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord, TrustTier
from data_shards.sources.undistortion import undistort_map, undistorted_sample

COLOUR_FOLDERS = {"iphone": "rgb", "dslr": "resized_images"}
DEPTH_FOLDERS = {"laser": "render_depth", "lidar": "depth"}


@dataclasses.dataclass
class ScanNetPp:
    """``input_path``: one scene, or any folder above scenes. ``device``: 'iphone' or 'dslr'; ``depth``: 'laser' or 'lidar'."""

    name: ClassVar[str] = "scannetpp"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="ScanNet++, iPhone and DSLR",
        homepage="https://kaldir.vc.in.tum.de/scannetpp/",
        layout="data/SCENE/{iphone,dslr}/{rgb or resized_images,render_depth,colmap}, iphone/depth",
        unit="mm",
        encoding="16-bit png, / 1000, in the distorted image's pixels; all are undistorted here",
        invalid_codes="0",
        depth_type=DepthType.Z,
        camera="COLMAP model (OPENCV, OPENCV_FISHEYE), replaced by a pinhole",
        first_pixel="(0.5, 0.5)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="scene",
        licence="ScanNet++ Terms of Use, non-commercial research",
        licence_url="https://kaldir.vc.in.tum.de/scannetpp/static/scannetpp-terms-of-use.pdf",
        trust_tier=TrustTier.SENSOR,
        notes="Depth is a rendered laser-scan mesh; the phone's lidar map is the prompt. depth=lidar takes that map as depth as well.",
    )

    input_path: Path
    device: str = "iphone"
    depth: str = "laser"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, LIBRARIES)
        if self.device not in COLOUR_FOLDERS:
            raise ValueError(f"option device={self.device!r}: 'iphone' or 'dslr'")
        if self.depth not in DEPTH_FOLDERS or (self.device, self.depth) == ("dslr", "lidar"):
            raise ValueError(f"option depth={self.depth!r}: 'laser', or 'lidar' with device=iphone (a DSLR has no lidar)")

    def items(self) -> list[SourceItem]:
        """One item per image that COLMAP placed."""
        root = require_folder(self.input_path, "ScanNet++ scenes, each with iphone or dslr folders")
        items = []
        for device in (path for path in find_below(root, self.device, 3) if find_model(path / "colmap")):
            scene = device.parent.resolve().name
            if not (device / DEPTH_FOLDERS[self.depth]).is_dir():
                mend = "render it with the toolbox's common.render, or --set depth=lidar" if self.depth == "laser" else "unpack it"
                raise ValueError(f"{device}: no folder {DEPTH_FOLDERS[self.depth]!r}; {mend}")
            for image, lens in read_lenses(device / "colmap").items():
                payload = {"device": device.relative_to(root).as_posix(), "image": Path(image).name, "lens": dataclasses.asdict(lens)}
                items.append(SourceItem(clean_key(scene, self.device, Path(image).stem), payload | {"group": scene}))
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The undistorted image as one sample, with the phone's lidar as prompt where it was unpacked."""
        payload = item.payload
        device = self.input_path / payload["device"]
        lens = Lens.from_json(payload["lens"])
        image_path = device / COLOUR_FOLDERS[self.device] / payload["image"]
        colour = read_colour(image_path)
        lens.check_size(image_path, colour.width, colour.height)
        map_name = Path(payload["image"]).with_suffix(".png").name
        depth_path = device / DEPTH_FOLDERS[self.depth] / map_name
        sample = undistorted_sample(
            item.key,
            self.name,
            colour,
            depth_from_codes(read_codes(depth_path), 1000.0),
            depth_path,
            lens,
            group=payload["group"],
            sensor=f"{self.device}_{self.depth}",
            licence=self.licence,
            **self.record.label(),
        )
        lidar_folder = device / DEPTH_FOLDERS["lidar"]
        if self.device == "iphone" and lidar_folder.is_dir():
            lidar = undistort_map(depth_from_codes(read_codes(lidar_folder / map_name), 1000.0), lens)
            attach_lidar(sample, lidar, None, depth_is_lidar=self.depth == "lidar")
        return [sample]
