"""How far a figure would move with other images: percentile bootstrap over images, stratified by source, paired between models.

A resample draws as many images of a source as it has, with replacement. Every model is measured on the same resamples, so that the
resampled difference of two models is a difference on the same images: its interval is much narrower than the two figures' own, because what
makes an image hard makes it hard for both. Images are taken to be independent; frames of one walk are not, and have too narrow a one.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 (percentile interval) and 8 (strata).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from mdpretrain.data.order import hash_key

LARGEST_BLOCK = 4_000_000  # resamples x images held at once
COVERAGE = 0.95


@dataclasses.dataclass(frozen=True)
class Resampling:
    """Which images each resample draws: a function of (seed, source, group, number of images) and nothing else."""

    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resamples < 0 or self.seed < 0:
            raise ValueError(
                f"bootstrap with {self.resamples} resamples and seed {self.seed}: neither may be negative; 0 resamples give no interval"
            )

    def blocks(self, source: str, group: str, images: int) -> Iterator[np.ndarray]:
        """How often each image is in each resample: float64 (resamples of the block, images), all blocks together ``resamples`` rows."""
        rng = np.random.Generator(np.random.PCG64([self.seed, hash_key("bootstrap", source, group)]))
        size = max(1, LARGEST_BLOCK // max(images, 1))
        for start in range(0, self.resamples, size):
            count = min(size, self.resamples - start)
            drawn = rng.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
            yield np.bincount(drawn.reshape(-1), minlength=count * images).reshape(count, images).astype(np.float64)


def interval(resampled: np.ndarray) -> list[float] | None:
    """[low, high] that holds the middle 95 % of the resampled figures; None if there is none."""
    there = resampled[~np.isnan(resampled)]
    if not there.size:
        return None
    low, high = np.quantile(there, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return [float(low), float(high)]
