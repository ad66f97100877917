"""Small encoders and made-up batches for the network tests."""

from __future__ import annotations

import torch

from mdpretrain.networks.module_config import build_module
from mdpretrain.structures import DepthBatch, DepthSpace, PreparedPrompt, SparsePrompt

TINY_ENCODER = {
    "class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder",
    "init_args": {
        "model_name": "vit_tiny_patch16_dinov3_qkvb",
        "layers": [0, 1, 2, 3],
        "model_args": {"embed_dim": 32, "depth": 4, "num_heads": 2},
    },
}
TINY_TEACHER = {
    "class_path": "mdpretrain.networks.metric_anything.MetricAnythingTeacher",
    "init_args": {"encoder": TINY_ENCODER, "features": 16, "head_channels": 8, "detail_channels": 8},
}
TINY_STUDENT = {
    "class_path": "mdpretrain.networks.metric_anything.MetricAnythingStudent",
    "init_args": {"encoder": TINY_ENCODER, "features": 16, "head_channels": 8},
}
TINY_ANY_DEPTH = {
    "class_path": "mdpretrain.networks.any_depth.AnyDepth",
    "init_args": {"encoder": TINY_ENCODER, "width": 16, "stage_widths": [16, 8], "head_widths": [8, 4]},
}
FAMILIES = {
    "any_depth": (TINY_ANY_DEPTH, {}, DepthSpace.AFFINE_INVARIANT),
    "residual": (TINY_TEACHER, {}, DepthSpace.METRIC),
    "residual_with_propagation": (TINY_TEACHER, {"propagation": [2, 1]}, DepthSpace.METRIC),
    "residual_without_detail": (TINY_TEACHER, {"detail_channels": 0}, DepthSpace.METRIC),
    "direct": (TINY_TEACHER, {"output": "direct"}, DepthSpace.CANONICAL_INVERSE),
    "deep_to_deep": (TINY_STUDENT, {}, DepthSpace.CANONICAL_INVERSE),
    "depth_pro_order": (TINY_STUDENT, {"deep_to_deep": False}, DepthSpace.CANONICAL_INVERSE),
}


def built(config: dict, **changes: object) -> torch.nn.Module:
    """The module of a config with some arguments changed, from a fixed seed."""
    torch.manual_seed(0)
    return build_module({**config, "init_args": {**config["init_args"], **changes}})


def made_batch(height: int = 48, width: int = 64, batch: int = 2, maps: tuple[str, ...] = ("global", "local"), seed: int = 0) -> DepthBatch:
    """Random image, depth in 1-5 m, about 5 % of its pixels as prompt, prepared maps that are the depth with noise."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + 4 * torch.rand(batch, 1, height, width, generator=generator)
    mask = torch.rand(batch, 1, height, width, generator=generator) < 0.05
    prompt = SparsePrompt(depth_m=depth * mask, mask=mask)
    noise = 0.2 * torch.randn(batch, len(maps), height, width, generator=generator)
    intrinsics = torch.tensor([[width, 0.0, width / 2], [0.0, width, height / 2], [0.0, 0.0, 1.0]]).repeat(batch, 1, 1)
    yes, no = torch.ones(batch, dtype=torch.bool), torch.zeros(batch, dtype=torch.bool)
    return DepthBatch(
        image=torch.rand(batch, 3, height, width, generator=generator),
        depth=depth,
        valid=torch.ones_like(mask),
        sky=torch.zeros_like(mask),
        intrinsics=intrinsics,
        camera_known=yes,
        metric=yes,
        depth_is_ray=no,
        label_kind=torch.zeros(batch, dtype=torch.long),
        position=torch.arange(batch),
        key=[f"sample{i}" for i in range(batch)],
        source=["made"] * batch,
        prompt=prompt,
        prepared=PreparedPrompt(inverse_depth_maps=(noise.exp() / depth), names=maps, prompt=prompt, usable=yes),
    )
