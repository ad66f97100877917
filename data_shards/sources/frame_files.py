"""The base of sources whose every frame is a handful of files: a subclass says where they are and what their numbers mean."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.schema import Camera, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_depth import make_sample
from data_shards.sources.raw_files import ColourImage, clean_key, read_colour, require_folder, require_unique
from data_shards.sources.record import SourceRecord


@dataclasses.dataclass
class FrameFiles(abc.ABC):
    """What such sources share; each adds ``name``, ``record``, ``_frames`` and ``_depth_and_camera``.

    ``libraries``: optional modules that it reads with; ``knows_sky``: depth of +inf is sky, so every sample gets a sky mask;
    ``depth_per_colour``: depth pixels per colour pixel and axis; a map of any other size is refused (None: any size of the same shape).
    """

    name: ClassVar[str]
    record: ClassVar[SourceRecord]
    sensor: ClassVar[str] = "virtual pinhole"
    libraries: ClassVar[tuple[str, ...]] = ()
    knows_sky: ClassVar[bool] = False
    depth_per_colour: ClassVar[int | None] = 1

    input_path: Path
    licence: str = "unknown"

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, self.libraries)

    def items(self) -> list[SourceItem]:
        """One item per frame."""
        root = require_folder(self.input_path, self.record.layout)
        items = list(self._frames(root))
        if not items:
            raise ValueError(f"{root}: no frames found; expected {self.record.layout}, and --input to name the folder above them")
        return require_unique(items, root)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample."""
        frame = item.payload
        colour = read_colour(self.input_path / frame["colour"])
        depth, camera = self._depth_and_camera(frame, colour)
        depth_path = self.input_path / frame["depth"]
        factor = self.depth_per_colour
        if factor is not None and depth.shape != (colour.height * factor, colour.width * factor):
            raise RejectedSample(
                f"{depth_path}: depth {'x'.join(map(str, depth.shape[::-1]))} does not belong to colour {colour.width}x{colour.height} "
                f"(the maker's depth has {factor}x its size); fetch both again"
            )
        sample = make_sample(
            item.key,
            self.name,
            colour,
            depth,
            depth_path,
            camera=camera,
            group=frame["group"],
            sensor=self.sensor,
            licence=self.licence,
            **self.record.label(),
        )
        if self.knows_sky:
            sample.sky = np.isposinf(depth)
        return [sample]

    @abc.abstractmethod
    def _frames(self, root: Path) -> Iterable[SourceItem]:
        """The frames at or below ``root``, each made by ``_item``."""

    @abc.abstractmethod
    def _depth_and_camera(self, frame: dict[str, Any], colour: ColourImage) -> tuple[np.ndarray, Camera | None]:
        """Depth as the schema wants it (in the record's ``depth_type``) and the camera of the colour image; may raise RejectedSample."""

    def _item(self, root: Path, key: tuple[str, ...], group: str, colour: Path, depth: Path, **more: Any) -> SourceItem:
        """An item whose payload names its files relative to ``root`` (paths in ``more`` too)."""
        files = {"colour": colour, "depth": depth, **more}
        payload = {name: value.relative_to(root).as_posix() if isinstance(value, Path) else value for name, value in files.items()}
        return SourceItem(clean_key(*key), {"group": group, **payload})
