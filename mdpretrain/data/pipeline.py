"""One sample from encoded bytes to the arrays of a batch row: view, colour, depth, camera, prompt. numpy only, in the data workers."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_shards.mixture import MixtureSource
from data_shards.schema import LABEL_KINDS, Camera, DepthType, LabelKind, Sample
from mdpretrain.compilation import COMPILED
from mdpretrain.data.colour import ColourJitter, to_unit_float
from mdpretrain.data.compiled import split_sky
from mdpretrain.data.crops import Cut, View, covering_view, cut_view, random_view, whole_view
from mdpretrain.data.order import hash_key
from mdpretrain.data.resample import ray_to_z, read_colour, sample_depth, sample_nearest
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.prompts.options import PromptDrawer
from mdpretrain.prompts.options import PromptOptions as PromptOptions  # a recipe's ``data.prompt``: known by this name to all that draw
from mdpretrain.prompts.scene import PromptScene
from mdpretrain.structures import PROMPT_KINDS

# A random crop of a sparse map can miss all of its points: so many boxes are tried, then the largest centred one.
CROP_ATTEMPTS = 4
# Purposes of the per-sample generators. Separate, so that asking for prompts does not change the crops.
AUGMENTATION, PROMPT = 0, 1


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random view and colour of a training sample.

    Args:
        crop: side of the box as a fraction of the largest box of the output's aspect that fits into the image.
        stretch: largest change of aspect (1 = none: pixels stay square up to rounding; the camera is exact in any case).
        flip: probability of mirroring left and right.
        colour: strengths of the colour change, null for none.
    """

    crop: tuple[float, float] = (0.5, 1.0)
    stretch: float = 1.0
    flip: float = 0.5
    colour: ColourJitter | None = dataclasses.field(default_factory=ColourJitter)

    def __post_init__(self) -> None:
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"augmentation.crop is {list(self.crop)}; give two fractions with 0 < low <= high <= 1")
        if not 1 <= self.stretch <= 4:
            raise ValueError(f"augmentation.stretch is {self.stretch}; give a ratio in [1, 4], 1 keeps the aspect")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"augmentation.flip is {self.flip}; give a probability")


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """What a row of the mixture says about its samples (``data_shards.mixture.MixtureSource``).

    Args:
        min_depth_m, max_depth_m: metric depth outside counts as not measured.
        crop: side of the random box, instead of the augmentation's.
        loss_kind: the row of the loss table that serves the sample, instead of its own label kind.
    """

    min_depth_m: float | None = None
    max_depth_m: float | None = None
    crop: tuple[float, float] | None = None
    loss_kind: str | None = None

    @classmethod
    def of(cls, row: MixtureSource) -> RowOptions:
        """Of one row."""
        return cls(row.min_depth_m, row.max_depth_m, row.crop, row.loss_kind)


@dataclasses.dataclass
class Row:
    """One row of a batch. ``H W`` maps are float32 or bool; ``image`` is float32 (H, W, 3) in [0, 1]."""

    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    sky: np.ndarray
    intrinsics: np.ndarray
    camera_known: bool
    metric: bool
    depth_is_ray: bool
    label_kind: int
    position: int
    key: str
    source: str
    canonical: bool = False  # see ``DepthBatch``
    prior_depth: np.ndarray | None = None
    edge_depth: np.ndarray | None = None
    confidence: np.ndarray | None = None
    prompt_depth_m: np.ndarray | None = None
    prompt_mask: np.ndarray | None = None
    prompt_kind: int | None = None  # see ``SparsePrompt.kind``
    interpolated_inverse_depth: np.ndarray | None = None


def random_generator(purpose: int, *entropy: int) -> np.random.Generator:
    """A generator that depends on its arguments only."""
    return np.random.Generator(np.random.PCG64([purpose, *entropy]))


class SamplePipeline:
    """Sample -> Row.

    Args:
        image_size: (height, width) of every row, or None to keep each image's whole view (see ``crops.whole_view``).
        augmentation: random view and colour, None for the deterministic centred view.
        prompt: sparse prompts, None for none.
        seed: the run's seed.
        long_side, multiple: with ``image_size`` None, the long side in pixels and what both sides are multiples of.
        cut: without augmentation, how a benchmark cuts its images; None for the largest centred box.

    Raises:
        ValueError: a negative seed.
    """

    def __init__(
        self,
        image_size: tuple[int, int] | None,
        augmentation: Augmentation | None,
        prompt: PromptOptions | None,
        seed: int,
        long_side: int = 518,
        multiple: int = 14,
        cut: Cut | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed {seed} must not be negative")
        self.image_size = image_size
        self.cut = cut
        self.augmentation = augmentation
        self.prompt = prompt
        self.seed = seed
        self.long_side = long_side
        self.multiple = multiple
        self._drawer = None if prompt is None else PromptDrawer(prompt)

    def __call__(
        self, sample: Sample, position: int, options: RowOptions, prompt_seed: int | None = None, planes: np.ndarray | None = None
    ) -> Row:
        """The row of ``sample`` at ``position``: random numbers depend on (seed, position) only, or on ``prompt_seed`` if given.

        ``planes``, float32 (3, H, W), is the image's place in a batch: it may be made there (``collate`` sees whether it was).

        Raises:
            ValueError: a damaged image, or no measured depth in any view tried; names the key.
        """
        meta = sample.meta
        size = meta.image_size
        depth = self._z_depth(sample, sample.depth, options)
        rng = random_generator(AUGMENTATION, self.seed, position)
        view, seen = self._choose_view(sample, depth, options.crop, rng)
        if meta.canonical:
            seen = _in_units_of_the_view(seen, view, size)
        sky = np.zeros(seen.shape, bool) if sample.sky is None else sample_nearest(sample.sky, view, size)
        valid = _split_sky(seen, sky)
        if not valid.any():
            raise ValueError(f"{meta.key}: no measured depth in view; check the depth map and the source's depth limits")
        row = Row(
            image=self._colour(sample, view, rng, planes),
            depth=seen,
            valid=valid,
            sky=sky,
            intrinsics=_matrix(None if meta.camera is None else view.camera(meta.camera)),
            camera_known=meta.camera is not None,
            metric=meta.metric,
            depth_is_ray=meta.depth_type == DepthType.RAY and meta.camera is None,
            label_kind=LABEL_KINDS.index(LabelKind(options.loss_kind or meta.label_kind)),
            position=position,
            key=meta.key,
            source=meta.source,
            canonical=meta.canonical,
        )
        if sample.prior is not None:
            row.prior_depth = _finite(sample_depth(self._z_depth(sample, sample.prior, RowOptions()), view, size))
        if sample.depth_edge is not None:
            edge_depth = sample_depth(self._z_depth(sample, sample.depth_edge, options), view, size)
            row.edge_depth = _finite(_in_units_of_the_view(edge_depth, view, size) if meta.canonical else edge_depth)
        # by the sample's own kind, whatever row of the loss table serves it: a phone lidar's confidence is no doubt of a teacher
        if sample.confidence is not None and meta.label_kind == LabelKind.PSEUDO:
            row.confidence = sample_nearest(sample.confidence, view, size)
        if self._drawer is not None:
            rng = random_generator(PROMPT, self.seed, position if prompt_seed is None else prompt_seed)
            self._add_prompt(row, sample, view, rng)
        return row

    def _choose_view(
        self, sample: Sample, depth: np.ndarray, crop: tuple[float, float] | None, rng: np.random.Generator
    ) -> tuple[View, np.ndarray]:
        """The view and the depth map seen in it; ``crop`` stands in for the augmentation's own range."""
        size, options = sample.meta.image_size, self.augmentation
        if options is not None and self.image_size is not None:
            for _ in range(CROP_ATTEMPTS):
                view = random_view(size, self.image_size, crop or options.crop, options.stretch, options.flip, rng)
                seen = sample_depth(depth, view, size)
                if np.isfinite(seen).any():
                    return view, seen
        view = self.fixed_view(size)
        return view, sample_depth(depth, view, size)

    def fixed_view(self, size: tuple[int, int]) -> View:
        """What is seen without augmentation of an image of ``size`` (width, height).

        Raises:
            ImageSmallerThanCut: see ``crops.cut_view``.
        """
        if self.image_size is None:
            return whole_view(size, self.long_side, self.multiple)
        return covering_view(size, self.image_size) if self.cut is None else cut_view(size, self.image_size, self.cut)

    def _z_depth(self, sample: Sample, depth: np.ndarray, options: RowOptions) -> np.ndarray:
        """Z-depth wherever the camera is known, limited to the source's range if metric."""
        meta = sample.meta
        if meta.depth_type == DepthType.RAY and meta.camera is not None:
            depth = ray_to_z(depth, meta.camera, meta.image_size)
        low, high = options.min_depth_m, options.max_depth_m
        if meta.metric and (low is not None or high is not None):
            with np.errstate(invalid="ignore"):
                outside = (depth < (low or 0)) | ((depth > (np.inf if high is None else high)) & np.isfinite(depth))
            depth = np.where(outside, np.float32(np.nan), depth)
        return depth

    def _colour(self, sample: Sample, view: View, rng: np.random.Generator, planes: np.ndarray | None) -> np.ndarray:
        image = read_colour(sample, view)
        jitter = None if self.augmentation is None else self.augmentation.colour
        return to_unit_float(image) if jitter is None else jitter(image, rng, planes)

    def _add_prompt(self, row: Row, sample: Sample, view: View, rng: np.random.Generator) -> None:
        """A prompt is metric z-depth: the sensor's own or points of it where that is asked for and there is one, else drawn from the label;
        empty where it cannot be."""
        assert self._drawer is not None and self.prompt is not None
        options, sensed_m = self.prompt, None
        if sample.prompt is not None and (options.stored or options.points_of_sensor):
            sensed_m = _finite(sample_depth(self._z_depth(sample, sample.prompt, RowOptions()), view, sample.meta.image_size))
        if not row.metric or row.depth_is_ray:
            row.prompt_depth_m, row.prompt_mask, row.prompt_kind = np.zeros_like(row.depth), np.zeros_like(row.valid), -1
        elif options.stored and sensed_m is not None:
            row.prompt_depth_m, row.prompt_mask, row.prompt_kind = sensed_m, sensed_m > 0, PROMPT_KINDS.index("low_resolution")
        else:
            measured_m, measured = (row.depth, row.valid) if sensed_m is None else (sensed_m, sensed_m > 0)
            scene = PromptScene(measured_m, measured, row.image, row.intrinsics)
            row.prompt_depth_m, row.prompt_mask, row.prompt_kind = self._drawer(scene, rng)
        if self.prompt.interpolate:
            row.interpolated_inverse_depth = linear_inverse_depth(row.prompt_depth_m, row.prompt_mask)


def key_seed(key: str) -> int:
    """The number that seeds a sample's prompt in evaluation: the same in every run, whatever stands beside the sample."""
    return hash_key("prompt", key)


def _split_sky(seen: np.ndarray, sky: np.ndarray) -> np.ndarray:
    """Where ``seen`` is measured and not sky. Infinite depth becomes sky, too; both maps are changed, depth to 0 where it is not valid."""
    if COMPILED:
        valid = np.empty(seen.shape, bool)
        split_sky(seen, sky, valid)
        return valid
    sky |= seen == np.inf
    valid = np.isfinite(seen) & ~sky
    np.putmask(seen, ~valid, np.float32(0))
    return valid


def _in_units_of_the_view(canonical_depth: np.ndarray, view: View, image_size: tuple[int, int]) -> np.ndarray:
    """Depth in units of f_px / W of the whole image -> of f_px / W of the view: its box has the same f_px over fewer pixels.

    What the output's size is does not matter: it scales f_px and W alike.
    """
    return canonical_depth * np.float32(view.width / image_size[0])


def _finite(depth: np.ndarray) -> np.ndarray:
    """0 where a map has no finite depth."""
    return np.where(np.isfinite(depth), depth, np.float32(0))


def _matrix(camera: Camera | None) -> np.ndarray:
    """3x3 intrinsics, float32; NaN where the camera is unknown."""
    if camera is None:
        return np.full((3, 3), np.nan, dtype=np.float32)
    return np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], dtype=np.float32)
