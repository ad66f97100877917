"""Priors as sidecars: a frozen network's inverse depth for every image of a folder, computed once instead of at every training step.

What is stored is a depth map, as the schema has it, whose reciprocal is the prior up to an affine map: per image

    inverse' = FLOOR + (1 - FLOOR) * (inverse - lowest) / (highest - lowest),      prior depth = 1 / inverse'     in [1, 1 / FLOOR]

so any network's inverse depth fits, negative values of an affine-invariant one and the zeros of a ReLU included, and the 16-bit codec has
the same precision for all (3.6e-5 relative). What the map loses, scale and shift, is what an alignment finds anew: ``StoredPrior`` gives
the reciprocal. A flat prior is stored as 1.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from data_shards.schema import DepthType, Sample
from data_shards.sidecars import sidecar_members
from data_shards.writer import KeyedMembers
from mdpretrain.data.collate import collate
from mdpretrain.data.pipeline import Row, RowOptions, SamplePipeline
from mdpretrain.data.resample import ray_to_z
from mdpretrain.labeling.host_maps import HostMaps
from mdpretrain.labeling.shard_labeler import Read, ShardLabeler
from mdpretrain.labeling.source_shards import SourceShard
from mdpretrain.networks.priors import FrozenPrior
from mdpretrain.tasks.predictor import fingerprint_of

FLOOR = 0.01  # of the reciprocal: the farthest pixel stands at 100 times the nearest


@dataclasses.dataclass(frozen=True)
class PriorRequest:
    """Working size: the image's long side in pixels, and what both sides are multiples of."""

    long_side: int = 518
    multiple: int = 14


class PriorLabeler(ShardLabeler[Read]):
    """Writes the prior of every sample of a folder into a sidecar folder (``data_shards.sidecars``): same keys, same order, none left out.

    A sample that cannot be read gets an entry without a prior, and is listed among the rejects.

    Args:
        prior: a frozen prior that was built from a config, on its device; ``CheckpointPrior``, ``TransformersPrior``, ...
        request: the working size.
        batch_size, decode_threads, encode_threads: see ShardLabeler.
    """

    def __init__(
        self, prior: FrozenPrior, request: PriorRequest, batch_size: int = 8, decode_threads: int = 2, encode_threads: int = 2
    ) -> None:
        super().__init__(batch_size, decode_threads, encode_threads)
        self.prior = prior
        self.request = request
        self.fingerprint = fingerprint_of({"prior": prior})
        self.pipeline = SamplePipeline(None, None, None, 0, request.long_side, request.multiple)

    def describe(self) -> dict[str, Any]:
        """The prior, the request and the form in which priors are stored."""
        return {
            "sidecar": "prior",
            "prior": self.fingerprint,
            "request": dataclasses.asdict(self.request),
            "stored_form": {"reciprocal_of": "inverse depth, affine to [floor, 1] per image", "floor": FLOOR},
        }

    def read(self, shard: SourceShard, position: int) -> Read | str:
        """The image at the working size, or why there is none."""
        try:
            sample = shard.sample(position, ())
            return Read(position, sample, self.pipeline(sample, position, RowOptions()))
        except ValueError as error:
            return str(error)

    @torch.no_grad()
    def compute(self, group: list[Read]) -> HostMaps:
        """The prior's inverse depth of images of one size."""
        device = next((tensor.device for tensor in self.prior.state_dict().values()), torch.device("cpu"))
        batch = collate([read.row for read in group])
        batch = batch.pin_memory() if device.type == "cuda" else batch
        return HostMaps.copy({"inverse_depth": self.prior(batch.to(device, non_blocking=True)).float()[:, 0]})

    def finish(self, read: Read, computed: HostMaps, index: int) -> Sample | KeyedMembers | str:
        """The members of a sample's sidecar."""
        return _members(read.sample, read.row, computed.image(index)["inverse_depth"])

    def stand_in(self, shard: SourceShard, position: int) -> KeyedMembers:
        """The meta alone: a sidecar has an entry for every key."""
        return shard.stand_in(position)


def stored_prior(inverse_depth: np.ndarray) -> np.ndarray:
    """Inverse depth (H, W), any affine, finite -> the prior depth that is stored, float32 in [1, 1 / FLOOR]; see the top of this file."""
    inverse = inverse_depth.astype(np.float64)
    lowest, highest = inverse.min(), inverse.max()
    share = (inverse - lowest) / (highest - lowest) if highest > lowest else np.ones_like(inverse)
    return (1 / (FLOOR + (1 - FLOOR) * share)).astype(np.float32)


def _members(sample: Sample, row: Row, inverse_depth: np.ndarray) -> KeyedMembers:
    if not np.isfinite(inverse_depth).all():
        raise ValueError(f"{row.key}: the prior predicts inverse depth that is not finite; is its training broken?")
    prior = stored_prior(inverse_depth)
    if sample.meta.depth_type == DepthType.RAY and sample.meta.camera is not None:
        # a sample's depth maps are all of one type, and whoever reads this one turns it into z-depth again
        prior = prior / ray_to_z(np.ones_like(prior), sample.meta.camera, sample.meta.image_size)
    # the sidecar has no depth: the prior stands in its place so that only this one map is encoded
    alone = Sample(sample.meta, sample.image_bytes, sample.image_format, depth=prior, prior=prior)
    return sample.meta.key, sidecar_members(alone, ["prior"])
