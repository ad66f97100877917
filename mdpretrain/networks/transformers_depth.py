"""Depth models of the transformers library as networks of this package, so that they label, evaluate and predict like a checkpoint.

| model type               | prediction                                                                                    |
|--------------------------|-----------------------------------------------------------------------------------------------|
| ``depth_pro``            | canonical inverse depth (the raw output), and the focal length, if the model has its field-of-view head |
| ``depth_anything``       | metres where its ``depth_estimation_type`` is "metric", else inverse depth up to scale and shift |
| ``prompt_depth_anything`` | metres, from the image and the prepared map "filled" (as our PromptDA)                       |

Maps are resized to the image bilinearly. Transformers' post-processing does so for Depth Pro; for the others it is bicubic, which rings
at depth edges and can go below zero: at the model's own size both are the same.
"""

from __future__ import annotations

import pathlib
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.full_precision import FullPrecisionConvolution
from mdpretrain.networks.priors import MINIMUM_DEPTH_M
from mdpretrain.networks.prompt_conditioning import prepared_prompt
from mdpretrain.networks.transformers_models import ModelInput, build_model, describe_model, load_model, processor_settings
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace

PROMPT_MAP = "filled"
# A prompt whose farthest depth is nearer than this factor to its nearest has no range to normalise by.
LEAST_RANGE = 1.001
SPACES = {"depth_pro": DepthSpace.CANONICAL_INVERSE, "prompt_depth_anything": DepthSpace.METRIC}


class TransformersDepth(nn.Module):
    """``AutoModelForDepthEstimation`` of a local folder; see the table at the top of this file.

    Args:
        path: the folder (config.json and weights; preprocessor_config.json, if there, gives mean, std and size).
        short_side: of the model's input in pixels; null: the preprocessor's size.
        description: the model's config and preprocessing in place of a folder; how a checkpoint rebuilds this network.

    Raises:
        ValueError: no such folder, not a depth model, transformers not installed, or a model type that is not in the table.
    """

    def __init__(
        self, path: str | pathlib.Path | None = None, short_side: int | None = None, description: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if (path is None) == (description is None):
            raise ValueError("TransformersDepth takes the path of a model folder (a description is what checkpoints store in its place)")
        if path is not None:
            self.model = load_model(pathlib.Path(path), "model")
            self.processor: dict[str, Any] = processor_settings(pathlib.Path(path), self.model.config.model_type)
        else:
            assert description is not None
            self.model = build_model(description["config"], "model")
            self.processor = description["processor"]
        config = self.model.config
        self.space = SPACES.get(config.model_type)
        if config.model_type == "depth_anything":
            self.space = DepthSpace.METRIC if config.depth_estimation_type == "metric" else DepthSpace.AFFINE_INVARIANT
        if self.space is None:
            known = ", ".join(["depth_anything", *SPACES])
            raise ValueError(f"model {path}: what a {config.model_type!r} predicts is not known here; there are {known}")
        if config.model_type == "prompt_depth_anything":
            self.prepared_maps = [PROMPT_MAP]
        self.input = ModelInput(config, self.processor, short_side)
        for head in (self.model.head, getattr(getattr(self.model, "fov_model", None), "head", None)):
            if head is not None:
                _keep_full_precision(head)
        self.eval()

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        """The model's depth at the image's size, in its own space.

        Raises:
            ValueError: a model with a prompt, and a batch without the prepared map.
        """
        pixel_values, width = self.input(batch.image), batch.image.shape[-1]
        assert self.space is not None
        if hasattr(self, "prepared_maps"):
            prompt_m = 1.0 / prepared_prompt(batch, "PromptDepthAnything").named(PROMPT_MAP)
            output = self.model(pixel_values=pixel_values, prompt_depth=_with_range(prompt_m))
        else:
            output = self.model(pixel_values=pixel_values)
        values = F.interpolate(output.predicted_depth[:, None].float(), size=batch.image.shape[-2:], mode="bilinear", align_corners=False)
        if self.space is DepthSpace.METRIC:
            values = values.clamp(min=MINIMUM_DEPTH_M)
        fov_degrees = getattr(output, "field_of_view", None)
        estimated = None if fov_degrees is None else focal_length_px(fov_degrees.float().flatten(), width)
        return DepthPrediction(values, self.space, estimated_f_px=estimated)

    def reload_config(self, recorded: dict[str, Any]) -> dict[str, Any]:
        """What holds this network's weights needs the model's description, not its folder."""
        description = describe_model(self.model, self.processor)
        return {**recorded, "init_args": {"short_side": self.input.short_side, "description": description}}


def focal_length_px(horizontal_fov_degrees: Float[Tensor, " B"], width: int) -> Float[Tensor, " B"]:
    """f_px of a centred pinhole: W / (2 tan(fov / 2))."""
    return 0.5 * width / torch.tan(0.5 * torch.deg2rad(horizontal_fov_degrees))


def _keep_full_precision(head: nn.Module) -> None:
    """Under bf16 a head's last convolution stays in float32, as those of our own networks do; parameters and names are the same."""
    name, last = [(name, module) for name, module in head.named_modules() if isinstance(module, nn.Conv2d)][-1]
    settings = {"kernel_size": last.kernel_size, "stride": last.stride, "padding": last.padding, "bias": last.bias is not None}
    kept = FullPrecisionConvolution(last.in_channels, last.out_channels, **settings, device="meta")  # type: ignore[arg-type]
    kept.weight, kept.bias = last.weight, last.bias
    head.set_submodule(name, kept)


def _with_range(prompt_m: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 H W"]:
    """A flat prompt (a wall, an empty prompt's constant) has range 0, by which the model would divide: one corner pixel is moved back."""
    least = prompt_m.amin(dim=(1, 2, 3)) * LEAST_RANGE
    flat = prompt_m.amax(dim=(1, 2, 3)) < least
    ranged = prompt_m.clone()
    ranged[:, 0, 0, 0] = torch.where(flat, least, prompt_m[:, 0, 0, 0])
    return ranged
