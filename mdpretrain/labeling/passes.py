"""All that a teacher says about a batch: the label as a mean over passes, and the passes that judge it.

Passes are averaged as log depth, a geometric mean. Errors of a teacher are factors (a wrong scale, a wrong focal length), so
they cancel there; and the mean of log depth is that of log inverse depth, so the result does not depend on which of the two the network
speaks, where a mean of inverse depth would lean to the near pass and one of depth to the far. At an occlusion edge on which two passes
disagree by a pixel the mean is on neither surface, as any mean is: the confidence says so, where there are passes to judge it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mdpretrain.geometry.cameras import flip_intrinsics_horizontally
from mdpretrain.geometry.canonical import depth_from_canonical_inverse_where_known
from mdpretrain.labeling.requests import LabelRequest
from mdpretrain.labeling.tiles import LogDepthBlend, crop_batch, tile_layout, tile_window
from mdpretrain.structures import DepthBatch, DepthSpace, SparsePrompt
from mdpretrain.tasks.predictor import Predictor, refuse_relative


@dataclasses.dataclass
class TeacherOutput:
    """Of one batch. Depth is z-depth in metres; of an image whose camera is unknown, where ``space`` is canonical, see ``TeacherPasses``.

    ``label_m`` is NaN where no tile with a prompt saw the pixel. ``others``: the further passes by name. ``sound[b]``: every number the
    network gave is finite and positive. ``space``: the network's own. ``estimated_f_px``: see ``DepthPrediction``.
    """

    label_m: Float[Tensor, "B 1 H W"]
    others: dict[str, Tensor]
    sound: Bool[Tensor, " B"]
    space: DepthSpace
    estimated_f_px: Float[Tensor, " B"] | None

    def tensors(self) -> dict[str, Tensor]:
        """What the writing threads need, first axis the images."""
        maps = {
            "label": self.label_m[:, 0],
            "sound": self.sound,
            **{f"other/{name}": depth_m[:, 0] for name, depth_m in self.others.items()},
        }
        return maps if self.estimated_f_px is None else maps | {"estimated_f_px": self.estimated_f_px}


class TeacherPasses:
    """Runs the passes of a request.

    Canonical inverse depth becomes metres by the known camera. Where it is unknown, by the network's own estimate if the request says
    "estimate" and there is one; otherwise by the focal length W, the image's width, which makes the result 1 / C, the canonical depth.

    Args:
        predictor: the teacher.
        request: which passes.
    """

    def __init__(self, predictor: Predictor, request: LabelRequest) -> None:
        self.predictor = predictor
        self.request = request

    @torch.no_grad()
    def __call__(self, batch: DepthBatch, prompts: Mapping[str, SparsePrompt]) -> TeacherOutput:
        """Every pass over a batch.

        Args:
            batch: on the teacher's device, with the first prompt.
            prompts: the others, by the name of their pass.

        Raises:
            ValueError: a teacher whose output has no metres in it.
        """
        output = self._whole(batch)
        if self.request.mirrors:
            flipped = self._whole(mirrored(batch))
            output.others["flip"] = flipped.label_m.flip(-1)
            output.sound &= flipped.sound
        for name, prompt in prompts.items():
            other = self._whole(dataclasses.replace(batch, prompt=prompt))
            output.others[name] = other.label_m
            output.sound &= other.sound
        output.label_m = log_mean([output.label_m, *(output.others[name] for name in self.request.averaged)])
        return output

    def _whole(self, batch: DepthBatch) -> TeacherOutput:
        """One pass over the image, in tiles if it is larger than one."""
        height, width = batch.image.shape[-2:]
        side = self.request.tile_side
        if side is None or max(height, width) <= side:
            return self._metres(batch, width)
        blend = LogDepthBlend(batch.depth)
        outputs = []
        for tile in tile_layout(height, width, side):
            part = crop_batch(batch, tile)
            outputs.append(self._metres(part, width))
            weight = tile_window(tile.height, tile.width, part.image.device).expand_as(outputs[-1].label_m)
            if self.predictor.needs_prompt and part.prompt is not None:  # a teacher without a point says nothing of metres
                weight = weight * part.prompt.mask.flatten(1).any(1)[:, None, None, None]
            blend.add(tile, outputs[-1].label_m, weight)
        sound = torch.stack([output.sound for output in outputs]).all(0)
        return dataclasses.replace(outputs[0], label_m=blend.depth_m(), sound=sound)

    def _metres(self, batch: DepthBatch, frame_width: int) -> TeacherOutput:
        """One run of the network. ``frame_width`` is the whole image's, of which the batch may be a tile."""
        with torch.autocast(batch.image.device.type, torch.bfloat16, enabled=self.request.precision == "bf16"):
            prediction = self.predictor(batch)
        refuse_relative(prediction, self.predictor)
        depth_m = prediction.values.float()
        estimated = None if prediction.estimated_f_px is None else prediction.estimated_f_px.float()
        sound = (depth_m.isfinite() & (depth_m >= 0)).flatten(1).all(1)
        if prediction.space is DepthSpace.CANONICAL_INVERSE:
            stand_in = torch.full_like(batch.intrinsics[:, 0, 0], float(frame_width))
            if estimated is not None and self.request.unknown_camera == "estimate":
                stand_in = estimated
            f_px = torch.where(batch.camera_known, batch.intrinsics[:, 0, 0], stand_in)
            depth_m, known = depth_from_canonical_inverse_where_known(depth_m, f_px, batch.image.shape[-1])
            sound &= known
        sound &= (depth_m > 0).flatten(1).all(1)
        return TeacherOutput(depth_m, {}, sound, prediction.space, estimated)


def mirrored(batch: DepthBatch) -> DepthBatch:
    """The batch as seen in a mirror: every map, and the camera."""
    flipped = batch.on_maps(lambda maps: maps.flip(-1))
    return dataclasses.replace(flipped, intrinsics=flip_intrinsics_horizontally(batch.intrinsics, batch.image.shape[-1]))


def log_mean(depths_m: list[Tensor]) -> Tensor:
    """The geometric mean of those of the maps that have a value, pixel by pixel; NaN where none has."""
    if len(depths_m) == 1:
        return depths_m[0]
    return torch.stack(depths_m).log().nanmean(0).exp()
