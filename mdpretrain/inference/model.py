"""A trained network as something that one calls with images."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mdpretrain.inference.batches import NetworkSize, enlarge_depth, enlarge_mask, photograph_batch, usual_long_side
from mdpretrain.inference.depth_map import DepthMap
from mdpretrain.inference.photographs import Photograph, as_photograph, checked_prompt
from mdpretrain.inference.writers import HowPredicted
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor, refuse_relative

ImageLike = str | pathlib.Path | Image.Image | np.ndarray
Focal = float | int | Sequence[float | int | None] | None
Prompt = np.ndarray | Sequence[np.ndarray] | None
LongSide = int | Literal["network"] | None
HALF_TYPES = {"bf16": torch.bfloat16, "16": torch.float16}


class UnknownFocalLength(ValueError):
    """The network needs the camera, and nothing says its focal length."""


class UnsuitableNetwork(ValueError):
    """The network cannot give what is asked for, whatever the image."""


class DepthModel:
    """A network that predicts the depth of images; made by ``mdpretrain.load`` (``inference/loading.py``).

    Args:
        predictor: on ``device``.
        name: what it was loaded from: how messages call it.
        device, precision: where and how it runs.
        focal_model: estimates the focal length of photographs that do not say theirs.
    """

    def __init__(
        self, predictor: Predictor, name: str, device: torch.device, precision: str = "32", focal_model: DepthModel | None = None
    ) -> None:
        self.predictor = predictor
        self.name = name
        self.device = device
        self.precision = precision
        self.focal_model = focal_model
        self._refuses_unknown_cameras = False

    @property
    def needs_prompt(self) -> bool:
        """Whether it predicts from a sparse metric prompt beside the image."""
        return self.predictor.needs_prompt

    @property
    def multiple(self) -> int:
        """What both sides of its images are rounded to: the encoder's stride."""
        return getattr(getattr(self.predictor.network, "encoder", None), "stride", 1)

    @property
    def long_side(self) -> int:
        """The long side in pixels at which it sees images, unless told otherwise (``usual_long_side``)."""
        return usual_long_side(self.predictor.network)

    @overload
    def predict(
        self,
        images: ImageLike,
        focal_px: Focal = ...,
        prompt_m: Prompt = ...,
        long_side: LongSide = ...,
        image_size: tuple[int, int] | None = ...,
        batch_size: int = ...,
    ) -> DepthMap: ...
    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        focal_px: Focal = ...,
        prompt_m: Prompt = ...,
        long_side: LongSide = ...,
        image_size: tuple[int, int] | None = ...,
        batch_size: int = ...,
    ) -> list[DepthMap]: ...
    def predict(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        focal_px: Focal = None,
        prompt_m: Prompt = None,
        long_side: LongSide = "network",
        image_size: tuple[int, int] | None = None,
        batch_size: int = 8,
    ) -> DepthMap | list[DepthMap]:
        """Depth of one image, or of each of a list.

        Args:
            images: a path, a PIL image or a uint8 array (H, W, 3) RGB; or a list of them, of any sizes.
            focal_px: in pixels of the image; one for all, or one for each (None: EXIF, or an estimate).
            prompt_m: of a network that takes a prompt: metres (h, w), any resolution of the same field of view, 0 = not measured.
            long_side: the image's long side as the network sees it, in pixels; "network" for the one it is made for (``long_side``), None
                for the image's own size.
            image_size: (height, width) as the network sees it, instead; the image is squeezed into it.
            batch_size: images of one size that go through the network together.

        Raises:
            ValueError: an image that cannot be read, a focal length or a prompt that is needed and missing, no depth in metres.
        """
        many = isinstance(images, list | tuple)
        items = list(images) if isinstance(images, list | tuple) else [images]
        focals = _each(focal_px, len(items), "focal_px", (numbers.Real,))
        photos = [as_photograph(image, focal, number) for number, (image, focal) in enumerate(zip(items, focals))]
        prompts = None
        if prompt_m is not None:
            given = _each(prompt_m, len(items), "prompt_m", (np.ndarray,))
            prompts = [checked_prompt(prompt, f"prompt_m of {photo.name}") for prompt, photo in zip(given, photos)]
        size = NetworkSize(self.long_side if long_side == "network" else long_side, image_size)
        found: dict[int, DepthMap] = {}
        for group in self.groups(photos, size, batch_size):
            of_group = None if prompts is None else [prompts[index] for index in group]
            found |= dict(zip(group, self.predict_batch([photos[index] for index in group], size, of_group)))
        depths = [found[index] for index in range(len(items))]
        return depths if many else depths[0]

    def groups(self, photos: Sequence[Photograph], size: NetworkSize, batch_size: int) -> list[list[int]]:
        """Indices of photographs that can share a batch, at most ``batch_size`` each.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size}: give a positive number")
        alike: dict[tuple[int, int, bool], list[int]] = {}
        for index, photo in enumerate(photos):
            alike.setdefault(self.kind(photo, size), []).append(index)
        return [same[first : first + batch_size] for same in alike.values() for first in range(0, len(same), batch_size)]

    def kind(self, photo: Photograph, size: NetworkSize) -> tuple[int, int, bool]:
        """What photographs of one batch have in common: (height, width) for the network, and whether the focal length is known."""
        view = size.view(photo.size, self.multiple)
        return view.out_height, view.out_width, photo.f_px is not None

    def predict_batch(
        self, photos: Sequence[Photograph], size: NetworkSize, prompts_m: Sequence[np.ndarray] | None = None
    ) -> list[DepthMap]:
        """Depth of photographs of one ``kind``.

        Raises:
            UnknownFocalLength: the network needs the camera.
            UnsuitableNetwork: a network without metres, or a ``focal_model`` that estimates no focal length.
            ValueError: a missing or superfluous prompt, too little memory, or nothing finite in the prediction.
        """
        self._check_prompts(prompts_m)
        if self.focal_model is not None and any(photo.f_px is None for photo in photos):
            photos = self.focal_model.with_estimates(photos)
        if self._refuses_unknown_cameras:
            self._refuse_unknown(photos)
        batch, prediction = self._forward(photos, size, prompts_m)
        try:
            refuse_relative(prediction, self.predictor)
        except ValueError as error:
            raise UnsuitableNetwork(f"{self.name}: {error}") from error
        photos = _own_estimates(photos, prediction, batch.image.shape[-1], self.name)
        if prediction.space is DepthSpace.CANONICAL_INVERSE and prediction.estimated_f_px is None:
            self._refuses_unknown_cameras = True
            self._refuse_unknown(photos)
        depth_m = self.predictor.metres(prediction, batch)
        seen = surface_mask(prediction)
        how = HowPredicted(self.name, type(self.predictor.network).__name__, _sides(batch.image), self.precision, self.fingerprint)
        return [
            DepthMap(self._own_size(photo, depth_m[index : index + 1], None if seen is None else seen[index : index + 1]), photo, how)
            for index, photo in enumerate(photos)
        ]

    def with_estimates(self, photos: Sequence[Photograph]) -> list[Photograph]:
        """The photographs, those of unknown focal length with this network's estimate.

        Raises:
            UnsuitableNetwork: this network estimates none.
        """
        if self.needs_prompt:
            raise UnsuitableNetwork(f"--focal-from {self.name}: a prompted network cannot estimate it; give a point-map student")
        size, result = NetworkSize(self.long_side), list(photos)
        unknown = [index for index, photo in enumerate(photos) if photo.f_px is None]
        for group in self.groups([photos[index] for index in unknown], size, max(len(unknown), 1)):
            at = [unknown[index] for index in group]
            asked = [photos[index] for index in at]
            batch, prediction = self._forward(asked, size, None)
            if prediction.estimated_f_px is None:
                raise UnsuitableNetwork(
                    f"--focal-from {self.name}: this network does not estimate a focal length; give a point-map student"
                )
            for index, photo in zip(at, _own_estimates(asked, prediction, batch.image.shape[-1], self.name)):
                result[index] = photo
        return result

    def fingerprint(self) -> str:
        """SHA-256 over how the network was built and every weight."""
        return self.predictor.fingerprint

    def _forward(
        self, photos: Sequence[Photograph], size: NetworkSize, prompts_m: Sequence[np.ndarray] | None
    ) -> tuple[DepthBatch, DepthPrediction]:
        views = [size.view(photo.size, self.multiple) for photo in photos]
        batch = photograph_batch(photos, views, prompts_m).to(self.device)
        half = HALF_TYPES.get(self.precision)
        try:
            with contextlib.nullcontext() if half is None else torch.autocast(self.device.type, half):
                prediction = self.predictor(batch)
        except torch.OutOfMemoryError as error:
            height, width = _sides(batch.image)
            raise ValueError(
                f"{photos[0].name}: a batch of {len(photos)} at {width} x {height} does not fit into the memory of {self.device}; "
                "use a smaller --batch-size or --long-side"
            ) from error
        return batch, dataclasses.replace(prediction, values=prediction.values.float())

    def _own_size(self, photo: Photograph, depth_m: Tensor, seen: Tensor | None) -> np.ndarray:
        """float32 (H, W) of one photograph, NaN where the network sees no surface (everywhere, in a picture of the sky)."""
        width, height = photo.size
        depth_m = enlarge_depth(depth_m, height, width)
        there = depth_m.isfinite() & (depth_m > 0)
        if not bool(there.any()):
            half = "" if self.precision == "32" else f"; half precision may overflow in this network, try 32 instead of {self.precision}"
            raise ValueError(f"{photo.name}: not one pixel of the predicted depth is finite and positive{half}")
        if seen is not None:
            there &= enlarge_mask(seen, height, width)
        return torch.where(there, depth_m, torch.nan)[0, 0].cpu().numpy()

    def _check_prompts(self, prompts_m: Sequence[np.ndarray] | None) -> None:
        if self.needs_prompt and prompts_m is None:
            raise ValueError(f"{self.name} is a prompted network; give sparse metric depth with --prompt depth.png (in Python: prompt_m)")
        if not self.needs_prompt and prompts_m is not None:
            raise ValueError(f"{self.name} sees the image alone; leave out --prompt (in Python: prompt_m)")

    def _refuse_unknown(self, photos: Sequence[Photograph]) -> None:
        for photo in photos:
            if photo.f_px is None:
                raise UnknownFocalLength(
                    f"{photo.name}: its EXIF has no focal length, and this network needs one to give metres; give --focal-px (in pixels "
                    "of the image) or --focal-from CHECKPOINT, a point-map student that estimates it (in Python: focal_px, focal_from)"
                )


def surface_mask(prediction: DepthPrediction) -> Tensor | None:
    """bool [B, 1, H, W]: where the network sees a surface (not sky, and its units hold); None: everywhere."""
    if prediction.mask is not None:
        return prediction.mask
    return None if prediction.point_map is None else prediction.point_map.mask_logits > 0


def _own_estimates(photos: Sequence[Photograph], prediction: DepthPrediction, network_width: int, by: str) -> list[Photograph]:
    """Photographs of unknown focal length with the one in the prediction, if there is one, in pixels of the photograph."""
    if prediction.estimated_f_px is None:
        return list(photos)
    estimates = prediction.estimated_f_px.float().tolist()
    return [
        photo.with_estimate(f_px * photo.size[0] / network_width, by) if photo.f_px is None else photo
        for photo, f_px in zip(photos, estimates)
    ]


def _sides(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _each(value: Any, count: int, name: str, single: tuple[type, ...]) -> list[Any]:
    """A value for all, or one for each."""
    if value is None or isinstance(value, single):
        return [value] * count
    values = list(value)
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries for {count} images; give one for all, or one for each")
    return values
