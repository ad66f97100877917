"""Depth models of the transformers library in a local folder, as ``save_pretrained`` writes it: loading, rebuilding, and their input.

Nothing is downloaded. ``transformers_prior.py`` makes priors of them, ``transformers_depth.py`` networks that predict metres.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

import mdpretrain.compat  # noqa: F401  (transformers imports torchvision)

_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
# model type -> the preprocessing that it was published with, where the folder does not say
_PROCESSORS: dict[str, dict[str, Any]] = {
    "depth_anything": {**_IMAGENET, "short_side": 518},
    "prompt_depth_anything": {**_IMAGENET, "short_side": 756},
}
_OTHERS: dict[str, Any] = {**_HALF, "short_side": 384}


def is_transformers_folder(path: pathlib.Path) -> bool:
    """Whether the path is a folder whose config.json describes a model of transformers.

    Raises:
        ValueError: the file is no JSON.
    """
    file = path / "config.json"
    if not file.is_file():
        return False
    try:
        return "model_type" in json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON ({error})") from error


def load_model(folder: pathlib.Path, what: str) -> Any:
    """The folder's ``AutoModelForDepthEstimation`` in float32; ``what`` is how errors call it.

    Raises:
        ValueError: no such folder, not a depth model, or transformers is not installed.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{what} {folder} is not a transformers model folder: it has no config.json")
    transformers = _transformers(what)
    try:
        return transformers.AutoModelForDepthEstimation.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} {folder} cannot be loaded as a depth model: {error}") from error


def build_model(config: dict[str, Any], what: str) -> Any:
    """The model a config describes, with random weights that a checkpoint then fills; raises like ``load_model``."""
    transformers = _transformers(what)
    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return transformers.AutoModelForDepthEstimation.from_config(transformers.AutoConfig.for_model(config["model_type"], **settings))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the stored description of a {config.get('model_type')!r} does not build with this transformers: {error}"
        ) from error


def describe_model(model: Any, processor: dict[str, Any]) -> dict[str, Any]:
    """What ``build_model`` and ``ModelInput`` need, as JSON values: a checkpoint's stand-in for the folder, whose path it does not name."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    return {"config": {name: value for name, value in config.items() if name != "_name_or_path"}, "processor": processor}


def processor_settings(folder: pathlib.Path, model_type: str) -> dict[str, Any]:
    """Mean, std and short side: the folder's own preprocessor settings, else the model type's published ones."""
    settings: dict[str, Any] = dict(_PROCESSORS.get(model_type, _OTHERS))
    file = folder / "preprocessor_config.json"
    if file.is_file():
        stored = json.loads(file.read_text())
        settings.update({key: stored[key] for key in ("image_mean", "image_std") if stored.get(key)})
        size = stored.get("size")
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            settings["short_side"] = min(size["height"], size["width"])
        elif isinstance(size, dict) and "shortest_edge" in size:
            settings["short_side"] = size["shortest_edge"]
    return settings


class ModelInput(nn.Module):
    """An image in [0, 1] -> the model's ``pixel_values``: resized and normalised. It has no stored state.

    Args:
        config: the model's.
        processor: see ``processor_settings``.
        short_side: of the model's input, rounded to whole patches; null: the processor's. Depth Pro always reads its own square.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: Any, processor: dict[str, Any], short_side: int | None = None) -> None:
        super().__init__()
        self.multiple = _input_multiple(config)
        self.fixed_size = config.patch_size * round(1 / min(config.scaled_images_ratios)) if config.model_type == "depth_pro" else None
        self.short_side: int = short_side or processor["short_side"]
        self.register_buffer("mean", torch.tensor(processor["image_mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor["image_std"]).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
        """Antialiased bilinear, as the processors do it."""
        size = self._size(image.shape[-2], image.shape[-1])
        resized = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        return (resized - self.mean) / self.std

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.fixed_size is not None:
            return self.fixed_size, self.fixed_size
        factor = self.short_side / min(height, width)
        return self._round(height * factor), self._round(width * factor)

    def _round(self, side: float) -> int:
        return max(round(side / self.multiple), 1) * self.multiple


def _transformers(what: str) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"{what} needs the transformers package: pip install transformers") from error
    return transformers


def _input_multiple(config: Any) -> int:
    """Sides the backbone reads whole: its patch size, or 32 where that is unknown."""
    for holder in (config, getattr(config, "backbone_config", None)):
        patch = getattr(holder, "patch_size", None)
        if isinstance(patch, int):
            return patch
    return 32
