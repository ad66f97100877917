"""The samples that a report shows: chosen without favour, spread over sources, kept as small numpy maps."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.losses.targets import z_depth
from mdpretrain.structures import DepthBatch

NETWORKS = ("teacher", "student")  # what is drawn of a run that names its networks no other way


@dataclasses.dataclass
class ShownSample:
    """Everything that is drawn of one sample. Depth in metres, ``(H, W)``; ``truth_m`` is 0 where ``valid`` is false."""

    key: str
    source: str
    image: np.ndarray  # uint8 (H, W, 3)
    truth_m: np.ndarray
    valid: np.ndarray
    predictions_m: dict[str, np.ndarray]
    intrinsics: np.ndarray | None  # None: camera unknown
    prompt_depth_m: np.ndarray | None = None
    prompt_mask: np.ndarray | None = None
    prior: np.ndarray | None = None  # inverse depth up to scale and shift
    note: str = ""  # what was done with it, where that differs between samples


class SampleCollector:
    """An observer of ``runner.evaluate``: keeps the ``count`` samples per source whose key has the smallest hash.

    The choice depends on keys alone, neither on the order of the stream nor on how well a model does.

    Args:
        count: how many samples ``chosen`` will give in all.
        prior: batch -> inverse depth [B, 1, H, W], asked only for batches of which a sample is kept.
        note: of every sample shown.
    """

    def __init__(self, count: int, prior: Callable[[DepthBatch], Tensor] | None = None, note: str = "") -> None:
        self.count = count
        self.prior = prior
        self.note = note
        self._kept: dict[str, list[tuple[str, ShownSample]]] = {}

    def __call__(self, batch: DepthBatch, predictions_m: dict[str, Tensor]) -> None:
        """Look at one batch. Samples without measured metric depth are not shown."""
        truth, has_z = z_depth(batch)
        usable = (batch.metric & has_z & batch.valid.flatten(1).any(dim=1)).tolist()
        wanted = [index for index in range(len(batch)) if usable[index] and self._is_wanted(batch.source[index], batch.key[index])]
        if not wanted:
            return
        prior = None if self.prior is None else self.prior(batch)
        for index in wanted:
            kept = self._kept.setdefault(batch.source[index], [])
            depths = {name: values[index] for name, values in predictions_m.items()}
            own_prior = None if prior is None else prior[index]
            shown = dataclasses.replace(shown_sample(batch, index, truth[index], depths, batch.valid[index], own_prior), note=self.note)
            kept.append((_rank(batch.key[index]), shown))
            kept.sort(key=lambda pair: pair[0])
            del kept[self.count :]

    def chosen(self) -> list[ShownSample]:
        """Up to ``count`` samples, the sources taking turns."""
        queues = [list(self._kept[source]) for source in sorted(self._kept)]
        turns = [queue[turn][1] for turn in range(self.count) for queue in queues if turn < len(queue)]
        return turns[: self.count]

    def _is_wanted(self, source: str, key: str) -> bool:
        kept = self._kept.get(source, [])
        return self.count > 0 and (len(kept) < self.count or _rank(key) < kept[-1][0])


def _rank(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def shown_sample(
    batch: DepthBatch,
    index: int,
    truth_m: Float[Tensor, "1 H W"],
    predictions_m: dict[str, Tensor],
    valid: Bool[Tensor, "1 H W"],
    prior: Tensor | None = None,
) -> ShownSample:
    """What is drawn of one image of a batch; truth, predictions and prior are of this image, (1, H, W)."""

    def plane(map_: Tensor) -> np.ndarray:
        return map_[0].detach().cpu().numpy()

    measured = plane(valid)
    image = batch.image[index].permute(1, 2, 0).clamp(0, 1).mul(255).round().byte().cpu().numpy()
    return ShownSample(
        key=batch.key[index],
        source=batch.source[index],
        image=image,
        truth_m=np.where(measured, plane(truth_m), 0.0).astype(np.float32),
        valid=measured,
        predictions_m={name: plane(values.float()) for name, values in predictions_m.items()},
        intrinsics=batch.intrinsics[index].cpu().numpy() if bool(batch.camera_known[index]) else None,
        prompt_depth_m=None if batch.prompt is None else plane(batch.prompt.depth_m[index]),
        prompt_mask=None if batch.prompt is None else plane(batch.prompt.mask[index]),
        prior=None if prior is None else plane(prior.float()),
    )
