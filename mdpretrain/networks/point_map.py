"""Student-PointMap: image -> affine-invariant point map, finite-distance mask and metric scale, so also depth and camera (spec 1.5, 7).

MetricAnything's point-map student is MoGe-2 (2507.02546) trained further on the teacher's labels; this is that network.
Legend: ``B`` batch, ``H W`` pixels, ``L`` levels of the neck, coarse to fine.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.geometry.canonical import INVERSE_DEPTH_RANGE
from mdpretrain.geometry.focal_shift import GRID, solve_focal_shift
from mdpretrain.networks.decoders.conv_stack import ConvStack, ScaleHead
from mdpretrain.networks.encoders.timm_encoder import EncodedImage, TimmEncoder
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace, PointMap

_TRAINING_GRID = 32  # of the focal length and the shift in training, where they are only watched
_LOG_RANGE = 15.0  # of a raw z, beyond which exp would leave float32's useful range


class PointMapStudent(nn.Module):
    """One image -> depth in metres through a point map; with or without a known camera.

    The encoder's hooked features are projected and summed into the neck's coarsest level (those of a pyramid each into the level of its
    stride), every level also knows where its pixels lie in the field of view, and light heads read the neck: points, mask and, where
    asked for, normals. The metric scale comes from the class token (the mean feature of an encoder without one).

    A prediction's ``values`` are metres at the image's size: ``metric_scale * (z + z_shift)``, with the z-shift under which the points are
    the view of the batch's camera, or, where that is unknown, of the camera that fits them best. ``estimated_f_px`` is that best camera's
    focal length, of square pixels around the image's centre. Shift and focal length are solved, not learnt, and carry no gradient.

    Args:
        encoder: any TimmEncoder.
        feature_channels: width that the hooked features are projected to.
        widths: channels of the neck's and the heads' levels.
        neck_blocks, head_blocks: residual blocks of each level.
        normals: predict a normal per pixel as well.
        centred: points whose mean log z is 0 in every image. No term of the loss looks at their scale: free, as in a release of MoGe-2,
            it wanders, and the metric scale after it.
        token_range: images are resized (aspect kept) so that the encoder sees at least and at most so many tokens; null: at their own
            size, rounded to whole patches. Not for an encoder that resizes images itself (``input_size``, the crops of several scales).

    Raises:
        ValueError: lists of different lengths or of fewer than two levels, a range that is none or of an encoder with a size of its own, or
            an encoder with finer features than the neck has levels for.
    """

    def __init__(
        self,
        encoder: TimmEncoder,
        feature_channels: int = 1024,
        widths: tuple[int, ...] = (1024, 256, 128, 64, 32),
        neck_blocks: tuple[int, ...] = (0, 2, 2, 2, 0),
        head_blocks: tuple[int, ...] = (0, 1, 1, 1, 0),
        normals: bool = False,
        centred: bool = False,
        token_range: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        levels = len(widths)
        if levels < 2 or len(neck_blocks) != levels or len(head_blocks) != levels:
            raise ValueError(f"widths {list(widths)}, neck_blocks and head_blocks speak of the same levels, of which there are two or more")
        if token_range is not None and not 1 <= token_range[0] <= token_range[1]:
            raise ValueError(f"token_range {list(token_range)}: give the least and the largest number of tokens, such as [1200, 3600]")
        if token_range is not None and encoder.input_size is not None:
            raise ValueError(f"token_range is for an encoder without a size of its own, and this one sees {list(encoder.input_size)}")
        self.levels = [int(math.log2(max(encoder.strides) / stride)) for stride in encoder.strides]  # of each hooked feature
        if max(self.levels) >= levels:
            raise ValueError(f"features of strides {encoder.strides} need {max(self.levels) + 1} levels, and widths has {levels}")
        self.token_range = token_range
        self.centred = centred
        self.encoder = encoder
        self.projections = nn.ModuleList(nn.Conv2d(channels, feature_channels, 1) for channels in encoder.channels)
        inputs = [2 + (feature_channels if level in self.levels else 0) for level in range(levels)]
        self.neck = ConvStack(inputs, list(widths), list(neck_blocks))
        self.points_head, self.mask_head = (ConvStack(list(widths), list(widths), list(head_blocks), channels) for channels in (3, 1))
        self.normal_head = ConvStack(list(widths), list(widths), list(head_blocks), 3) if normals else None
        self.scale_head = ScaleHead(encoder.channels[-1], encoder.channels[-1])

    def forward(self, batch: DepthBatch) -> DepthPrediction:
        """Metric depth, with the point map that it was made from, at the image's size."""
        height, width = batch.image.shape[-2:]
        size = self._encoder_size(height, width) if self.encoder.input_size is None else (height, width)
        image = batch.image if size == (height, width) else F.interpolate(batch.image, size, mode="bilinear", antialias=True)
        encoded = self.encoder.encode(image)
        levels = self.neck(self._inputs(encoded, width / height))
        point_map = PointMap(
            points=remapped(_resized(self.points_head(levels)[0], height, width), self.centred),
            mask_logits=_resized(self.mask_head(levels)[0], height, width),
            metric_scale=self.scale_head(_token(encoded)).clamp(-_LOG_RANGE, _LOG_RANGE).exp(),
            normals=None if self.normal_head is None else F.normalize(_resized(self.normal_head(levels)[0], height, width), dim=1),
        )
        values, estimated_f_px = metric_depth(point_map, batch, _TRAINING_GRID if self.training else GRID)
        return DepthPrediction(values, DepthSpace.METRIC, point_map=point_map, estimated_f_px=estimated_f_px)

    def _encoder_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what the encoder sees: whole patches, as many as the range allows."""
        stride = self.encoder.stride
        zoom = 1.0
        if self.token_range is not None:
            tokens = height * width / stride**2
            zoom = math.sqrt(min(max(tokens, self.token_range[0]), self.token_range[1]) / tokens)
        return tuple(max(1, round(side * zoom / stride)) * stride for side in (height, width))  # type: ignore[return-value]

    def _inputs(self, encoded: EncodedImage, aspect: float) -> list[Tensor]:
        """Of each level: the sum of its projected features, if it has any, and where its pixels lie."""
        coarsest = encoded.features[self.levels.index(min(self.levels))]
        batch, _, rows, columns = coarsest.shape
        inputs = []
        for level in range(len(self.neck.input_blocks)):
            parts = [project(f) for f, project, own in zip(encoded.features, self.projections, self.levels) if own == level]
            field = view_field(rows * 2**level, columns * 2**level, aspect, coarsest.device)
            field = field.to(coarsest.dtype).expand(batch, -1, -1, -1)
            inputs.append(torch.cat([torch.stack(parts).sum(dim=0), field], dim=1) if parts else field)
        return inputs


def view_field(rows: int, columns: int, aspect: float, device: torch.device | str = "cpu") -> Float[Tensor, "2 rows columns"]:
    """(u, v) of every pixel's centre, from the image's centre, in half diagonals of an image of width / height = ``aspect``."""
    half_height = 1 / math.sqrt(1 + aspect**2)
    u = (2 * torch.arange(columns, device=device) + 1 - columns) * (half_height * aspect / columns)
    v = (2 * torch.arange(rows, device=device) + 1 - rows) * (half_height / rows)
    return torch.stack([u.expand(rows, columns), v[:, None].expand(rows, columns)])


def remapped(raw: Float[Tensor, "B 3 H W"], centred: bool = False) -> Float[Tensor, "B 3 H W"]:
    """Points from the head's numbers: z = exp(raw z), (x, y) = raw (x, y) * z, so that z is positive and rays are what is learnt.

    ``centred``: of raw z the image's mean is taken away first.
    """
    log_z = raw[:, 2:]
    if centred:
        log_z = log_z - log_z.mean(dim=(2, 3), keepdim=True)
    z = log_z.clamp(-_LOG_RANGE, _LOG_RANGE).exp()
    return torch.cat([raw[:, :2] * z, z], dim=1)


def metric_depth(point_map: PointMap, batch: DepthBatch, grid: int = GRID) -> tuple[Float[Tensor, "B 1 H W"], Float[Tensor, " B"]]:
    """(depth in metres, focal length in pixels read off the points alone); see ``PointMapStudent``."""
    points, mask = point_map.points.detach(), point_map.mask_logits.detach() > 0
    own = solve_focal_shift(points, mask, grid=grid)
    focal = torch.stack([batch.intrinsics[:, 0, 0], batch.intrinsics[:, 1, 1]], dim=1)
    given = solve_focal_shift(points, mask, torch.where(batch.camera_known[:, None], focal, torch.nan).to(points.dtype), grid)
    shift = torch.where(batch.camera_known, given.z_shift, own.z_shift)
    depth_m = point_map.metric_scale[:, None, None, None] * (point_map.points[:, 2:] + shift[:, None, None, None])
    return depth_m.clamp(1 / INVERSE_DEPTH_RANGE[1], 1 / INVERSE_DEPTH_RANGE[0]), own.f_px


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(values.float(), (height, width), mode="bilinear", align_corners=False)


def _token(encoded: EncodedImage) -> Tensor:
    return encoded.features[-1].mean(dim=(2, 3)) if encoded.class_tokens is None else encoded.class_tokens[-1]
