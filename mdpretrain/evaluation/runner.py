"""Run models and baselines over a stream of batches and measure them, sample by sample, under named protocols.

A model is any callable ``batch -> depth in metres [B, 1, H, W]`` (NaN where it has no answer), or ``batch -> DepthPrediction``; the
runner knows nothing of checkpoints or families. Of an image only its moments are kept (``measurements.py``): the stream may be long.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from data_shards.schema import LABEL_KINDS, LabelKind
from mdpretrain.evaluation.measurements import ALL, ProtocolRecord, image_row
from mdpretrain.evaluation.protocols import Protocol
from mdpretrain.losses.targets import z_depth
from mdpretrain.metrics.alignment import Alignment, align, align_inverse
from mdpretrain.metrics.boundary import boundary_scores
from mdpretrain.metrics.depth import PixelMoments, pixel_moments
from mdpretrain.structures import PROMPT_KINDS, DepthBatch, DepthPrediction, DepthSpace, SparsePrompt

Model = Callable[[DepthBatch], Tensor | DepthPrediction]
Observer = Callable[[DepthBatch, dict[str, Tensor]], None]
# Called with each measured image: its batch, its place there, its record (the image is the last of it), the true z-depth and the pixels
# that count (1, H, W), and the answered models' depth in float64 metres (1, H, W), aligned and clamped.
ImageObserver = Callable[[DepthBatch, int, ProtocolRecord, Tensor, Tensor, dict[str, Tensor]], None]
ALL_SOURCES = ALL
NO_PROMPT = "none"  # the kind of an image of which no prompt could be drawn
RENDERED = LABEL_KINDS.index(LabelKind.RENDERED)
LARGEST_FIT_M = 1e6
# Kinds whose depth is another, worse reading of the whole image and no copy of the ground truth: every pixel can be wrong.
DEGRADED_KINDS = tuple(PROMPT_KINDS.index(name) for name in ("time_of_flight", "anchors"))
# One point a block covers at most a quarter of the image, for a block has at least 2 x 2 pixels (``BlockGrid.of``).
LOW_RESOLUTION, SPREAD_SHARE = PROMPT_KINDS.index("low_resolution"), 0.25


def run_models(
    models: Mapping[str, Model],
    loader: Iterable[DepthBatch],
    protocols: Sequence[Protocol],
    device: torch.device | str = "cpu",
    observer: Observer | None = None,
    progress: bool = False,
    stored: Collection[str] = (),
    image_observer: ImageObserver | None = None,
) -> list[ProtocolRecord]:
    """Run every model on every batch and record the moments of each image, a record per protocol.

    A sample is *skipped* for all models (and counted) if no pixel of its ground truth counts, if its depth is along rays of an
    unknown camera, or if its depth has no metric and the protocol does not align. A model's answer with a NaN on a pixel that
    counts, or that no alignment can place, is *unanswered*: counted and left out of that model's mean.

    A stored map (a sensor's, a label) has holes, and its error is that of the pixels it has. All models are then measured on these
    pixels, so that differences stay paired pixel by pixel: a pixel that a stored map lacks counts for nobody, unless that map has none
    of the image's pixels, when it is unanswered and the others are measured as without it.

    Args:
        models: name -> callable; each is called once per batch, without gradients.
        loader: batches, every sample once.
        protocols: see ``protocols.find_protocol``.
        device: where the batches go before the models see them.
        observer: called with each batch and the models' depth in metres (affine predictions left out), for pictures.
        progress: show a bar with rate and time left.
        stored: those of the models that are stored maps.
        image_observer: called with every image that is measured, protocol by protocol.

    Raises:
        ValueError: no sample at all, or a model's output of another size than the batch.
    """
    records = [ProtocolRecord(protocol) for protocol in protocols]
    samples = 0
    bar = tqdm(loader, desc="evaluate", unit="batch", mininterval=1.0, disable=not progress)
    for batch in bar:
        batch = batch.to(device)
        with torch.no_grad():
            predictions = {name: _as_prediction(name, model(batch), batch) for name, model in models.items()}
            _measure_batch(batch, predictions, records, stored, image_observer)
            if observer is not None:
                observer(batch, {name: p.values for name, p in predictions.items() if p.space == DepthSpace.METRIC})
        samples += len(batch)
        if skipped := sum(sum(record.skipped.values()) for record in records):
            bar.set_postfix(skipped=skipped)
    if not samples:
        raise ValueError("evaluation got no sample; check the shard folders and what was included or excluded")
    return records


def _as_prediction(name: str, answer: Tensor | DepthPrediction, batch: DepthBatch) -> DepthPrediction:
    prediction = answer if isinstance(answer, DepthPrediction) else DepthPrediction(answer, DepthSpace.METRIC)
    if prediction.values.shape != batch.depth.shape:
        raise ValueError(f"model {name!r} answered with shape {tuple(prediction.values.shape)} to a batch of {tuple(batch.depth.shape)}")
    if prediction.space not in (DepthSpace.METRIC, DepthSpace.AFFINE_INVARIANT):
        raise ValueError(f"model {name!r} answered in {prediction.space.value}; give metres or affine-invariant inverse depth")
    return prediction


def _measure_batch(
    batch: DepthBatch,
    predictions: dict[str, DepthPrediction],
    records: Sequence[ProtocolRecord],
    stored: Collection[str],
    image_observer: ImageObserver | None,
) -> None:
    truth, has_z = z_depth(batch)
    measurable, metric, kinds = has_z.tolist(), batch.metric.tolist(), prompt_kinds(batch)
    rendered = (batch.label_kind == RENDERED).tolist()
    missing = {name: prediction.values.isnan() for name, prediction in predictions.items() if name in stored}
    for record in records:
        protocol = record.protocol
        inside = counted_pixels(truth, batch.valid, protocol)
        wanted = without_prompt_pixels(inside, batch.prompt, protocol)
        for index, source in enumerate(batch.source):
            usable = measurable[index] and (metric[index] or protocol.alignment != Alignment.NONE)
            counts, coverage = without_holes(wanted[index], {name: map_[index] for name, map_ in missing.items()})
            if not usable or not bool(counts.any()):
                record.skip(source, kinds[index])
                continue
            rows, maps = {}, {}
            for name, prediction in predictions.items():
                if not answers(prediction.space, protocol):
                    continue
                aligned = aligned_depth(prediction.values[index], truth[index], counts, prediction.space, protocol)
                moments = None if aligned is None else pixel_moments(aligned[counts], truth[index][counts].double())
                f1 = boundary_of(batch, index, aligned, truth, inside, protocol) if rendered[index] and aligned is not None else None
                rows[name] = image_row(moments, f1)
                if aligned is not None:
                    maps[name] = aligned
            record.add(source, kinds[index], rows, batch.key[index], coverage)
            if image_observer is not None:
                image_observer(batch, index, record, truth[index], counts, maps)


def without_holes(counts: Bool[Tensor, "1 H W"], missing: Mapping[str, Tensor]) -> tuple[Bool[Tensor, "1 H W"], dict[str, float]]:
    """The pixels that every stored map has, of those that count, and the share of them that each has.

    Args:
        counts: the pixels that count.
        missing: name -> bool (1, H, W), where the stored map has no depth. One that has none at all leaves ``counts`` alone.
    """
    total = int(counts.sum()) if missing else 0
    if not total:
        return counts, {}
    kept, coverage = counts, {}
    for name, lacks in missing.items():
        has = counts & ~lacks
        coverage[name] = int(has.sum()) / total
        kept = kept & has if coverage[name] else kept
    return kept, coverage


def prompt_kinds(batch: DepthBatch) -> list[str]:
    """The name of each image's kind of prompt; "" where the batch has no prompts or their kind is not known."""
    if batch.prompt is None or batch.prompt.kind is None:
        return [""] * len(batch)
    return [PROMPT_KINDS[kind] if kind >= 0 else NO_PROMPT for kind in batch.prompt.kind.tolist()]


def without_prompt_pixels(inside: Bool[Tensor, "B 1 H W"], prompt: SparsePrompt | None, protocol: Protocol) -> Bool[Tensor, "B 1 H W"]:
    """What counts of the pixels ``inside``: all, or, where the protocol says so, those that carry no copy of the input."""
    return inside & ~excluded_pixels(prompt) if protocol.exclude_prompt_pixels and prompt is not None else inside


def excluded_pixels(prompt: SparsePrompt) -> Bool[Tensor, "B 1 H W"]:
    """Pixels that carry a prompt point: an answer there is a copy of the input.

    None in images whose prompt is a degraded map of the whole image: time of flight, anchors, and low resolution with each value spread
    over its block, known by covering more than a quarter of the image. The share of the *measured* pixels would not tell: where truth is
    sparse, exact points one a block are nearly all of it. A spread map of such truth is taken for points, too, and its images are skipped.
    """
    if prompt.kind is None:
        return prompt.mask
    degraded = torch.isin(prompt.kind, torch.tensor(DEGRADED_KINDS, device=prompt.kind.device))
    spread = prompt.mask.flatten(1).sum(dim=1) > SPREAD_SHARE * prompt.mask[0].numel()
    degraded = degraded | ((prompt.kind == LOW_RESOLUTION) & spread)
    return prompt.mask & ~degraded[:, None, None, None]


def answers(space: DepthSpace, protocol: Protocol) -> bool:
    """Whether a prediction in this space can be measured: an affine-invariant one only after alignment in inverse depth."""
    return space == DepthSpace.METRIC or protocol.alignment == Alignment.DISPARITY


def counted_pixels(truth_m: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"], protocol: Protocol) -> Bool[Tensor, "B 1 H W"]:
    """The ground-truth pixels that count: valid, strictly inside the range, inside the crop."""
    return valid & inside_crop(valid, protocol) & (truth_m > protocol.min_depth_m) & (truth_m < protocol.max_depth_m)


def inside_crop(like: Bool[Tensor, "B 1 H W"], protocol: Protocol) -> Bool[Tensor, "B 1 H W"]:
    """True inside the protocol's crop."""
    top, bottom, left, right = protocol.crop_window(*like.shape[-2:])
    inside = torch.zeros_like(like)
    inside[..., top:bottom, left:right] = True
    return inside


def measure(
    values: Float[Tensor, "1 H W"],
    truth_m: Float[Tensor, "1 H W"],
    counts: Bool[Tensor, "1 H W"],
    space: DepthSpace,
    protocol: Protocol,
) -> PixelMoments | None:
    """The moments of one sample after alignment and clamping; None if the prediction has no answer there."""
    aligned = aligned_depth(values, truth_m, counts, space, protocol)
    return None if aligned is None else pixel_moments(aligned[counts], truth_m[counts].double())


def aligned_depth(
    values: Float[Tensor, "1 H W"],
    truth_m: Float[Tensor, "1 H W"],
    counts: Bool[Tensor, "1 H W"],
    space: DepthSpace,
    protocol: Protocol,
) -> Float[Tensor, "1 H W"] | None:
    """The whole map in float64 metres, aligned on the pixels that count and clamped; None if it has no answer on one of them."""
    if bool(values[counts].isnan().any()):
        return None
    values, truth = values.double(), truth_m[counts].double()
    if space == DepthSpace.AFFINE_INVARIANT:
        aligned = align_inverse(values, values[counts], truth)
    else:
        values = values.clamp(1e-6, LARGEST_FIT_M)  # an alignment must not meet 0 or infinity
        aligned = align(values, values[counts], truth, protocol.alignment)
    return aligned.clamp(*protocol.clamp_m)


def boundary_of(
    batch: DepthBatch, index: int, aligned_m: Tensor, truth_m: Tensor, inside: Bool[Tensor, "B 1 H W"], protocol: Protocol
) -> float | None:
    """The boundary F1 of one image with dense truth, the sky being infinitely far; prompt pixels are looked at, spikes on them included.

    None for a map with holes among the pixels of the range and crop.
    """
    if bool(aligned_m[inside[index]].isnan().any()):
        return None
    sky = batch.sky[index, 0] & inside_crop(batch.sky, protocol)[index, 0]
    true = torch.where(sky, torch.inf, truth_m[index, 0].double())
    scores = boundary_scores(aligned_m[0], true, inside[index, 0] | sky)
    return None if scores is None else scores.f1
