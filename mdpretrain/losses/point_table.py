"""The recipe's table of point-map losses: which kind of label gets which terms, with which weights (spec 7: types A, B, C)."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data_shards.schema import LABEL_KINDS
from mdpretrain.losses import point_patches, point_terms
from mdpretrain.losses.point_target import build_point_target
from mdpretrain.losses.table import parse_rows
from mdpretrain.structures import DepthBatch, DepthPrediction, PointMap


@dataclasses.dataclass(frozen=True)
class PointTerm:
    """One term by its name; ``head``: the one of the network whose output it trains; ``options``: what a recipe may set, each a whole
    number above 0."""

    name: str
    head: str
    function: Callable[..., point_terms.Losses]

    @property
    def options(self) -> list[str]:
        """Names of the arguments that have a default."""
        parameters = inspect.signature(self.function).parameters.values()
        return [p.name for p in parameters if p.default is not inspect.Parameter.empty]


_TERMS = (
    PointTerm("global", "points_head", point_terms.global_points),
    PointTerm("local", "points_head", point_patches.local_points),
    PointTerm("edge", "points_head", point_terms.edges),
    PointTerm("normal", "normal_head", point_terms.normals),
    PointTerm("mask", "mask_head", point_terms.mask),
    PointTerm("scale", "scale_head", point_terms.metric_scale),
)
POINT_TERMS = {term.name: term for term in _TERMS}


class PointMapLoss(nn.Module):
    """The weighted sum of point-map terms chosen by each image's label kind; called, noted and logged as ``LossTable`` is.

    ``terms`` maps a label kind ("captured", "reconstructed", "rendered", "pseudo"), "default" or "non_metric" to a list of
    ``{name: term, weight: 1.0, ...options}``, as in ``LossTable``::

        terms:
          rendered: [{name: global}, {name: local, level: 4, patches: 16, resolution: 24}, {name: edge}, {name: mask, weight: 0.1}]
          default: [{name: global}, {name: scale, weight: 0.1}, {name: mask, weight: 0.1}]

    Terms: "global", "local" (options ``level``, ``patches``, ``resolution``), "edge", "normal", "mask", "scale"; ``point_terms.py`` and
    ``point_patches.py`` say what each is. "global" to "normal" do not change when all predicted points are multiplied by one positive
    factor or moved along z. An image whose camera is unknown has no points to compare with: it trains the mask alone, and
    ``camera_fraction`` says how many images have a camera. "scale" serves images with metres.

    Args:
        terms: the table.
        align_resolution: cells a side on which an image's scale and shift are found, for "global", "local" and "scale".
        use_confidence: weigh pseudo-labels by their confidence.

    Attributes:
        image_figures: of the last call, by image, detached ``[B]`` tensors: "loss" (their mean is the scalar) and "valid_fraction".

    Raises:
        ValueError: at construction, on an unknown row, term or option, or an option that is no positive whole number.
    """

    term_weights: Tensor

    def __init__(self, terms: dict[str, list[dict[str, Any]]], align_resolution: int = 48, use_confidence: bool = True) -> None:
        super().__init__()
        if align_resolution < 1:
            raise ValueError(f"align_resolution is {align_resolution}; give a number of cells, such as 48")
        self.align_resolution, self.use_confidence = align_resolution, use_confidence
        self._terms = parse_rows(terms, _checked)
        self.image_figures: dict[str, Tensor] = {}
        self.register_buffer("term_weights", torch.tensor([term.weights for term in self._terms]), persistent=False)

    def check_heads(self, network: nn.Module) -> None:
        """Every head that is to be trained has a term: another would keep its random weights, and DDP waits for its gradients.

        Raises:
            ValueError: one has none; names it and the term.
        """
        trained = {term.record.head for term in self._terms}
        for head in dict.fromkeys(term.head for term in _TERMS):
            module = getattr(network, head, None)
            if module is None or head in trained or not any(parameter.requires_grad for parameter in module.parameters()):
                continue
            names = " or ".join(term.name for term in _TERMS if term.head == head)
            off = "set the network's normals: false" if head == "normal_head" else "freeze the head (optimizer.frozen)"
            raise ValueError(f"no term of the loss trains the network's {head}: add {names} to the loss's terms, or {off}")

    def forward(self, prediction: DepthPrediction, batch: DepthBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss and its parts; the scalar is sum_b sum_terms weight * loss_b / B, in float32.

        Returns:
            The scalar, and detached scalars: each term unweighted, averaged over the images it served (0 if none); ``valid_fraction`` of
            pixels with a label, ``served_fraction`` of images that a term served, ``camera_fraction`` of images whose camera is known,
            and ``focal_log_error``: mean over those of |log(estimated focal length / true one)|.

        Raises:
            ValueError: a prediction without point map, or without normals where a term asks for them.
        """
        point_map = self._point_map(prediction)
        with torch.autocast(prediction.values.device.type, enabled=False):
            target = build_point_target(batch, self.use_confidence)
            alignment = point_terms.global_alignment(point_map, target, self.align_resolution)
            row = torch.where(batch.metric, batch.label_kind, batch.label_kind + len(LABEL_KINDS))
            of_image = point_map.points.new_zeros(len(batch))
            served = torch.zeros_like(batch.metric)
            parts: dict[str, Tensor] = {}
            for index, term in enumerate(self._terms):
                weight = self.term_weights[index][row]
                losses = term.record.function(point_map, target, alignment, **term.options)
                counted = losses.counted & (weight > 0)
                values = torch.where(counted, losses.values, 0.0)
                of_image = of_image + values * weight
                served = served | counted
                parts[term.label] = values.detach().sum() / counted.sum().clamp(min=1)
            self.image_figures = {"loss": of_image.detach(), "valid_fraction": batch.valid.flatten(1).float().mean(dim=1)}
            parts["valid_fraction"] = batch.valid.float().mean()
            parts["served_fraction"] = served.float().mean()
            parts["camera_fraction"] = batch.camera_known.float().mean()
            parts["focal_log_error"] = _focal_log_error(prediction, batch)
        return of_image.sum() / len(batch), parts

    def _point_map(self, prediction: DepthPrediction) -> PointMap:
        if prediction.point_map is None:
            raise ValueError("PointMapLoss is for networks that predict a point map, such as PointMapStudent; for others use LossTable")
        if prediction.point_map.normals is None and any(term.record.name == "normal" for term in self._terms):
            raise ValueError("the loss term 'normal' needs a network with normals: true; set that, or leave the term out")
        point_map = prediction.point_map
        normals = None if point_map.normals is None else point_map.normals.float()
        return PointMap(point_map.points.float(), point_map.mask_logits.float(), point_map.metric_scale.float(), normals)

    def extra_repr(self) -> str:
        """One line per term: its label, options and weight per label kind."""
        kinds = [kind.value for kind in LABEL_KINDS]
        rows = [*kinds, *(f"non_metric {kind}" for kind in kinds)]
        return "\n".join(f"{term.label} {term.options} {dict(zip(rows, term.weights))}" for term in self._terms)


def _checked(name: str, options: dict[str, Any], where: str) -> PointTerm:
    """The term of one recipe line; raises ValueError on an unknown term or option, or a value that is no positive whole number."""
    if name not in POINT_TERMS:
        raise ValueError(f"{where}: unknown point-map term {name!r}; there are {sorted(POINT_TERMS)}")
    term = POINT_TERMS[name]
    for option, value in options.items():
        if option not in term.options:
            raise ValueError(f"{where}: term {name!r} has no argument {option!r}; it takes {term.options} besides name and weight")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{where}: {option} of term {name!r} must be a whole number above 0, got {value!r}")
    return term


def _focal_log_error(prediction: DepthPrediction, batch: DepthBatch) -> Tensor:
    """Mean over images with a camera; 0 where there is none, or no estimate."""
    if prediction.estimated_f_px is None:
        return prediction.values.new_zeros(())
    known = batch.camera_known & prediction.estimated_f_px.isfinite()
    true_f_px = torch.where(known, batch.intrinsics[:, 0, 0], 1.0)
    error = (torch.where(known, prediction.estimated_f_px, 1.0).float() / true_f_px).log().abs()
    return error.sum().detach() / known.sum().clamp(min=1)
