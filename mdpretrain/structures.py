"""The typed values that flow down the house: DepthBatch -> SparsePrompt -> PreparedPrompt -> DepthPrediction.

Legend: ``B`` batch, ``H W`` pixels, ``M`` prepared maps. Image tensors are ``[B, C, H, W]``.
Pixel coordinates are continuous with the first pixel's centre at (0.5, 0.5) (see ``data_shards.schema``).
Masked-out pixels of a value map are 0 and the mask says so: a map is never read without its mask.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# How a prompt was drawn (``mdpretrain.prompts.options``): what ``SparsePrompt.kind`` indexes. Checkpoints and logs name them: only append.
PROMPT_KINDS = (
    "uniform",
    "grid",
    "lidar",
    "solid_state_lidar",
    "radar",
    "sfm",
    "time_of_flight",
    "low_resolution",
    "hole",
    "range",
    "anchors",
)


class DepthSpace(enum.StrEnum):
    """What the numbers of a dense map mean. Losses and metrics choose their alignment from this tag."""

    METRIC = "metric"  # depth in metres
    CANONICAL_INVERSE = "canonical_inverse"  # C = f_px / (W * depth_m), Depth Pro eq. 1
    SCALE_INVARIANT = "scale_invariant"  # depth up to one positive factor per image
    AFFINE_INVARIANT = "affine_invariant"  # inverse depth up to scale and shift per image


# A type variable, not typing.Self: beartype refuses Self on methods that are decorated one by one.
RecordT = TypeVar("RecordT", bound="_TensorRecord")


class _TensorRecord:
    """Moves every tensor of a dataclass (nested records included) in one call."""

    def to(self: RecordT, device: torch.device | str, non_blocking: bool = False) -> RecordT:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: RecordT) -> RecordT:
        return self._map(lambda tensor: tensor.pin_memory())

    def rows(self: RecordT, rows: slice) -> RecordT:
        """Some of the samples: rows of every tensor and of every list, nested records included."""
        part = self._map(lambda tensor: tensor[rows])
        lists = {field.name: value[rows] for field in dataclasses.fields(self) if isinstance(value := getattr(self, field.name), list)}  # type: ignore[arg-type]
        return dataclasses.replace(part, **lists)  # type: ignore[type-var]

    def _map(self: RecordT, function: Any) -> RecordT:
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changes[field.name] = function(value)
            elif isinstance(value, _TensorRecord):
                changes[field.name] = value._map(function)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclasses.dataclass
class SparsePrompt(_TensorRecord):
    """Sparse metric depth on the image's pixel grid: ``depth_m`` in metres where ``mask`` is true, 0 elsewhere.

    ``interpolated_inverse_depth`` is the Delaunay-linear interpolation of 1/depth_m over all pixels, where the data
    pipeline was asked for it (0 only in an image whose prompt is empty). ``kind[b]`` indexes ``PROMPT_KINDS``; -1 for an image of
    which no prompt can be drawn (not metric z-depth, or a filler). None: a prompt that no pattern of ours drew.
    """

    depth_m: Float[Tensor, "B 1 H W"]
    mask: Bool[Tensor, "B 1 H W"]
    interpolated_inverse_depth: Float[Tensor, "B 1 H W"] | None = None
    kind: Int[Tensor, " B"] | None = None


@dataclasses.dataclass
class PreparedPrompt(_TensorRecord):
    """A prompt made dense by aligning a prior to it (spec 1.2).

    ``inverse_depth_maps`` are in 1/m, finite and strictly positive at every pixel; ``names[m]`` says which map is which
    ("global", "local", "interpolated", ...). ``usable`` is false for an image whose prompt was empty: its maps are then
    a constant and carry no information.
    """

    inverse_depth_maps: Float[Tensor, "B M H W"]
    names: tuple[str, ...]
    prompt: SparsePrompt
    usable: Bool[Tensor, " B"]

    def named(self, name: str) -> Float[Tensor, "B 1 H W"]:
        """One prepared map; raises ValueError, naming what there is, if it was not prepared."""
        if name not in self.names:
            raise ValueError(f"prepared map {name!r} is not there; the preparation makes {list(self.names)}")
        index = self.names.index(name)
        return self.inverse_depth_maps[:, index : index + 1]


@dataclasses.dataclass
class DepthBatch(_TensorRecord):
    """One collated batch at one resolution.

    ``depth``: finite positive where ``valid``, else 0; metres where ``metric[b]``, z or ray by ``depth_is_ray[b]``; where ``canonical[b]``
    (never metric; None: nowhere), z-depth in units of the unknown f_px / W of *this* image: 1 / depth is its canonical inverse depth.
    ``sky``: pixels known to be infinitely far (never valid). ``intrinsics``: 3x3 in pixels of *this* image; NaN where
    ``camera_known[b]`` is false. ``label_kind[b]`` indexes ``data_shards.schema.LABEL_KINDS``: the sample's own, or the mixture
    row's ``loss_kind``. ``prior_depth`` is a prior stored in the shard (0 where it has none). ``confidence`` in [0, 1] weighs a
    pseudo-label. ``edge_depth`` is a second z-depth of the same unit whose edges are to be trusted (0 where it says nothing, and in
    samples that have none). ``position``: the sample's index in the global sample order; -1 and an empty key mark a filler, which has no
    valid pixel and only keeps the processes in step (see ``data/evaluation_stream.py``).
    """

    image: Float[Tensor, "B 3 H W"]  # sRGB in [0, 1]; a network normalises for itself
    depth: Float[Tensor, "B 1 H W"]
    valid: Bool[Tensor, "B 1 H W"]
    sky: Bool[Tensor, "B 1 H W"]
    intrinsics: Float[Tensor, "B 3 3"]
    camera_known: Bool[Tensor, " B"]
    metric: Bool[Tensor, " B"]
    depth_is_ray: Bool[Tensor, " B"]
    label_kind: Int[Tensor, " B"]
    position: Int[Tensor, " B"]
    key: list[str]
    source: list[str]
    prompt: SparsePrompt | None = None
    prior_depth: Float[Tensor, "B 1 H W"] | None = None
    confidence: Float[Tensor, "B 1 H W"] | None = None
    prepared: PreparedPrompt | None = None
    edge_depth: Float[Tensor, "B 1 H W"] | None = None
    canonical: Bool[Tensor, " B"] | None = None

    def __len__(self) -> int:
        return self.image.shape[0]

    @property
    def samples(self) -> int:
        """Rows that are samples and no fillers: what an average over samples counts."""
        return sum(key != "" for key in self.key)


@dataclasses.dataclass
class PointMap(_TensorRecord):
    """A point of the scene for every pixel, up to one positive factor and one shift along the optical axis (MoGe; spec 7).

    ``points``: camera axes (x right, y down, z forward). In metres the scene is ``metric_scale * (points + (0, 0, z_shift))``; the shift
    is not predicted but recovered from the points (``geometry/focal_shift.py``). ``mask_logits``: above 0 where the pixel is at a finite
    distance (not sky). ``normals``: unit vectors towards the camera, of a network that predicts them.
    """

    points: Float[Tensor, "B 3 H W"]
    mask_logits: Float[Tensor, "B 1 H W"]
    metric_scale: Float[Tensor, " B"]
    normals: Float[Tensor, "B 3 H W"] | None = None


@dataclasses.dataclass
class DepthPrediction(_TensorRecord):
    """A network's dense output ``values`` with the space it lives in. ``mask`` (if any) marks pixels whose units it vouches for.

    ``prompt_range_m``: of a network that works on depth normalised by its prompt (PromptDA), the metres that one unit of
    normalised depth stands for. ``point_map``: of a network that predicts points, what ``values`` was made from. ``estimated_f_px``:
    the focal length, in pixels of the batch's image, that the network reads off the image alone, whether the camera is known or not.
    """

    values: Float[Tensor, "B 1 H W"]
    space: DepthSpace
    mask: Bool[Tensor, "B 1 H W"] | None = None
    prompt_range_m: Float[Tensor, " B"] | None = None
    point_map: PointMap | None = None
    estimated_f_px: Float[Tensor, " B"] | None = None
