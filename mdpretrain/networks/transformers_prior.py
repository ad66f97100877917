"""Depth models of the transformers library as priors, from a local folder (Depth Pro, Depth Anything V1 / V2, DPT, ZoeDepth).

What ``predicted_depth`` means differs by model, and the name does not say so: Depth Pro's raw output is *canonical inverse
depth* (its post-processing is what inverts it), relative Depth Anything's and DPT's is inverse depth up to scale and shift,
metric Depth Anything's and ZoeDepth's is depth in metres.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import mdpretrain.compat  # noqa: F401  (transformers imports torchvision)
from mdpretrain.networks.priors import MINIMUM_DEPTH_M, FrozenPrior
from mdpretrain.structures import DepthBatch

Meaning = Literal["inverse_depth", "depth"]

_MEANING: dict[str, Meaning] = {"depth_pro": "inverse_depth", "dpt": "inverse_depth", "zoedepth": "depth"}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


class TransformersPrior(FrozenPrior):
    """``AutoModelForDepthEstimation`` read from a local folder, as saved by ``save_pretrained``; nothing is downloaded.

    Args:
        path: the model's folder (config.json and weights; preprocessor_config.json, if there, gives mean, std and size).
        predicted: what the model's ``predicted_depth`` is; null: known for the models named above.
        short_side: resize the image's shorter side to about this many pixels before the model (Depth Pro always reads its own
            square); null: the preprocessor's size (518 for Depth Anything).
        description: the model's config and preprocessing in place of a folder; how a checkpoint that holds the weights
            itself rebuilds this prior.

    Raises:
        ValueError: no such folder, not a depth model, transformers not installed, or a model whose output meaning is not
            known and not given.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        path: str | pathlib.Path | None = None,
        predicted: Meaning | None = None,
        short_side: int | None = None,
        description: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (path is None) == (description is None):
            raise ValueError("TransformersPrior takes the path of a model folder (a description is what checkpoints store in its place)")
        if path is not None:
            self.model = _load(pathlib.Path(path))
            processor = _processor_settings(pathlib.Path(path), self.model.config.model_type)
        else:
            assert description is not None
            self.model = _build(description["config"])
            processor = description["processor"]
        config = self.model.config
        self.processor: dict[str, Any] = processor
        self.predicted: Meaning = predicted or _known_meaning(config, path)
        self.multiple = _input_multiple(config)
        self.fixed_size = config.patch_size * round(1 / min(config.scaled_images_ratios)) if config.model_type == "depth_pro" else None
        self.short_side = short_side or processor["short_side"]
        self.register_buffer("mean", torch.tensor(processor["image_mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor["image_std"]).view(1, 3, 1, 1), persistent=False)
        self.freeze()

    def inverse_depth(self, batch: DepthBatch) -> Tensor:
        height, width = batch.image.shape[-2:]
        image = F.interpolate(batch.image, size=self._input_size(height, width), mode="bilinear", align_corners=False, antialias=True)
        predicted = self.model(pixel_values=(image - self.mean) / self.std).predicted_depth[:, None]
        if self.predicted == "depth":
            predicted = 1.0 / predicted.clamp(min=MINIMUM_DEPTH_M)
        return F.interpolate(predicted, size=(height, width), mode="bilinear", align_corners=False)

    def reload_config(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint that holds this prior's weights needs the model's description, not its folder."""
        description = {"config": json.loads(self.model.config.to_json_string(use_diff=False)), "processor": self.processor}
        return {**recorded, "init_args": {"predicted": self.predicted, "short_side": self.short_side, "description": description}}

    def _input_size(self, height: int, width: int) -> tuple[int, int]:
        if self.fixed_size is not None:
            return self.fixed_size, self.fixed_size
        factor = self.short_side / min(height, width)
        return self._round(height * factor), self._round(width * factor)

    def _round(self, side: float) -> int:
        return max(round(side / self.multiple), 1) * self.multiple


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ValueError("TransformersPrior needs the transformers package: pip install transformers") from error
    return transformers


def _build(config: dict[str, Any]) -> Any:
    """The model a config describes, with random weights that a checkpoint then fills."""
    transformers = _transformers()
    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return transformers.AutoModelForDepthEstimation.from_config(transformers.AutoConfig.for_model(config["model_type"], **settings))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the stored description of a {config.get('model_type')!r} does not build with this transformers: {error}"
        ) from error


def _load(folder: pathlib.Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ValueError(f"prior {folder} is not a transformers model folder: it has no config.json")
    try:
        model = _transformers().AutoModelForDepthEstimation.from_pretrained(str(folder), local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"prior {folder} cannot be loaded as a depth model: {error}") from error
    return model


def _known_meaning(config: Any, folder: object) -> Meaning:
    if config.model_type == "depth_anything":
        return "depth" if config.depth_estimation_type == "metric" else "inverse_depth"
    if config.model_type not in _MEANING:
        raise ValueError(
            f"prior {folder}: whether a {config.model_type!r} predicts depth or inverse depth is not known here; set predicted"
        )
    return _MEANING[config.model_type]


def _processor_settings(folder: pathlib.Path, model_type: str) -> dict[str, Any]:
    """Mean, std and short side: the folder's own preprocessor settings, else the model type's published ones."""
    settings: dict[str, Any] = {
        **(_IMAGENET if model_type == "depth_anything" else _HALF),
        "short_side": 518 if model_type == "depth_anything" else 384,
    }
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


def _input_multiple(config: Any) -> int:
    """Sides the backbone reads whole: its patch size, or 32 where that is unknown."""
    for holder in (config, getattr(config, "backbone_config", None)):
        patch = getattr(holder, "patch_size", None)
        if isinstance(patch, int):
            return patch
    return 32
