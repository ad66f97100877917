"""transformers' Depth Pro (decoder and head) as the state of our DPT decoder and head.

Depth Pro projects by 1x1 and doubles one, two or three times by transposed convolutions without bias, linear all; ours projects, resizes by
one transposed convolution and smooths by 3x3. A chain of transposed convolutions of kernel and stride 2 *is* one of kernel and stride
2^n, so the weights are composed, exactly, and the function is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chained(layers: list[Tensor]) -> Tensor:
    """One transposed convolution's weight [C, C_n, 2^n, 2^n] for a chain of them [C_i, C_i+1, 2, 2]."""
    whole = layers[0]
    for layer in layers[1:]:
        side = 2 * whole.shape[-1]
        whole = torch.einsum("cmij,mokl->coikjl", whole, layer).reshape(whole.shape[0], layer.shape[1], side, side)
    return whole


def _reassemble(prefix: str, project: Tensor, resize: Tensor, resize_bias: Tensor | None, smooth: Tensor | None) -> dict[str, Tensor]:
    width = resize.shape[1]
    if smooth is None:  # Depth Pro leaves the 3x3 out where the widths agree already: the 3x3 that changes nothing
        smooth = torch.zeros(width, width, 3, 3)
        smooth[:, :, 1, 1] = torch.eye(width)
    return {
        f"{prefix}.project.weight": project,
        f"{prefix}.project.bias": torch.zeros(len(project)),
        f"{prefix}.resize.weight": resize,
        f"{prefix}.resize.bias": torch.zeros(width) if resize_bias is None else resize_bias,
        f"{prefix}.smooth.weight": smooth,
    }


def _padded(matrix: Tensor, rows: int, columns: int, below: int = 0, right: int = 0) -> Tensor:
    """A matrix [a, b, ...] with zeros around it, at rows ``below`` and columns ``right``."""
    out = torch.zeros(rows, columns, *matrix.shape[2:])
    out[below : below + matrix.shape[0], right : right + matrix.shape[1]] = matrix
    return out


def _coarsest(neck: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both networks' features of the whole image: [low; image] -> two branches -> fused by 1x1, all linear, as project and resize."""
    low, down = neck["feature_upsample.scaled_images.0.layers.0.weight"], neck["feature_upsample.scaled_images.0.layers.1.weight"]
    image, image_bias = neck["feature_upsample.image_block.layers.0.weight"], neck["feature_upsample.image_block.layers.0.bias"]
    fuse, fuse_bias = neck["fuse_image_with_low_res.weight"][:, :, 0, 0], neck["fuse_image_with_low_res.bias"]
    width, hidden, of_image = len(low), low.shape[1], len(image)
    inner = width + of_image
    eye = torch.eye(of_image)[:, :, None, None]
    project = _padded(low, inner, hidden + of_image) + _padded(eye, inner, hidden + of_image, width, hidden)
    branches = torch.cat([_padded(down, width, 2 * width), _padded(image, of_image, 2 * width, 0, width)])
    resize = torch.einsum("imkl,om->iokl", branches, fuse)
    bias = fuse_bias + fuse[:, width:] @ image_bias
    smooth = neck["feature_projection.projections.0.weight"]
    # our resize keeps its width: the outputs that are not used feed nothing
    return _reassemble(
        "decoder.reassemble.LAST",
        project,
        _padded(resize, inner, inner),
        _padded(bias[:, None], inner, 1)[:, 0],
        _padded(smooth, len(smooth), inner),
    )


def depth_pro_to_ours(state: dict[str, Tensor], levels: int) -> dict[str, Tensor]:
    """``decoder.*`` and ``head.*`` of a MetricAnythingStudent in Depth Pro's order, from a DepthProForDepthEstimation's state."""
    neck = {name.removeprefix("depth_pro.neck."): value for name, value in state.items() if name.startswith("depth_pro.neck.")}
    out = {name.replace("LAST", str(levels - 1)): value for name, value in _coarsest(neck).items()}
    hooks = sum(".intermediate." in name and name.endswith("layers.0.weight") for name in neck)
    for level in range(levels - 1):  # fine to coarse; Depth Pro counts from coarse to fine
        theirs = levels - 1 - level
        block = f"intermediate.{theirs - (levels - hooks)}" if level < hooks else f"scaled_images.{theirs}"
        names = [f"feature_upsample.{block}.layers.{i}.weight" for i in range(8)]
        chain = [neck[name] for name in names if name in neck]
        smooth = neck.get(f"feature_projection.projections.{theirs}.weight")
        out |= _reassemble(f"decoder.reassemble.{level}", chain[0], chained(chain[1:]), None, smooth)
    for level in range(levels):
        theirs = "fusion_stage.final" if level == 0 else f"fusion_stage.intermediate.{levels - 1 - level}"
        units = ["refine"] if level == levels - 1 else ["skip_unit", "refine"]  # the coarsest joins nothing
        for unit, layer in zip(units[::-1], ("residual_layer2", "residual_layer1")):
            for ours, name in (("first", "convolution1"), ("second", "convolution2")):
                for part in ("weight", "bias"):
                    out[f"decoder.fusion.{level}.{unit}.{ours}.{part}"] = state[f"{theirs}.{layer}.{name}.{part}"]
        for part in ("weight", "bias"):
            out[f"decoder.fusion.{level}.project.{part}"] = state[f"{theirs}.projection.{part}"]
        if level:
            out[f"decoder.fusion.{level}.upsample.weight"] = state[f"{theirs}.deconv.weight"]
    for ours, theirs in (("reduce", 0), ("upsample", 1), ("output.0", 2), ("output.2", 4)):
        for part in ("weight", "bias"):
            out[f"head.{ours}.{part}"] = state[f"head.layers.{theirs}.{part}"]
    return out
