"""What a batch's label says in the space of a prediction, and for which images it says it in absolute units."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.geometry.cameras import ray_to_z
from mdpretrain.structures import DepthBatch, DepthSpace

INVERSE_SPACES = (DepthSpace.CANONICAL_INVERSE, DepthSpace.AFFINE_INVARIANT)


@dataclasses.dataclass
class Target:
    """A label in a prediction's space.

    ``values`` is 0 outside ``valid``. ``absolute[b]``: the numbers are in the space's true unit, so that any loss may be used;
    elsewhere they are known up to one factor. ``usable[b]`` is false for ray depth of an unknown camera, which is no z-depth
    up to any factor; ``valid`` is false there. ``sky_valid`` is ``valid`` with the sky (inverse depth 0), where that was asked for.
    """

    values: Float[Tensor, "B 1 H W"]
    valid: Bool[Tensor, "B 1 H W"]
    sky_valid: Bool[Tensor, "B 1 H W"]
    absolute: Bool[Tensor, " B"]
    usable: Bool[Tensor, " B"]


def z_depth(batch: DepthBatch) -> tuple[Float[Tensor, "B 1 H W"], Bool[Tensor, " B"]]:
    """The batch's depth along the optical axis (1 where not valid), and which images have one.

    Ray depth is divided by the length of its pixel's viewing ray; without a camera it stays as it is.
    """
    known = batch.camera_known[:, None, None]
    intrinsics = torch.where(known, batch.intrinsics.float(), torch.eye(3, device=known.device).expand_as(batch.intrinsics))
    divide = (batch.depth_is_ray & batch.camera_known)[:, None, None, None]
    depth = torch.where(batch.valid, batch.depth.float(), torch.ones_like(batch.depth, dtype=torch.float32))
    return torch.where(divide, ray_to_z(depth, intrinsics), depth), ~batch.depth_is_ray | batch.camera_known


def build_target(batch: DepthBatch, space: DepthSpace, include_sky: bool = False, canonical_labels: bool = False) -> Target:
    """The label of every image in ``space``.

    METRIC and SCALE_INVARIANT: z-depth. CANONICAL_INVERSE: C = f_px / (W * depth_m) (Depth Pro, eq. 1) where the camera is
    known and the depth metric, else 1 / depth, which is C itself of a canonical label (``absolute`` only where ``canonical_labels``
    asks for it) and the same map up to one factor of any other. AFFINE_INVARIANT: 1 / depth.
    ``include_sky`` adds the sky at inverse depth 0 in the two inverse spaces.
    """
    depth, usable = z_depth(batch)
    absolute = batch.metric & usable
    if space in INVERSE_SPACES:
        values = 1.0 / depth
        if space == DepthSpace.CANONICAL_INVERSE:
            absolute = absolute & batch.camera_known
            focal = torch.where(batch.camera_known, batch.intrinsics[:, 0, 0].float(), torch.ones_like(depth[:, 0, 0, 0]))
            factor = torch.where(absolute, focal / depth.shape[-1], torch.ones_like(focal))
            values = values * factor[:, None, None, None]
            if canonical_labels and batch.canonical is not None:
                absolute = absolute | (batch.canonical & usable)
    else:
        values = depth
    valid = batch.valid & usable[:, None, None, None]
    values = torch.where(valid, values, torch.zeros_like(values))
    sky_valid = valid | (batch.sky & usable[:, None, None, None]) if include_sky and space in INVERSE_SPACES else valid
    return Target(values, valid, sky_valid, absolute, usable)


def edge_target(batch: DepthBatch, space: DepthSpace, canonical_labels: bool = False) -> Target:
    """The second depth of every image in ``space``; an image (or a batch) without one has no valid pixel."""
    edge_depth = torch.zeros_like(batch.depth) if batch.edge_depth is None else batch.edge_depth
    edges = dataclasses.replace(batch, depth=edge_depth, valid=edge_depth > 0)
    return build_target(edges, space, canonical_labels=canonical_labels)


def label_weight(batch: DepthBatch, use_confidence: bool) -> Float[Tensor, "B 1 H W"] | None:
    """The confidence that came with the labels: the pipeline passes on pseudo-labels', and 1 for all others. None: nothing is weighed."""
    return batch.confidence.float() if use_confidence and batch.confidence is not None else None
