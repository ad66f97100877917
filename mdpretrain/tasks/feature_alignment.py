"""Keeps a student's features near those of a frozen encoder, so that what it was pretrained to know is not forgotten (Depth Anything).

The frozen encoder is a twin of the student's own, with weights from a file. It is no submodule of the task: no optimiser, average,
strategy or checkpoint ever meets it, and a resumed run reads the file again.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.encoders.timm_encoder import TimmEncoder
from mdpretrain.networks.module_config import module_config

OPTIONS_OF_THE_TWIN = ("model_name", "layers", "model_args", "final_norm", "position_resize")


@dataclasses.dataclass(frozen=True)
class FeatureAlignment:
    """What a recipe says about it.

    Args:
        weights: local safetensors / pth file of the frozen encoder, of the same timm model as the student's.
        weight: of the term in the loss.
        margin: cosine similarity from which on a pixel adds nothing: the student is to differ from the encoder where depth asks for it.
    """

    weights: str
    weight: float = 1.0
    margin: float = 0.85

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"feature_alignment.weight {self.weight} must be a positive number; null in place of feature_alignment: none")
        if not -1 < self.margin <= 1:
            raise ValueError(f"feature_alignment.margin {self.margin} is a cosine similarity: it must lie in (-1, 1]")


def alignment_losses(features: Float[Tensor, "B C h w"], frozen: Float[Tensor, "B C h w"], margin: float) -> Float[Tensor, " B"]:
    """Per image: the mean over all pixels of 1 - cos(features, frozen), 0 where the cosine has reached ``margin``.

    Source: Depth Anything (arXiv 2401.10891, section 3.3, margin 0.85). The mean is over all pixels, so that the term fades as pixels
    reach the margin. Computed in float32.
    """
    cosine = F.cosine_similarity(features.float(), frozen.float(), dim=1)
    return torch.where(cosine < margin, 1 - cosine, torch.zeros_like(cosine)).mean(dim=(1, 2))


class FeatureAligner:
    """The frozen twin of a network's encoder, and what that encoder last made of a batch.

    Compared are the last hooked features, normalised, of the last ``B`` inputs of the encoder's backbone: of a plain encoder those are the
    batch's images, of the 35 crops the images as a whole (``MultiScalePatchEncoder``), which one 35th of its arithmetic suffices for.

    Args:
        network: a network with a TimmEncoder ``encoder``.
        options: the recipe's.

    Raises:
        ValueError: another kind of encoder, or one that is not trained; weights that are missing or of another network.
    """

    def __init__(self, network: nn.Module, options: FeatureAlignment) -> None:
        encoder = getattr(network, "encoder", None)
        if not isinstance(encoder, TimmEncoder):
            raise ValueError(f"feature_alignment needs a network whose encoder is a TimmEncoder; {type(network).__name__} has none")
        if not encoder.backbone.training:
            raise ValueError("feature_alignment keeps a trained encoder near a frozen one, and this recipe freezes the student's own")
        own = module_config(encoder)["init_args"]
        with torch.device("cpu"):  # also where the network is built on the meta device: the file is read by every process
            twin = TimmEncoder(**{name: own[name] for name in OPTIONS_OF_THE_TWIN if name in own}, weights=options.weights, frozen=True)
        self.options = options
        self._student: nn.Module = encoder.backbone
        self._twin: nn.Module = twin.backbone
        self._inputs: tuple[Tensor, dict[str, Any]] | None = None
        self._outputs: list[Any] = []
        self._student.register_forward_hook(self._remember, with_kwargs=True)

    @torch.compiler.disable
    def _remember(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: list[Any]) -> None:
        if module.training:  # not in validation, where nobody would ask and the maps would stay in memory
            self._inputs, self._outputs = (args[0], kwargs), outputs

    def losses(self, size: int) -> Float[Tensor, " B"]:
        """``alignment_losses`` of the batch of ``size`` images that the network saw last; it can be asked once."""
        assert self._inputs is not None, "the network was not called in training since"
        (images, kwargs), outputs = self._inputs, self._outputs
        self._inputs, self._outputs = None, []
        like = next(self._student.parameters())
        self._twin.to(device=images.device, dtype=like.dtype)  # moves once
        with torch.no_grad():
            frozen = _last_features(self._twin, self._twin(images[-size:].detach(), **kwargs), kwargs)
        return alignment_losses(_last_features(self._student, outputs, kwargs)[-size:], frozen, self.options.margin)


def _last_features(backbone: Any, outputs: list[Any], kwargs: dict[str, Any]) -> Float[Tensor, "N C h w"]:
    """The last map of a backbone's outputs (with or without prefix tokens), normalised where the call itself asked for raw ones."""
    last = outputs[-1][0] if isinstance(outputs[-1], tuple) else outputs[-1]
    if kwargs.get("norm", True) or not hasattr(backbone, "norm"):
        return last
    return backbone.norm(last.movedim(1, -1)).movedim(-1, 1)
