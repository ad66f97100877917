"""What any claim must beat: interpolations of the prompt, the prior aligned to the prompt, and the training set's median depth.

Every baseline is a model in the runner's sense: ``batch -> depth in metres [B, 1, H, W]``, NaN where it has no answer (an image
without prompt points, or without the camera that the canonical median needs).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from mdpretrain.evaluation.runner import Model
from mdpretrain.losses.targets import z_depth
from mdpretrain.prompts.interpolation import linear_inverse_depth, nearest_inverse_depth
from mdpretrain.structures import DepthBatch, PreparedPrompt, SparsePrompt

PREPARED_BASELINES = {"gmdr": "global", "pdsa": "local"}


def required_prompt(batch: DepthBatch) -> SparsePrompt:
    """The batch's prompt; raises ValueError if the loader made none."""
    if batch.prompt is None:
        raise ValueError("a prompt baseline needs batches with prompts; give evaluation a prompt count")
    return batch.prompt


def interpolate_prompt(batch: DepthBatch, interpolate: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Float[Tensor, "B 1 H W"]:
    """Apply a numpy interpolation (depth_m, mask) -> inverse depth image by image; NaN where a prompt is empty."""
    prompt = required_prompt(batch)
    depth, mask = prompt.depth_m[:, 0].cpu().numpy(), prompt.mask[:, 0].cpu().numpy()
    inverse = np.stack([interpolate(depth[b], mask[b]) for b in range(len(batch))])
    return inverse_to_depth(torch.from_numpy(inverse)[:, None].to(prompt.depth_m.device))


def inverse_to_depth(inverse: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """1 / inverse where it is positive, NaN elsewhere."""
    return torch.where(inverse > 0, 1.0 / inverse.clamp(min=1e-12), torch.full_like(inverse, torch.nan))


def nearest(batch: DepthBatch) -> Float[Tensor, "B 1 H W"]:
    """Depth of the nearest prompt pixel."""
    return interpolate_prompt(batch, nearest_inverse_depth)


def linear(batch: DepthBatch) -> Float[Tensor, "B 1 H W"]:
    """Delaunay-linear interpolation of inverse depth, nearest point outside the hull: the strong baseline."""
    prompt = required_prompt(batch)
    if prompt.interpolated_inverse_depth is not None:
        return inverse_to_depth(prompt.interpolated_inverse_depth)
    return interpolate_prompt(batch, linear_inverse_depth)


def once_per_batch(function: Callable[[DepthBatch], Any]) -> Callable[[DepthBatch], Any]:
    """Remember the last batch's result: models that share a costly part of their input are called with one batch in turn."""
    last: list[Any] = [None, None]

    def remembered(batch: DepthBatch) -> Any:
        if last[0] is not batch:
            last[:] = [batch, function(batch)]
        return last[1]

    return remembered


def aligned_prior_baselines(
    prior: Callable[[DepthBatch], Tensor], preparation: Callable[[SparsePrompt, Tensor], PreparedPrompt]
) -> dict[str, Model]:
    """``gmdr`` (one robust scale and shift) and ``pdsa`` (local kNN alignment) of a prior, each alone.

    Args:
        prior: batch -> inverse depth [B, 1, H, W] up to any affine map; the one the teacher was given.
        preparation: ``PromptPreparation`` that makes the maps "global" and "local".
    """

    prepare = once_per_batch(lambda batch: preparation(required_prompt(batch), prior(batch)))

    def baseline(map_name: str) -> Model:
        def predict(batch: DepthBatch) -> Float[Tensor, "B 1 H W"]:
            prepared = prepare(batch)
            usable = prepared.usable[:, None, None, None]
            depth = 1.0 / prepared.named(map_name)
            return torch.where(usable, depth, torch.full_like(depth, torch.nan))

        return predict

    return {name: baseline(map_name) for name, map_name in PREPARED_BASELINES.items()}


@dataclasses.dataclass(frozen=True)
class DepthHistogram:
    """Log-spaced bins of depth per pixel: a median in one pass and bounded memory, exact to half a bin (0.6 % by default)."""

    near: float = 0.01
    far: float = 1000.0
    bins: int = 1024

    def bin_of(self, depth: Float[Tensor, "*shape"]) -> Tensor:
        position = (depth.clamp(self.near, self.far).log() - np.log(self.near)) / np.log(self.far / self.near) * self.bins
        return position.long().clamp(max=self.bins - 1)

    def centre_of(self, index: Tensor) -> Tensor:
        return torch.exp((index.double() + 0.5) / self.bins * np.log(self.far / self.near) + np.log(self.near)).float()


class MedianDepth(nn.Module):
    """The training set's median depth map, per pixel at evaluation resolution: what can be known without looking.

    ``form="metric"``: median of depth in metres. ``form="canonical"``: median of depth * W / f_px, times each evaluated image's
    f_px / W, so that the baseline uses the focal length as the student does; images without a camera are left out (fit) or
    unanswered (use). A pixel that no training image measured takes the median of all pixels.
    """

    def __init__(self, median: Float[Tensor, "H W"], form: Literal["metric", "canonical"], samples: int) -> None:
        super().__init__()
        self.median: Tensor
        self.register_buffer("median", median)
        self.form = form
        self.samples = samples

    def forward(self, batch: DepthBatch) -> Float[Tensor, "B 1 H W"]:
        """Depth in metres.

        Raises:
            ValueError: the batch has another size than the map.
        """
        if batch.depth.shape[-2:] != self.median.shape:
            raise ValueError(f"the median map is {tuple(self.median.shape)}, the batch {tuple(batch.depth.shape[-2:])}; use one image_size")
        depth = self.median.to(batch.depth.device).expand_as(batch.depth).clone()
        return depth if self.form == "metric" else depth * camera_factor(batch)[:, None, None, None]

    @classmethod
    def fit(cls, loader: Iterable[DepthBatch], form: Literal["metric", "canonical"], progress: bool = False) -> MedianDepth:
        """One pass over a training set (see ``DepthHistogram``).

        Raises:
            ValueError: no sample with metric depth (and, for "canonical", a camera).
        """
        return fit_medians(loader, (form,), progress)[form]


def fit_medians(
    loader: Iterable[DepthBatch], forms: tuple[Literal["metric", "canonical"], ...], progress: bool = False
) -> dict[str, MedianDepth]:
    """Several forms of the median map from one pass over the training set; a form without a usable sample is left out.

    Raises:
        ValueError: no usable sample at all, or images of several sizes.
    """
    histogram = DepthHistogram()
    counts: dict[str, Tensor] = {}
    samples = dict.fromkeys(forms, 0)
    for batch in tqdm(loader, desc="median depth of the training set", unit="batch", mininterval=1.0, disable=not progress):
        depth, has_z = z_depth(batch)
        for form in forms:
            factor, usable = torch.ones_like(depth[:, 0, 0, 0]), batch.metric & has_z
            if form == "canonical":
                factor, usable = _canonical_factor(batch, usable)
            valid = batch.valid & usable[:, None, None, None]
            bins = histogram.bin_of(torch.where(valid, depth / factor[:, None, None, None], torch.ones_like(depth)))
            table = counts.setdefault(form, torch.zeros(histogram.bins, *depth.shape[-2:], dtype=torch.int32))
            if table.shape[1:] != depth.shape[-2:]:
                raise ValueError(f"training images of {tuple(depth.shape[-2:])} and {tuple(table.shape[1:])} pixels; use one image_size")
            for b in range(len(batch)):
                table.scatter_add_(0, bins[b], valid[b].to(torch.int32))
            samples[form] += int(valid.flatten(1).any(dim=1).sum())
    if not any(samples.values()):
        cameras = " and a camera" * (forms == ("canonical",))
        raise ValueError(f"median_depth ({', '.join(forms)}): the training shards hold no sample with metric depth{cameras}")
    return {form: MedianDepth(_median_of(histogram, counts[form]), form, samples[form]) for form in forms if samples[form]}


def camera_factor(batch: DepthBatch) -> Float[Tensor, " B"]:
    """f_px / W per image, NaN where the camera is unknown."""
    factor = batch.intrinsics[:, 0, 0].float() / batch.image.shape[-1]
    return torch.where(batch.camera_known, factor, torch.full_like(factor, torch.nan))


def _canonical_factor(batch: DepthBatch, metric: Tensor) -> tuple[Tensor, Tensor]:
    """What divides a depth map into depth in units of f_px / W, and of which images: of a canonical label, nothing needs to."""
    factor, usable = camera_factor(batch), metric & batch.camera_known
    if batch.canonical is None:
        return factor, usable
    return torch.where(batch.canonical, torch.ones_like(factor), factor), usable | batch.canonical


def _median_of(histogram: DepthHistogram, counts: Tensor) -> Float[Tensor, "H W"]:
    """The (lower) median bin's centre of every pixel; the pooled one where a pixel has no count."""
    total = counts.sum(dim=0)
    median = (counts.cumsum(dim=0) < ((total + 1) // 2)[None]).sum(dim=0)
    pooled = counts.sum(dim=(1, 2), dtype=torch.int64)
    pooled_median = (pooled.cumsum(dim=0) < (pooled.sum() + 1) // 2).sum()
    return histogram.centre_of(torch.where(total > 0, median, pooled_median).clamp(max=histogram.bins - 1))
