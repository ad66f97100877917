"""Networks whose prediction is known in closed form, and what the tests of prediction make of them."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from PIL import Image
from torch import nn
from training_parts import STUDENT_NETWORK, build

from mdpretrain.inference.model import DepthModel
from mdpretrain.inference.video_files import VideoWriter
from mdpretrain.networks.module_config import module_config
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor

CPU = torch.device("cpu")
ESTIMATED_F_OVER_WIDTH = 0.8


class InverseRamp(nn.Module):
    """Canonical inverse depth that grows to the right, linear in the continuous pixel coordinate."""

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        u = (torch.arange(batch.image.shape[-1]) + 0.5) / batch.image.shape[-1]
        return DepthPrediction((0.2 + 0.1 * u).expand_as(batch.depth).contiguous(), DepthSpace.CANONICAL_INVERSE)


class Brightness(nn.Module):
    """Metric depth of 1 to 9 m by the brightness of each pixel; needs no camera."""

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        return DepthPrediction(1 + 8 * batch.image.mean(dim=1, keepdim=True), DepthSpace.METRIC)


class FocalEstimating(nn.Module):
    """Metric depth equal to the focal length over the width, times 10: the batch's where known, else an own estimate; sky on the left."""

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        width = batch.image.shape[-1]
        estimate = torch.full((len(batch),), ESTIMATED_F_OVER_WIDTH * width)
        f_px = torch.where(batch.camera_known, batch.intrinsics[:, 0, 0], estimate)
        mask = torch.ones_like(batch.valid)
        mask[..., : width // 4] = False
        depth = (10 * f_px / width)[:, None, None, None].expand_as(batch.depth).contiguous()
        return DepthPrediction(depth, DepthSpace.METRIC, mask=mask, estimated_f_px=estimate)


class CanonicalEstimating(nn.Module):
    """Canonical inverse depth of 0.1 with an own estimate of the focal length, as Depth Pro has it."""

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        estimate = torch.full((len(batch),), ESTIMATED_F_OVER_WIDTH * batch.image.shape[-1])
        return DepthPrediction(torch.full_like(batch.depth, 0.1), DepthSpace.CANONICAL_INVERSE, estimated_f_px=estimate)


class Overflowing(nn.Module):
    """Nothing but infinities, as half precision may give."""

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        return DepthPrediction(torch.full_like(batch.depth, torch.inf), DepthSpace.METRIC)


class NamedPredictor(Predictor):
    """Of a network that no config rebuilds."""

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return f"fingerprint of {type(self.network).__name__}"


def model_of(network: nn.Module, precision: str = "32", focal_model: DepthModel | None = None) -> DepthModel:
    """A model that holds the network, called by its class."""
    return DepthModel(NamedPredictor(network), type(network).__name__, CPU, precision, focal_model)


def write_student(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """A checkpoint of the tests' tiny student with random weights."""
    network = build(STUDENT_NETWORK, seed)
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network": module_config(network), "state_dict": weights}, path)
    return path


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 RGB, smooth enough that resampling is not all there is to it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save_image(path: pathlib.Path, pixels: np.ndarray, orientation: int | None = None, focal_35mm: int | None = None) -> pathlib.Path:
    """A png or jpg, with EXIF where asked for."""
    exif = Image.Exif()
    exif[0x0112] = orientation or 1  # PIL does not write a block without a tag of its own
    if focal_35mm:
        exif.get_ifd(0x8769)[0xA405] = focal_35mm
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def greys(height: int = 32, width: int = 48, levels: Sequence[int] = (40, 80, 120, 160, 200, 80)) -> list[np.ndarray]:
    """Frames of one grey each."""
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def write_video(path: pathlib.Path, pictures: Sequence[np.ndarray], times: Sequence[int] | None = None) -> pathlib.Path:
    """An mp4 of 30000 / 1001 frames a second; ``times`` in units of 1 / 30000 s."""
    with VideoWriter(path, Fraction(30000, 1001), Fraction(1, 30000)) as writer:
        for picture, time in zip(pictures, times or [1001 * number for number in range(len(pictures))]):
            writer.write(picture, time)
    return path
