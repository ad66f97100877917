"""NYU Depth v2, the labelled set: one Matlab 7.3 (HDF5) file, ``nyu_depth_v2_labeled.mat``, with 1449 frames of 640x480.

HDF5 shows Matlab's axes in reverse: ``images`` (1449, 3, 640, 480) uint8, ``rawDepths`` and ``depths`` (1449, 640, 480) float32 metres, so
every frame is transposed. ``rawDepths`` is what Kinect measured, projected to colour, 0 = not measured, 10 = the toolbox's cap (further
away, nobody knows how far); ``depths`` has its holes filled by a colourisation algorithm, so that what stands there was never measured.
``depth=raw`` is the default; 'filled' is not a capture (its label kind says reconstructed). Both are z.

The camera is that of the makers' toolbox, which undistorted the images. The toolbox counts pixels from 1 when it projects depth to colour,
so 0.5 is *subtracted* here. ``scenes`` names the room (``kitchen_0004``): the group. ``split=train|test`` takes the official 795 or 654
frames of ``splits.mat``, which must lie beside the file; no room is in both.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import numpy as np
import scipy.io

from data_shards.schema import Camera, DepthType, LabelKind, Sample
from data_shards.sources.base import RejectedSample, SourceItem
from data_shards.sources.raw_arrays import positive_or_nan
from data_shards.sources.raw_containers import require_libraries
from data_shards.sources.raw_depth import make_sample
from data_shards.sources.raw_files import clean_key, encode_colour, require_unique
from data_shards.sources.record import SourceRecord, TrustTier

FILE_NAME = "nyu_depth_v2_labeled.mat"
DEPTHS = {"raw": ("rawDepths", LabelKind.CAPTURED), "filled": ("depths", LabelKind.RECONSTRUCTED)}
SPLITS = {"train": "trainNdxs", "test": "testNdxs"}
CAP_M = 10.0
# fx_rgb, fy_rgb, cx_rgb, cy_rgb of the toolbox, whose first pixel is (1, 1)
CAMERA = Camera(518.857901, 519.469611, 325.582449 - 0.5, 253.736166 - 0.5)


@dataclasses.dataclass
class NyuV2:
    """``input_path``: the .mat file or its folder. ``depth``: 'raw' or 'filled'; ``split``: 'all', 'train' or 'test'."""

    name: ClassVar[str] = "nyu_v2"
    record: ClassVar[SourceRecord] = SourceRecord(
        title="NYU Depth v2, labelled frames",
        homepage="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        layout="nyu_depth_v2_labeled.mat; splits.mat beside it for split=train or test",
        unit="m",
        encoding="HDF5 (Matlab 7.3), float32 (frames, 640, 480), transposed",
        invalid_codes="0 (rawDepths), 10 and more",
        depth_type=DepthType.Z,
        camera="the toolbox's: 518.86, 519.47, 325.58, 253.74",
        first_pixel="(1, 1)",
        label_kind=LabelKind.CAPTURED,
        metric=True,
        group="room",
        licence="research use with citation, see the NYU Depth v2 page",
        licence_url="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        trust_tier=TrustTier.SENSOR,
        notes="Kinect 1, at most 10 m; images have a white border of some pixels from undistortion. depth=filled is inpainted.",
    )

    input_path: Path
    depth: str = "raw"
    split: str = "all"
    sensor: str = "kinect1"
    licence: str = record.licence

    def __post_init__(self) -> None:
        self.input_path = Path(self.input_path)
        require_libraries(self.name, ("h5py",))
        if self.depth not in DEPTHS:
            raise ValueError(f"option depth={self.depth!r}: 'raw' or 'filled'")
        if self.split not in ("all", *SPLITS):
            raise ValueError(f"option split={self.split!r}: 'all', 'train' or 'test'")

    def items(self) -> list[SourceItem]:
        """One item per frame of the split."""
        import h5py

        path = self._file()
        if not path.is_file():
            raise ValueError(f"{path}: no such file; expected {FILE_NAME} or its folder")
        try:
            with h5py.File(path, "r") as file:
                frames, references = len(file["images"]), file["scenes"][()].reshape(-1)
                scenes = ["".join(map(chr, file[reference][()].reshape(-1))) for reference in references]
        except (OSError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{path}: not the labelled NYU Depth v2 file ({error}); fetch it again") from error
        if len(scenes) != frames:
            raise ValueError(f"{path}: {frames} images but {len(scenes)} scenes; fetch it again")
        wanted = range(frames) if self.split == "all" else self._split(path.with_name("splits.mat"), frames)
        items = [SourceItem(clean_key(scenes[n], f"{n + 1:04d}"), {"frame": int(n), "group": scenes[n]}) for n in wanted]
        return require_unique(items, path)

    def read(self, item: SourceItem) -> list[Sample]:
        """The frame as one sample; the image becomes a png."""
        import h5py

        path, frame = self._file(), item.payload["frame"]
        dataset, label_kind = DEPTHS[self.depth]
        try:
            with h5py.File(path, "r") as file:
                image, depth = file["images"][frame], file[dataset][frame]
        except (OSError, KeyError, ValueError) as error:
            raise RejectedSample(f"{path}: frame {frame + 1} of {dataset} cannot be read ({error}); fetch the file again") from error
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != np.uint8 or depth.shape != image.shape[1:]:
            raise RejectedSample(f"{path}: frame {frame + 1} has image {image.dtype} {image.shape} and depth {depth.shape}; fetch it again")
        depth_m = positive_or_nan(depth.T)
        depth_m[depth_m >= CAP_M] = np.nan
        sample = make_sample(
            item.key,
            self.name,
            encode_colour(image.transpose(2, 1, 0)),
            depth_m,
            path,
            camera=CAMERA,
            group=item.payload["group"],
            sensor=self.sensor,
            licence=self.licence,
            **(self.record.label() | {"label_kind": label_kind}),
        )
        return [sample]

    def _file(self) -> Path:
        return self.input_path / FILE_NAME if self.input_path.is_dir() else self.input_path

    def _split(self, path: Path, frames: int) -> np.ndarray:
        """The frames of the chosen split, counted from 0."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file; split={self.split} needs the makers' splits.mat beside the data")
        try:
            numbers = scipy.io.loadmat(path)[SPLITS[self.split]].reshape(-1).astype(np.int64) - 1
        except (KeyError, ValueError, TypeError, OSError, NotImplementedError) as error:
            raise ValueError(f"{path}: not the makers' splits.mat ({error}); fetch it again") from error
        if numbers.size == 0 or numbers.min() < 0 or numbers.max() >= frames:
            raise ValueError(f"{path}: names frames outside 1 to {frames}; it belongs to another file")
        return numbers
