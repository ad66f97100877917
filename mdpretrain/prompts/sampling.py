"""Draws a sparse metric prompt from a dense metric depth map (spec 1.1): a uniform random subset of the valid pixels.

Runs in the data workers, so numpy only. The caller owns the random generator: the same generator state gives the same
prompt, whatever process draws it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mdpretrain.prompts.settings import log_uniform_integer


@dataclasses.dataclass(frozen=True)
class PromptSampler:
    """Uniform sampling without replacement of N valid pixels, N log-uniform on the integers of ``count``.

    The number of points is drawn as ``floor(exp(U(log low, log(high + 1))))``, so that
    ``P(N = n) = log((n + 1) / n) / log((high + 1) / low)``: each octave of N is equally likely, as in the default of
    spec 1.1 (MetricAnything does not state its own distribution). An image with fewer than N valid pixels gives all of
    them; one without any gives an empty prompt, which preparation marks as unusable.
    """

    count: Sequence[int]

    def __post_init__(self) -> None:
        if len(self.count) != 2 or not 1 <= self.count[0] <= self.count[1]:
            raise ValueError(f"prompt count {list(self.count)}: give two integers [low, high] with 1 <= low <= high")

    def draw_count(self, rng: np.random.Generator) -> int:
        """One N; consumes exactly one uniform number of ``rng``."""
        return log_uniform_integer(rng, self.count)

    def __call__(self, depth_m: np.ndarray, valid: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw one prompt.

        Args:
            depth_m: z-depth in metres, float32 ``(H, W)``. Ray depth or depth of unknown scale is not a metric prompt.
            valid: bool ``(H, W)``; a pixel counts as valid only where ``depth_m`` is finite and positive, too.
            rng: the generator to draw from.

        Returns:
            ``(depth_m, mask)``: float32 ``(H, W)`` with zeros where nothing was drawn, and the bool mask of drawn pixels.

        Raises:
            ValueError: the two maps differ in shape.
        """
        if depth_m.shape != valid.shape or depth_m.ndim != 2:
            raise ValueError(f"prompt sampling needs two maps of one (H, W) shape, got depth_m {depth_m.shape} and valid {valid.shape}")
        count = self.draw_count(rng)
        usable = (depth_m > 0) & (depth_m < np.inf) & valid  # false where the depth is NaN
        candidates = np.flatnonzero(usable)
        if candidates.size > count:
            candidates = rng.choice(candidates, size=count, replace=False, shuffle=False)
        mask, drawn_m = np.zeros(depth_m.shape, dtype=bool), np.zeros(depth_m.shape, dtype=np.float32)
        mask.reshape(-1)[candidates] = True
        drawn_m.reshape(-1)[candidates] = depth_m.reshape(-1)[candidates]
        return drawn_m, mask
