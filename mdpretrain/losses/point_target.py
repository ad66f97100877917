"""What a batch's label says about a point map: points, normals, and how much each pixel counts.

Legend: ``B`` images, ``H W`` pixels. Axes: x right, y down, z forward.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mdpretrain.geometry.cameras import unproject
from mdpretrain.losses.reductions import masked_mean
from mdpretrain.losses.targets import label_weight, z_depth
from mdpretrain.structures import DepthBatch

# Errors are divided by z; a pixel nearer than this fraction of the image's harmonic mean depth does not count more than one there.
NEAREST_OVER_MEAN = 0.1
# A normal is told where the surface is smooth: inverse depth, linear over a plane, is bent by no more than this between neighbours.
FLATNESS = 0.05


@dataclasses.dataclass
class PointTarget:
    """The label of a batch as points, in metres where ``metric[b]``, else in a unit of the image's own.

    ``points``: 1 outside ``valid``. x and y are measured from the ray through the image's *centre*: (u - W/2) / fx * z. For a centred
    camera these are camera axes; for an off-centre crop they are sheared along z, so that a network which sees no camera can tell them
    from the pixel's place, z stays what it is, and the focal length read off them stays right. ``valid`` is false in an image without a
    known camera, which has no points. ``inverse_z``: what errors are multiplied by. ``weight``: confidence of pseudo-labels, or None.
    ``true_points``: in the camera's own axes, in which angles between surfaces are right. ``diagonal_px`` of the image, ``f_px`` the
    geometric mean of fx and fy (1 where unknown).
    """

    points: Float[Tensor, "B 3 H W"]
    true_points: Float[Tensor, "B 3 H W"]
    valid: Bool[Tensor, "B 1 H W"]
    inverse_z: Float[Tensor, "B 1 H W"]
    weight: Float[Tensor, "B 1 H W"] | None
    metric: Bool[Tensor, " B"]
    finite: Bool[Tensor, "B 1 H W"]  # known to be at a finite distance, with or without a camera
    sky: Bool[Tensor, "B 1 H W"]
    f_px: Float[Tensor, " B"]
    position: Int[Tensor, " B"]

    @property
    def diagonal_px(self) -> float:
        """Of the image."""
        height, width = self.points.shape[-2:]
        return float(height**2 + width**2) ** 0.5


def build_point_target(batch: DepthBatch, use_confidence: bool = True) -> PointTarget:
    """The points of every image whose camera is known; see ``PointTarget``."""
    depth, usable = z_depth(batch)
    known = batch.camera_known
    height, width = depth.shape[-2:]
    intrinsics = torch.where(known[:, None, None], batch.intrinsics.float(), torch.eye(3, device=depth.device))
    valid = batch.valid & (usable & known)[:, None, None, None]
    depth = torch.where(valid, depth, 1.0)
    centred = intrinsics.clone()
    centred[:, 0, 2], centred[:, 1, 2] = width / 2, height / 2
    reciprocal = 1.0 / depth
    mean_inverse = masked_mean(reciprocal, valid)[:, None, None, None]
    inverse_z = torch.minimum(reciprocal, mean_inverse / NEAREST_OVER_MEAN)
    return PointTarget(
        points=torch.where(valid, unproject(depth, centred), 1.0),
        true_points=torch.where(valid, unproject(depth, intrinsics), 1.0),
        valid=valid,
        inverse_z=torch.where(valid, inverse_z, 0.0),
        weight=label_weight(batch, use_confidence),
        metric=batch.metric & usable & known,
        finite=batch.valid & ~batch.sky,
        sky=batch.sky,
        f_px=(intrinsics[:, 0, 0] * intrinsics[:, 1, 1]).sqrt(),
        position=batch.position,
    )


def surface_normals(target: PointTarget) -> tuple[Float[Tensor, "B 3 H W"], Bool[Tensor, "B 1 H W"]]:
    """Unit normals towards the camera from the four neighbours' points, in the camera's own axes, and where there are any.

    A pixel has one where it and its four neighbours are measured and no edge passes between them.
    """
    points = F.pad(target.true_points, (1, 1, 1, 1), mode="replicate")
    there = F.pad(target.valid, (1, 1, 1, 1), value=False)
    left, right, up, down = points[..., 1:-1, :-2], points[..., 1:-1, 2:], points[..., :-2, 1:-1], points[..., 2:, 1:-1]
    normal = torch.cross(down - up, right - left, dim=1)  # of a wall head-on: (0, y) x (x, 0) = (0, 0, -xy), towards the camera
    sides = [there[..., 1:-1, :-2], there[..., 1:-1, 2:], there[..., :-2, 1:-1], there[..., 2:, 1:-1]]
    valid = target.valid & sides[0] & sides[1] & sides[2] & sides[3]
    own = 1.0 / target.true_points[:, 2:]
    for one, other in ((left, right), (up, down)):
        bend = 1.0 / one[:, 2:] + 1.0 / other[:, 2:] - 2 * own
        valid = valid & (bend.abs() <= FLATNESS * own)
    length = normal.square().sum(dim=1, keepdim=True).sqrt()
    valid = valid & (length > 0)
    return normal / torch.where(valid, length, 1.0), valid
