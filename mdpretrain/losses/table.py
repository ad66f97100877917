"""The recipe's table of losses: which kind of label gets which terms, with which weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data_shards.schema import LABEL_KINDS
from mdpretrain.losses.records import LossRecord, check_term
from mdpretrain.losses.targets import Target, build_target, edge_target, label_weight
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace

DEFAULT_ROW = "default"
NON_METRIC_ROW = "non_metric"
# Least span by which errors are divided, as a fraction of the prompt's largest depth: one point, or a wall, has next to none.
LEAST_PROMPT_RANGE = 0.05


Record = TypeVar("Record")  # what a row's entry names: a LossRecord, or a term of another table


@dataclasses.dataclass
class Term(Generic[Record]):
    """One distinct (loss, options) of the table with its weight per label kind, in the order of ``LABEL_KINDS``, then per kind
    for labels without metres."""

    label: str
    record: Record
    options: dict[str, Any]
    weights: list[float]


class LossTable(nn.Module):
    """The weighted sum of loss terms chosen by each image's label kind, in the space of the prediction.

    ``terms`` maps a label kind ("captured", "reconstructed", "rendered", "pseudo") or "default" (every kind without a row of its
    own) to a list of ``{name: loss, weight: 1.0, ...options of that loss}``::

        terms:
          rendered: [{name: mae}, {name: ssi_mage, weight: 0.5}]
          default: [{name: robust_mae, drop_fraction: 0.2}]
          non_metric: [{name: ssi_mae, drop_fraction: 0.2}]

    The row "non_metric", where there is one, serves every image whose label has no metres, in place of its kind's row; without it
    such an image gets what its kind's row has for it.

    Which samples a term serves follows from its declared invariance (``records.py``): absolute terms need metric labels (and,
    for canonical inverse depth, a known camera); scale- or affine-invariant ones serve every image with z-depth. ``canonical_labels``
    says what a label of an unknown camera (``DepthBatch.canonical``) is to a network that predicts canonical inverse depth: "use": the very
    numbers, served by its kind's row as a metric label is; "ignore": a map up to one factor, as it is to every other network.
    ``include_sky`` trains sky as inverse depth 0 in the terms that allow it; ``use_confidence`` weighs pseudo-labels.
    ``by_prompt_range`` measures errors in the span of each image's prompt in place of metres (at least ``LEAST_PROMPT_RANGE`` of its
    largest depth): the loss on normalised depth with which PromptDA's training begins.

    ``image_figures``: of the last call, by image, detached ``[B]`` tensors: "loss" (their mean is the scalar) and "valid_fraction".

    Raises:
        ValueError: at construction, on an unknown row, loss, argument or a value that a loss refuses, or on a loss that cannot be
            measured by the prompt's range.
    """

    def __init__(
        self,
        terms: dict[str, list[dict[str, Any]]],
        include_sky: bool = False,
        use_confidence: bool = True,
        by_prompt_range: bool = False,
        canonical_labels: Literal["use", "ignore"] = "ignore",
    ) -> None:
        super().__init__()
        self.canonical_labels = canonical_labels
        self.by_prompt_range = by_prompt_range
        self.include_sky = include_sky
        self.use_confidence = use_confidence
        self._terms = parse_rows(terms, check_term)
        if wrong := [term.record.name for term in self._terms if by_prompt_range and not term.record.differences]:
            raise ValueError(f"loss table: by_prompt_range is for losses of differences such as mae, not {wrong[0]!r}")
        self.image_figures: dict[str, Tensor] = {}
        self.term_weights: Tensor
        self.register_buffer("term_weights", torch.tensor([term.weights for term in self._terms]), persistent=False)

    def forward(self, prediction: DepthPrediction, batch: DepthBatch) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss and its parts.

        The scalar is sum_b sum_terms weight * loss_b / B: an image's share depends neither on its neighbours' label kinds nor on
        how a global batch is split over processes; an image that nothing applies to adds 0. Computed in float32.

        Returns:
            The scalar, and detached scalars: each term unweighted, averaged over the images it served (0 if none);
            ``valid_fraction`` of pixels with a label; ``served_fraction`` of images that at least one term served;
            ``absolute_fraction`` of images whose label has absolute units in this space (metric, camera known where needed; or canonical).

        Raises:
            ValueError: a term has no meaning in the prediction's space, or ``by_prompt_range`` none for the network.
        """
        self._check_space(prediction)
        with torch.autocast(prediction.values.device.type, enabled=False):
            values = prediction.values.float()
            unit = self._unit(prediction, batch)
            use_canonical = self.canonical_labels == "use"
            target = build_target(batch, prediction.space, self.include_sky, use_canonical)
            reads_edges = any(term.record.reads_edges for term in self._terms)
            edges = edge_target(batch, prediction.space, use_canonical) if reads_edges else target
            weight = label_weight(batch, self.use_confidence)
            total = values.new_zeros(())
            of_image = values.new_zeros(len(batch))
            parts: dict[str, Tensor] = {}
            has_units = batch.metric if batch.canonical is None else batch.metric | (batch.canonical & target.absolute)
            row = torch.where(has_units, batch.label_kind, batch.label_kind + len(LABEL_KINDS))
            served = torch.zeros_like(target.usable)
            for index, term in enumerate(self._terms):
                image_weight = self.term_weights[index][row]
                own = edges if term.record.reads_edges else target
                valid = self._term_valid(term, own, prediction.mask) & (image_weight > 0)[:, None, None, None]
                losses = term.record.function(values, own.values, valid, weight, reduction="none", **term.options)
                losses = losses if unit is None else losses / unit
                weighted = losses * image_weight
                total = total + weighted.sum() / len(batch)
                of_image = of_image + weighted.detach()
                counted = valid.flatten(1).any(dim=1)
                served = served | counted
                parts[term.label] = losses.detach().sum() / counted.sum().clamp(min=1)
            parts["valid_fraction"] = target.valid.float().mean()
            self.image_figures = {"loss": of_image, "valid_fraction": target.valid.flatten(1).float().mean(dim=1)}
            parts["served_fraction"] = served.float().mean()
            parts["absolute_fraction"] = target.absolute.float().mean()
        return total, parts

    def _unit(self, prediction: DepthPrediction, batch: DepthBatch) -> Float[Tensor, " B"] | None:
        """What an image's errors are divided by; None for nothing."""
        if not self.by_prompt_range:
            return None
        if prediction.prompt_range_m is None or prediction.space is not DepthSpace.METRIC or batch.prompt is None:
            raise ValueError("by_prompt_range needs a network that works on its prompt's range, as PromptDA does; leave it out for others")
        prompt_m = batch.prompt.depth_m.float()
        largest_m = torch.where(batch.prompt.mask & prompt_m.isfinite(), prompt_m, 0.0).amax(dim=(1, 2, 3))
        return torch.maximum(prediction.prompt_range_m.float(), LEAST_PROMPT_RANGE * largest_m)

    def _term_valid(self, term: Term[LossRecord], target: Target, mask: Bool[Tensor, "B 1 H W"] | None) -> Bool[Tensor, "B 1 H W"]:
        """The pixels that one term may read."""
        valid = target.valid if term.record.positive_targets else target.sky_valid
        if term.record.invariance != "none":
            return valid  # whether the prediction's units can be trusted does not matter to a term that has none
        valid = valid & target.absolute[:, None, None, None]
        return valid if mask is None else valid & mask

    def _check_space(self, prediction: DepthPrediction) -> None:
        for term in self._terms:
            if prediction.space not in term.record.spaces:
                allowed = sorted(space.value for space in term.record.spaces)
                raise ValueError(f"loss {term.record.name!r} has no meaning for a {prediction.space.value} prediction; it is for {allowed}")

    def extra_repr(self) -> str:
        """One line per term: its label, options and weight per label kind."""
        kinds = [kind.value for kind in LABEL_KINDS]
        rows = [*kinds, *(f"non_metric {kind}" for kind in kinds)]
        return "\n".join(f"{term.label} {term.options} {dict(zip(rows, term.weights))}" for term in self._terms)


def parse_rows(terms: dict[str, list[dict[str, Any]]], check: Callable[[str, dict[str, Any], str], Record]) -> list[Term[Record]]:
    """Merge the rows into distinct terms, so that a loss that several kinds share is computed once.

    ``check(name, options, where)`` gives the record of one entry. Raises ValueError, naming the row, where a row or an entry is wrong.
    """
    kinds = [kind.value for kind in LABEL_KINDS]
    if unknown := sorted(set(terms) - {*kinds, DEFAULT_ROW, NON_METRIC_ROW}):
        raise ValueError(f"loss table: unknown label kind {unknown[0]!r}; rows are {[*kinds, DEFAULT_ROW, NON_METRIC_ROW]}")
    if not any(terms.values()):
        raise ValueError("loss table: no term at all; give at least a 'default' row such as [{name: mae}]")
    merged: dict[str, Term[Record]] = {}
    rows = [kind if kind in terms else DEFAULT_ROW for kind in kinds]
    rows += [NON_METRIC_ROW if NON_METRIC_ROW in terms else row for row in rows]
    for index, row in enumerate(rows):
        for entry in terms.get(row, []):
            term = _parse_entry(entry, f"loss table, row {row!r}", check)
            identity = term.label + json.dumps(term.options, sort_keys=True)
            merged.setdefault(identity, term).weights[index] += float(entry.get("weight", 1.0))
    return _label(list(merged.values()))


def _parse_entry(entry: dict[str, Any], where: str, check: Callable[[str, dict[str, Any], str], Record]) -> Term[Record]:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError(f"{where}: an entry is {{name: loss, weight: number, ...}}, got {entry!r}")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise ValueError(f"{where}: weight of {entry['name']!r} must be a positive number, got {weight!r}")
    options = {key: value for key, value in entry.items() if key not in ("name", "weight")}
    record = check(entry["name"], options, where)
    return Term(entry["name"], record, options, [0.0] * 2 * len(LABEL_KINDS))


def _label(terms: list[Term[Record]]) -> list[Term[Record]]:
    """Number the labels where one loss stands in the table with several sets of options."""
    seen: dict[str, int] = {}
    for term in terms:
        name = term.label
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            term.label = f"{name}_{seen[name]}"
    return terms
