"""A teacher writes its depth as shards of the same schema: one shard out for each shard in, same keys, same order.

The label covers the whole image at the teacher's working size (the colour image is copied byte for byte), is z-depth in metres,
and says ``label_kind: pseudo``, the teacher's fingerprint and its quality figures. Where the source knows the sky, the label is
infinitely far there: a teacher is not trained on sky and has no say in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from data_shards.index import IndexedShard
from data_shards.samples import members_to_sample
from data_shards.schema import DepthType, LabelKind, Sample
from data_shards.writer import KeyedMembers
from mdpretrain.data.collate import collate
from mdpretrain.data.pipeline import PromptOptions, Row, RowOptions, SamplePipeline, key_seed
from mdpretrain.labeling.quality import label_quality
from mdpretrain.labeling.shard_labeler import Read, ShardLabeler
from mdpretrain.tasks.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class LabelRequest:
    """What decides the labels, beside the teacher and the shards. ``prompt`` None is for a teacher that takes no prompt."""

    prompt: PromptOptions | None
    long_side: int = 518
    multiple: int = 14
    seed: int = 0


class Labeler(ShardLabeler):
    """Labels the shards of one folder.

    Args:
        predictor: The teacher.
        request: Size and prompts.
        batch_size, decode_threads: see ShardLabeler.

    Raises:
        ValueError: a teacher that needs a prompt, and a request without.
    """

    def __init__(self, predictor: Predictor, request: LabelRequest, batch_size: int = 8, decode_threads: int = 2) -> None:
        super().__init__(batch_size, decode_threads)
        if predictor.needs_prompt and request.prompt is None:
            raise ValueError("this teacher needs a sparse prompt: give --prompt-count LOW HIGH")
        self.predictor = predictor
        self.request = request
        prompt = request.prompt if predictor.needs_prompt else None
        self.pipeline = SamplePipeline(None, None, prompt, request.seed, request.long_side, request.multiple)

    def describe(self) -> dict[str, Any]:
        """Label kind, teacher and request."""
        return {
            "label_kind": LabelKind.PSEUDO.value,
            "teacher": self.predictor.fingerprint,
            "request": dataclasses.asdict(self.request),
        }

    def read(self, shard: IndexedShard, position: int) -> Read | str:
        """The decoded sample, or why it cannot be labelled."""
        key = shard.keys[position]
        try:
            sample = members_to_sample(key, shard.read(position), fields=("prior", "sky"))
            row = self.pipeline(sample, position, RowOptions(), prompt_seed=key_seed(key))
        except ValueError as error:
            return str(error)
        if self.predictor.needs_prompt and (row.prompt_mask is None or not row.prompt_mask.any()):
            return f"{key}: no metric z-depth to draw a prompt from"
        if not row.camera_known and not self.predictor.needs_prompt:
            return f"{key}: the camera is unknown, and this teacher's depth needs it to be in metres"
        return position, sample, row

    def predict(self, group: list[Read]) -> dict[int, Sample | KeyedMembers]:
        """Labelled samples by their position in the shard."""
        device = next(self.predictor.parameters()).device
        batch = collate([row for _, _, row in group])
        depth = self.predictor.depth_m(batch.to(device)).float().cpu().numpy()[:, 0]
        return {position: self._labelled(sample, row, label) for (position, sample, row), label in zip(group, depth)}

    def _labelled(self, sample: Sample, row: Row, label_m: np.ndarray) -> Sample:
        if not (np.isfinite(label_m).all() and (label_m > 0).all()):
            raise ValueError(f"{row.key}: the teacher predicts depth that is not finite and positive; is its training broken?")
        meta = dataclasses.replace(
            sample.meta,
            label_kind=LabelKind.PSEUDO,
            teacher=self.predictor.fingerprint,
            quality=label_quality(label_m, row.depth, row.valid, row.prompt_mask),
            depth_type=DepthType.Z,
            metric=True,
            encodings={},
        )
        depth = np.where(row.sky, np.float32(np.inf), label_m).astype(np.float32)
        return Sample(meta=meta, image_bytes=sample.image_bytes, image_format=sample.image_format, depth=depth)
