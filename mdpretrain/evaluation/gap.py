"""The gap between a teacher and its student, or any reference and a model: how far apart they are, and whose the error is.

Per image and pair, on the pixels that count: the two AbsRels to the truth, the model's AbsRel and delta1 with the *reference's* depth as
the truth, and the moments of the signed log errors r = ln(reference / truth) and m = ln(model / truth). From these, per source:

* ``correlation``: Pearson's, of m and r over all pixels, each image counting once;
* ``explained``: mean(r m)^2 / (mean r^2 mean m^2), the share of the model's mean squared log error that the best multiple of the
  reference's error removes. A scale that both have wrong is part of it, which a correlation would not see. 0 says that the model errs on
  its own, 1 that its error is the reference's, enlarged or reduced.

Figures are means over images whatever the protocol's aggregation, with intervals on the resamples that all figures share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.evaluation.measurements import (
    ALL,
    UNANSWERED,
    Figures,
    ProtocolRecord,
    chosen_images,
    figures,
    image_row,
    mean_over_sources,
)
from mdpretrain.evaluation.uncertainty import Resampling, interval
from mdpretrain.metrics.depth import MOMENTS, PixelMoments, compute_metrics, pixel_moments
from mdpretrain.structures import DepthBatch

GAP_FIGURES = ("reference_abs_rel", "model_abs_rel", "gap", "agreement_abs_rel", "agreement_delta1", "correlation", "explained")
ERRORS = 5  # moments of the signed log errors: m_r, m_m, rr, mm, rm
AGREEMENT = len(UNANSWERED)
ROW = AGREEMENT + 2 + ERRORS  # the agreement as a row of ``measurements``, the two AbsRels, the errors


class GapMeter:
    """An image observer of the runner: keeps a row per image and pair, of some 250 bytes."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = list(pairs)
        self._rows: dict[int, dict[tuple[str, str], list[np.ndarray]]] = {}  # by the identity of the record that an image stands in

    def __call__(
        self, batch: DepthBatch, index: int, record: ProtocolRecord, truth_m: Tensor, counts: Tensor, depths_m: dict[str, Tensor]
    ) -> None:
        """Measure one image under one protocol; see ``runner.ImageObserver``."""
        if not self.pairs:
            return
        rows = self._rows.setdefault(id(record), {pair: [] for pair in self.pairs})
        for pair in self.pairs:
            answered = all(name in depths_m for name in pair)
            rows[pair].append(pair_row(depths_m[pair[0]], depths_m[pair[1]], truth_m, counts) if answered else np.full(ROW, np.nan))

    def gaps(self, record: ProtocolRecord, pairs: Sequence[tuple[str, str]], resampling: Resampling) -> list[dict[str, Any]]:
        """The gaps of one protocol's images, of each of these pairs:
        ``{"reference", "model", "protocol", "sources": {"all" and each source: figures}}``.

        The figures are ``GAP_FIGURES``, ``samples`` and ``interval_95``. A pair that answered no image in common is left out.
        """
        kept = self._rows.get(id(record), {})
        found = [self._gap(pair, np.stack(kept[pair]), record, resampling) for pair in pairs if pair in kept]
        return [gap for gap in found if gap is not None]

    def agreement(self, record: ProtocolRecord, reference: str, model: str) -> dict[str, Any] | None:
        """Every metric of the model with the reference's depth as the truth, mean over sources; None if they answered nothing in common."""
        rows = self._rows.get(id(record), {}).get((reference, model))
        if rows is None:
            return None
        table = np.stack(rows)[:, :AGREEMENT]
        found = mean_over_sources([figures(table[chosen_images(record, source, ALL)], [], "image") for source in set(record.sources)])
        return {"samples": found.images, "protocol": record.protocol.name, **found.named()} if found.images else None

    def _gap(self, pair: tuple[str, str], rows: np.ndarray, record: ProtocolRecord, resampling: Resampling) -> dict[str, Any] | None:
        parts = {}
        for source in sorted(set(record.sources)):
            chosen = chosen_images(record, source, ALL)
            part = gap_figures(rows[chosen], resampling.blocks(source, ALL, int(chosen.sum())))
            if part.images:
                parts[source] = part
        if not parts:
            return None
        sources = {ALL: mean_over_sources(list(parts.values())), **parts}
        named = {source: _named(part) for source, part in sources.items()}
        return {"reference": pair[0], "model": pair[1], "protocol": record.protocol.name, "sources": named}


def pair_row(
    reference_m: Float[Tensor, "1 H W"], model_m: Float[Tensor, "1 H W"], truth_m: Float[Tensor, "1 H W"], counts: Bool[Tensor, "1 H W"]
) -> np.ndarray:
    """One image's row: moments of the model against the reference, both AbsRels, and the moments of the signed log errors."""
    reference, model, truth = reference_m[counts].double(), model_m[counts].double(), truth_m[counts].double()
    r, m = (reference / truth).log(), (model / truth).log()
    abs_rels = [((depth - truth).abs() / truth).mean() for depth in (reference, model)]
    errors = torch.stack([*abs_rels, r.mean(), m.mean(), r.square().mean(), m.square().mean(), (r * m).mean()])
    return np.concatenate([image_row(pixel_moments(model, reference)), errors.cpu().numpy()])


def gap_figures(rows: np.ndarray, weights: Iterable[np.ndarray]) -> Figures:
    """``GAP_FIGURES`` of one source's images (rows of ``pair_row``, NaN where either did not answer) and of its resamples."""
    answered = ~np.isnan(rows[:, 0])
    rows = rows[answered]
    blocks = [block[:, answered] for block in weights]
    if not len(rows):
        return Figures(np.full(len(GAP_FIGURES), np.nan), np.full((sum(map(len, blocks)), len(GAP_FIGURES)), np.nan), 0)
    agreement = compute_metrics(PixelMoments.from_rows(rows[:, :MOMENTS]))
    columns = np.column_stack([agreement["abs_rel"], agreement["delta1"], rows[:, AGREEMENT:]])
    whole = _figures(columns, np.ones((1, len(rows))))
    return Figures(whole[0], np.concatenate([whole[:0], *(_figures(columns, block) for block in blocks)]), len(rows), int(len(rows) == 1))


def _figures(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(resamples, figures) of images' columns: agreement AbsRel and delta1, AbsRels, errors."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ columns) / weights.sum(axis=1, keepdims=True)
        near_abs_rel, near_delta1, reference, model, r, m, rr, mm, rm = means.T
        spread = (rr - r * r) * (mm - m * m)
        correlation = np.where(spread > 0, (rm - r * m) / np.sqrt(np.where(spread > 0, spread, 1.0)), np.nan)
        explained = np.where(rr * mm > 0, rm * rm / np.where(rr * mm > 0, rr * mm, 1.0), np.nan)
    return np.stack([reference, model, model - reference, near_abs_rel, near_delta1, correlation, explained], axis=1)


def _named(part: Figures) -> dict[str, Any]:
    known = part.images > part.single
    return {
        "samples": part.images,
        **{name: None if np.isnan(value) else float(value) for name, value in zip(GAP_FIGURES, part.values, strict=True)},
        "interval_95": {name: interval(part.resampled[:, index]) if known else None for index, name in enumerate(GAP_FIGURES)},
    }
