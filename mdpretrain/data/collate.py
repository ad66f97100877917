"""Rows -> DepthBatch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mdpretrain.data.pipeline import Row
from mdpretrain.structures import DepthBatch, SparsePrompt


def collate(rows: Sequence[Row], image: np.ndarray | None = None) -> DepthBatch:
    """Stack rows of one size; the optional fields appear if any row has them (prior and edge depth 0, confidence 1 in rows without).

    Args:
        image: memory for the batch's images, float32 (B, 3, H, W). A row whose image was made in its place there is not copied.

    Raises:
        ValueError: rows of different sizes, naming two of them.
    """
    _refuse_mixed_sizes(rows)
    height, width = rows[0].depth.shape
    if image is None:
        image = np.empty((len(rows), 3, height, width), dtype=np.float32)
    for planes, row in zip(image, rows, strict=True):
        if not np.may_share_memory(planes, row.image):
            planes[:] = row.image.transpose(2, 0, 1)
    return DepthBatch(
        image=torch.from_numpy(image),
        depth=_maps(rows, lambda row: row.depth),
        valid=_maps(rows, lambda row: row.valid),
        sky=_maps(rows, lambda row: row.sky),
        intrinsics=torch.from_numpy(np.stack([row.intrinsics for row in rows])),
        camera_known=torch.tensor([row.camera_known for row in rows]),
        metric=torch.tensor([row.metric for row in rows]),
        depth_is_ray=torch.tensor([row.depth_is_ray for row in rows]),
        label_kind=torch.tensor([row.label_kind for row in rows], dtype=torch.int64),
        position=torch.tensor([row.position for row in rows], dtype=torch.int64),
        key=[row.key for row in rows],
        source=[row.source for row in rows],
        prompt=_prompt(rows),
        prior_depth=_optional_maps(rows, lambda row: row.prior_depth, 0.0),
        edge_depth=_optional_maps(rows, lambda row: row.edge_depth, 0.0),
        confidence=_optional_maps(rows, lambda row: row.confidence, 1.0),
        canonical=torch.tensor([row.canonical for row in rows]) if any(row.canonical for row in rows) else None,
    )


def _prompt(rows: Sequence[Row]) -> SparsePrompt | None:
    if rows[0].prompt_mask is None:
        return None
    return SparsePrompt(
        depth_m=_maps(rows, lambda row: row.prompt_depth_m),
        mask=_maps(rows, lambda row: row.prompt_mask),
        interpolated_inverse_depth=_optional_maps(rows, lambda row: row.interpolated_inverse_depth, 0.0),
        kind=torch.tensor([-1 if row.prompt_kind is None else row.prompt_kind for row in rows], dtype=torch.int64),
    )


def _maps(rows: Sequence[Row], field: Callable[[Row], np.ndarray | None]) -> Tensor:
    """[B, 1, H, W]"""
    return torch.from_numpy(np.stack([field(row) for row in rows])[:, None])  # type: ignore[misc]


def _optional_maps(rows: Sequence[Row], field: Callable[[Row], np.ndarray | None], missing: float) -> Tensor | None:
    if all(field(row) is None for row in rows):
        return None
    stand_in = np.full(rows[0].depth.shape, missing, dtype=np.float32)
    return _maps(rows, lambda row: stand_in if field(row) is None else field(row))


def _refuse_mixed_sizes(rows: Sequence[Row]) -> None:
    for row in rows:
        if row.depth.shape != rows[0].depth.shape:
            first, other = ("x".join(map(str, reversed(one.depth.shape))) for one in (rows[0], row))
            raise ValueError(f"{rows[0].key} is {first} and {row.key} is {other}: they cannot share a batch; use batch_size 1")
