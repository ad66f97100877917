"""What a recipe says about prompts: which kinds, how often, with which settings and noise; and the drawing of one.

The table of kinds, their physics and defaults are in docs/prompts.md.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from mdpretrain.prompts.dense_sensors import LowResolution, SparseAnchors
from mdpretrain.prompts.keypoints import SfmKeypoints
from mdpretrain.prompts.lidar import SolidStateLidar, SpinningLidar
from mdpretrain.prompts.noise import PromptNoise
from mdpretrain.prompts.patterns import HoleRegions, PerturbedGrid, RangeCrop
from mdpretrain.prompts.radar import Radar
from mdpretrain.prompts.sampling import PromptSampler
from mdpretrain.prompts.scene import PromptScene, SparseMaps
from mdpretrain.prompts.time_of_flight import TimeOfFlight
from mdpretrain.structures import PROMPT_KINDS


@runtime_checkable
class PromptSource(Protocol):
    """One way to draw a prompt."""

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """(depth_m float32, mask bool), both (H, W); random numbers from ``rng`` only."""
        ...


class DrawnPrompt(NamedTuple):
    """``kind`` indexes ``structures.PROMPT_KINDS``."""

    depth_m: np.ndarray
    mask: np.ndarray
    kind: int


@dataclasses.dataclass(frozen=True)
class UniformPoints:
    """N usable pixels, uniformly without replacement (``PromptSampler``)."""

    count: tuple[int, int]

    def draw(self, scene: PromptScene, rng: np.random.Generator) -> SparseMaps:
        """One prompt of the scene."""
        return PromptSampler(self.count)(scene.depth_m, scene.valid, rng)


@dataclasses.dataclass(frozen=True)
class PromptOptions:
    """Sparse prompts drawn from the label.

    Args:
        count: number of points, log-uniform in [low, high]; also of the grid, the solid-state lidar and SfM, unless they say otherwise.
        interpolate: also interpolate 1/depth over the image (Delaunay-linear) in the worker.
        weights: how often each kind of ``PROMPT_KINDS`` is drawn, relative to the others; by default uniform points alone.
        grid, lidar, solid_state_lidar, radar, sfm, time_of_flight, low_resolution, hole, range, anchors: settings of each kind.
        noise: errors added to every drawn prompt, whatever its kind; null for none.
        stored: a sample whose shard holds its sensor's own depth (``KEY.prompt``) gets that as its prompt; the others' are drawn.
        points_of_sensor: a sample whose shard holds its sensor's own depth has its points drawn from that in place of the label: errors
            and holes are the sensor's, and the label says what they should have been.

    Raises:
        ValueError: an impossible count, an unknown kind, weights that are negative or all zero, both ways to use a sensor's depth.
    """

    count: tuple[int, int]
    interpolate: bool = False
    weights: dict[str, float] | None = None
    grid: PerturbedGrid = dataclasses.field(default_factory=PerturbedGrid)
    lidar: SpinningLidar = dataclasses.field(default_factory=SpinningLidar)
    solid_state_lidar: SolidStateLidar = dataclasses.field(default_factory=SolidStateLidar)
    radar: Radar = dataclasses.field(default_factory=Radar)
    sfm: SfmKeypoints = dataclasses.field(default_factory=SfmKeypoints)
    time_of_flight: TimeOfFlight = dataclasses.field(default_factory=TimeOfFlight)
    low_resolution: LowResolution = dataclasses.field(default_factory=LowResolution)
    hole: HoleRegions = dataclasses.field(default_factory=HoleRegions)
    range: RangeCrop = dataclasses.field(default_factory=RangeCrop)
    anchors: SparseAnchors = dataclasses.field(default_factory=SparseAnchors)
    noise: PromptNoise | None = None
    stored: bool = False
    points_of_sensor: bool = False

    def __post_init__(self) -> None:
        if self.stored and self.points_of_sensor:
            raise ValueError("prompt.stored gives the sensor's whole map and prompt.points_of_sensor points of it; set one of them")
        PromptSampler(self.count)  # refuses an impossible range where the recipe is read, not in a worker
        weights = self.weights or {}
        if unknown := sorted(set(weights) - set(PROMPT_KINDS)):
            raise ValueError(f"prompt.weights names {unknown[0]!r}, which is no kind of prompt; choose from {', '.join(PROMPT_KINDS)}")
        if wrong := sorted(name for name, weight in weights.items() if not 0 <= weight < math.inf):
            raise ValueError(f"prompt.weights.{wrong[0]} is {weights[wrong[0]]}; give a number that is not negative")
        if self.weights is not None and not sum(weights.values()) > 0:
            raise ValueError("prompt.weights: no kind has a weight above zero, so no prompt can be drawn; leave it out for uniform points")


class PromptDrawer:
    """Draws prompts as the options say. One random number chooses the kind, where there is a choice; the kind draws the rest."""

    def __init__(self, options: PromptOptions) -> None:
        weights = {name: weight for name in PROMPT_KINDS if (weight := (options.weights or {"uniform": 1.0}).get(name, 0.0)) > 0}
        self.kinds = tuple(weights)
        self.bounds = np.cumsum(list(weights.values())) / sum(weights.values())
        self.sources = [_source(options, name) for name in self.kinds]
        self.noise = options.noise

    def __call__(self, scene: PromptScene, rng: np.random.Generator) -> DrawnPrompt:
        """One prompt of the scene: the same generator state gives the same prompt."""
        choice = 0
        if len(self.kinds) > 1:
            choice = min(int(np.searchsorted(self.bounds, rng.random(), side="right")), len(self.kinds) - 1)
        depth_m, mask = self.sources[choice].draw(scene, rng)
        if self.noise is not None:
            depth_m, mask = self.noise(scene, depth_m, mask, rng)
        return DrawnPrompt(depth_m, mask, PROMPT_KINDS.index(self.kinds[choice]))


def _source(options: PromptOptions, name: str) -> PromptSource:
    """The simulator of a kind, with the recipe's number of points where it has none of its own."""
    if name == "uniform":
        return UniformPoints(options.count)
    source: PromptSource = getattr(options, name)
    if getattr(source, "count", options.count) is None:
        source = dataclasses.replace(source, count=options.count)  # type: ignore[type-var]
    return source
