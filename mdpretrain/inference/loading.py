"""``mdpretrain.load``, and what it refuses."""

from __future__ import annotations

import pathlib
from typing import Literal

import torch

from mdpretrain.inference.model import HALF_TYPES, DepthModel
from mdpretrain.tasks.predictor import choose_device, load_predictor

Precision = Literal["32", "bf16", "16"]


def load(
    path: str | pathlib.Path,
    device: str = "auto",
    precision: Precision = "32",
    weights: Literal["trained", "ema"] = "trained",
    focal_from: str | pathlib.Path | None = None,
) -> DepthModel:
    """Load a trained network and ask it for metric depth.

    >>> import mdpretrain
    >>> model = mdpretrain.load("runs/student")
    >>> depth = model.predict("photo.jpg", focal_px=100)
    >>> depth.depth_m.shape, str(depth.depth_m.dtype)  # one value a pixel, in metres
    ((96, 128), 'float32')
    >>> depth.f_px, depth.f_px_source
    (100.0, 'focal_px')
    >>> depth.points().shape  # x right, y down, z forward
    (96, 128, 3)
    >>> [file.name for file in depth.save("predictions")]
    ['photo.npy', 'photo_mm.png', 'photo_colour.png', 'photo.ply', 'photo.json']

    A list of images goes through the network in batches and gives a list:

    >>> depths = model.predict(["photo.jpg", "other.jpg"], focal_px=[100, 120])
    >>> [round(one.f_px) for one in depths]
    [100, 120]

    The focal length, in pixels of the image, is what turns the network's canonical depth into metres. It comes from ``focal_px``, else from
    the photograph's EXIF, else from ``focal_from``; a network that estimates it itself (a point-map student) needs none of them. A
    network that needs it and is told nothing refuses.

    Args:
        path: a run folder, a checkpoint file, a pretrained folder (``mdpretrain export``), or a folder of transformers.
        device: "auto" (the first GPU where there is one), "cpu", "cuda", "cuda:1", ...
        precision: "32", or half: "bf16" (CPU, and GPUs that have it) or "16" (GPU).
        weights: "ema" for the average that a run kept with ``ema_decay``.
        focal_from: another network, of those that estimate the focal length, for photographs that do not say theirs.

    Raises:
        ValueError: nothing to load there, or a device or precision that this machine does not have.
    """
    chosen = torch.device(choose_device(device))
    check_precision(precision, chosen)
    estimator = None if focal_from is None else DepthModel(load_predictor(focal_from, chosen), str(focal_from), chosen, precision)
    return DepthModel(load_predictor(path, chosen, weights), str(path), chosen, precision, estimator)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse half precision where torch would fail or only pretend.

    Raises:
        ValueError: see above, naming the flag.
    """
    if precision not in ("32", *HALF_TYPES):
        raise ValueError(f"--precision {precision}: there are 32, bf16 and 16")
    if precision == "16" and device.type != "cuda":
        raise ValueError(f"--precision 16 needs a GPU, and this is {device}; use 32, or bf16")
    if precision == "bf16" and (device.type not in ("cpu", "cuda") or (device.type == "cuda" and not torch.cuda.is_bf16_supported(False))):
        raise ValueError(f"--precision bf16: {device} has no bfloat16; use 16 or 32")
