"""Depth models of the transformers library as priors, from a local folder (Depth Pro, Depth Anything V1 / V2, DPT, ZoeDepth).

What ``predicted_depth`` means differs by model, and the name does not say so: Depth Pro's raw output is *canonical inverse
depth* (its post-processing is what inverts it), relative Depth Anything's and DPT's is inverse depth up to scale and shift,
metric Depth Anything's and ZoeDepth's is depth in metres.
"""

from __future__ import annotations

import pathlib
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from mdpretrain.networks.priors import MINIMUM_DEPTH_M, FrozenPrior
from mdpretrain.networks.transformers_models import ModelInput, build_model, describe_model, load_model, processor_settings
from mdpretrain.structures import DepthBatch

Meaning = Literal["inverse_depth", "depth"]

_MEANING: dict[str, Meaning] = {"depth_pro": "inverse_depth", "dpt": "inverse_depth", "zoedepth": "depth"}


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
            self.model = load_model(pathlib.Path(path), "prior")
            processor = processor_settings(pathlib.Path(path), self.model.config.model_type)
        else:
            assert description is not None
            self.model = build_model(description["config"], "prior")
            processor = description["processor"]
        self.processor: dict[str, Any] = processor
        self.predicted: Meaning = predicted or _known_meaning(self.model.config, path)
        self.input = ModelInput(self.model.config, processor, short_side)
        self.freeze()

    def inverse_depth(self, batch: DepthBatch) -> Tensor:
        predicted = self.model(pixel_values=self.input(batch.image)).predicted_depth[:, None]
        if self.predicted == "depth":
            predicted = 1.0 / predicted.clamp(min=MINIMUM_DEPTH_M)
        return F.interpolate(predicted, size=batch.image.shape[-2:], mode="bilinear", align_corners=False)

    def reload_config(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint that holds this prior's weights needs the model's description, not its folder."""
        settings = {"predicted": self.predicted, "short_side": self.input.short_side}
        return {**recorded, "init_args": {**settings, "description": describe_model(self.model, self.processor)}}


def _known_meaning(config: Any, folder: object) -> Meaning:
    if config.model_type == "depth_anything":
        return "depth" if config.depth_estimation_type == "metric" else "inverse_depth"
    if config.model_type not in _MEANING:
        raise ValueError(
            f"prior {folder}: whether a {config.model_type!r} predicts depth or inverse depth is not known here; set predicted"
        )
    return _MEANING[config.model_type]
