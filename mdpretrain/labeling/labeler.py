"""A teacher writes its depth beside the shards: one sidecar shard for each shard, same keys, same order (or whole shards, with the image).

The label covers the whole image at the teacher's working size, is z-depth in metres (for an unknown camera: see ``LabelRequest``), and
says ``label_kind: pseudo``, the teacher's fingerprint and its quality figures, which stand in the index, too. Where the source knows the
sky, the label is infinitely far there: a teacher is not trained on sky and has no say in it. A sample that cannot be labelled has a
stand-in in the sidecar, and the row of a mixture that names the sidecar leaves it out.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch

from data_shards.schema import DepthType, LabelKind, Sample, SampleMeta
from data_shards.sidecars import sidecar_members
from data_shards.writer import KeyedMembers
from mdpretrain.data.collate import collate, collate_prompts
from mdpretrain.data.pipeline import Row, RowOptions, SamplePipeline, key_seed
from mdpretrain.labeling.host_maps import HostMaps
from mdpretrain.labeling.passes import TeacherOutput, TeacherPasses
from mdpretrain.labeling.prompt_variants import prompt_variants
from mdpretrain.labeling.quality import assess_label
from mdpretrain.labeling.requests import LabelRequest
from mdpretrain.labeling.shard_labeler import Read, ShardLabeler
from mdpretrain.labeling.source_shards import SourceShard
from mdpretrain.prompts.options import PromptDrawer
from mdpretrain.structures import DepthBatch, DepthSpace, SparsePrompt
from mdpretrain.tasks.predictor import Predictor

FIELDS = ("prior", "sky")  # what is read of a sample besides image and depth
OTHER = "other/"
# Agreement in absolute terms, which says nothing of a label, or a source, without metres; and the label's own range in metres.
AGREEMENT_IN_METRES, RANGE_IN_METRES = ("abs_rel", "log_scale"), ("near_m", "far_m")


@dataclasses.dataclass
class LabelRead(Read):
    """``variants``: the row with the prompts of further passes, by name; one that this sample cannot have is missing."""

    variants: dict[str, Row] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LabelMaps(HostMaps):
    """With what the batch's prediction was: ``space``, and whether the network estimates focal lengths."""

    space: DepthSpace = DepthSpace.METRIC

    @classmethod
    def of(cls, output: TeacherOutput) -> LabelMaps:
        """Start copying a teacher's output."""
        maps = HostMaps.copy(output.tensors())
        return cls(maps.tensors, maps.event, output.space)


class Labeler(ShardLabeler[LabelRead]):
    """Labels the shards of one folder.

    Args:
        predictor: the teacher, on its device.
        request: size, prompts, passes.
        batch_size, decode_threads, encode_threads: see ShardLabeler.

    Raises:
        ValueError: a teacher that needs a prompt, and a request without; or a prompt for a teacher that takes none.
    """

    def __init__(
        self, predictor: Predictor, request: LabelRequest, batch_size: int = 8, decode_threads: int = 2, encode_threads: int = 2
    ) -> None:
        super().__init__(batch_size, decode_threads, encode_threads)
        if predictor.needs_prompt and request.prompt is None:
            raise ValueError("this teacher needs a sparse prompt: give --prompt-count LOW HIGH")
        if request.prompt is not None and not predictor.needs_prompt:
            raise ValueError(
                "this teacher takes no prompt: leave out --prompt-count, --prompts and, under --consistency, disjoint and density, "
                "from a --config file as well"
            )
        self.predictor = predictor
        self.request = request
        self.passes = TeacherPasses(predictor, request)
        self._drawer = None if request.prompt is None else PromptDrawer(request.prompt)
        self._pipeline = functools.cache(
            lambda long_side: SamplePipeline(None, None, request.prompt, request.seed, long_side, request.multiple)
        )

    def describe(self) -> dict[str, Any]:
        """Label kind, teacher and request."""
        return {
            "label_kind": LabelKind.PSEUDO.value,
            "teacher": self.predictor.fingerprint,
            "request": dataclasses.asdict(self.request),
        }

    def read(self, shard: SourceShard, position: int) -> LabelRead | str:
        """The decoded sample with all its prompts, or why it cannot be labelled."""
        key = shard.keys[position]
        try:
            sample = shard.sample(position, FIELDS)
            long_side = self.request.long_side
            if self.request.tile_side is not None:  # tiles show what is there; nothing is enlarged for them
                long_side = max(self.request.multiple, min(long_side, max(sample.meta.image_size)))
            row = self._pipeline(long_side)(sample, position, RowOptions(), prompt_seed=key_seed(key))
        except ValueError as error:
            return str(error)
        prompt = self.request.prompt
        if self._drawer is None or prompt is None:
            return LabelRead(position, sample, row)
        if row.prompt_mask is None or not row.prompt_mask.any():
            return f"{key}: no metric z-depth to draw a prompt from"
        names = self.request.further_prompts
        variants = prompt_variants(row, names, self._drawer, prompt.interpolate, self.request.seed)
        return LabelRead(position, sample, row, variants)

    def compute(self, group: list[LabelRead]) -> LabelMaps:
        """Every pass of the request over samples of one size."""
        return LabelMaps.of(self.passes(*self.collated(group)))

    def collated(self, group: list[LabelRead]) -> tuple[DepthBatch, dict[str, SparsePrompt]]:
        """Samples of one size on the teacher's device, with the prompts of the further passes."""
        device = next(self.predictor.parameters(), torch.empty(0)).device
        batch = collate([read.row for read in group])
        prompts: dict[str, SparsePrompt] = {}
        for name in self.request.further_prompts:
            variant = collate_prompts([read.variants.get(name, read.row) for read in group])
            assert variant is not None
            prompts[name] = variant
        if device.type == "cuda":
            batch, prompts = batch.pin_memory(), {name: prompt.pin_memory() for name, prompt in prompts.items()}
        prompts = {name: prompt.to(device, non_blocking=True) for name, prompt in prompts.items()}
        return batch.to(device, non_blocking=True), prompts

    def finish(self, read: LabelRead, computed: HostMaps, index: int) -> Sample | KeyedMembers | str:
        """The label with its figures and confidence, as a sidecar's members or a whole sample; or why there is none."""
        assert isinstance(computed, LabelMaps)
        maps, row, meta = computed.image(index), read.row, read.sample.meta
        label_m = maps["label"]
        if reason := self._camera_refusal(row, computed):
            return reason
        if not maps["sound"]:
            raise ValueError(f"{row.key}: the teacher predicts depth that is not finite and positive; is its training broken?")
        if not np.isfinite(label_m[~row.sky]).any():
            return f"{row.key}: no pixel outside the sky has a label"
        canonical = not row.camera_known and computed.space is DepthSpace.CANONICAL_INVERSE and self.request.unknown_camera == "canonical"
        names = [name for name in maps if name.startswith(OTHER)]
        present = {name.removeprefix(OTHER): maps[name] for name in names if self._has(read, name.removeprefix(OTHER))}
        valid = np.zeros_like(row.valid) if row.depth_is_ray else row.valid
        assessed = assess_label(label_m, present, row.depth, valid, self._told(read), row.image, row.sky)
        figures = dict(assessed.figures)
        if canonical or not row.metric:
            figures |= dict.fromkeys(AGREEMENT_IN_METRES)
        if canonical:
            figures |= dict.fromkeys(RANGE_IN_METRES)
        if "estimated_f_px" in maps:
            figures["estimated_f_px_per_width"] = float(maps["estimated_f_px"]) / row.image.shape[1]
        label_meta = dataclasses.replace(
            meta,
            label_kind=LabelKind.PSEUDO,
            teacher=self.predictor.fingerprint,
            quality=figures,
            depth_type=DepthType.Z,
            metric=not canonical,
            canonical=canonical,
            encodings={},
        )
        return self._written(read.sample, label_meta, np.where(row.sky, np.float32(np.inf), label_m), assessed.confidence)

    def stand_in(self, shard: SourceShard, position: int) -> KeyedMembers | None:
        """The meta alone, in a sidecar; whole shards leave the sample out."""
        return None if self.request.whole else shard.stand_in(position)

    def _has(self, read: LabelRead, name: str) -> bool:
        """Whether a pass was this sample's own: a stand-in ran where it cannot have that prompt."""
        return name == "flip" or name in read.variants

    def _told(self, read: LabelRead) -> np.ndarray | None:
        """The pixels that the label's passes were given as prompt, of all that it is the mean of; None for a teacher without a prompt."""
        rows = [read.row, *(read.variants[name] for name in self.request.averaged if name in read.variants)]
        masks = [row.prompt_mask for row in rows if row.prompt_mask is not None]
        return functools.reduce(np.logical_or, masks) if masks else None

    def _camera_refusal(self, row: Row, computed: LabelMaps) -> str | None:
        """Why a sample of unknown camera is not labelled, if the teacher's depth needs the camera."""
        estimates = "estimated_f_px" in computed.tensors
        canonical = computed.space is DepthSpace.CANONICAL_INVERSE
        if row.camera_known or not (canonical or estimates):
            return None
        wanted = self.request.unknown_camera
        if (wanted == "canonical" and canonical) or (wanted == "estimate" and estimates):
            return None
        unable = {"canonical": ", and it does not predict canonical depth", "estimate": ", and it estimates no focal length", "reject": ""}
        return f"{row.key}: the camera is unknown, and this teacher's depth needs it to be in metres{unable[wanted]}"

    def _written(self, sample: Sample, meta: SampleMeta, depth: np.ndarray, confidence: np.ndarray) -> Sample | KeyedMembers:
        label = Sample(meta, sample.image_bytes, sample.image_format, depth.astype(np.float32), confidence=confidence)
        if self.request.whole:
            return label
        return meta.key, sidecar_members(label, ("depth", "confidence"), quantisation="log16")
