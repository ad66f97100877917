"""transformers' DINOv2 weights under timm's names."""

from __future__ import annotations

import re

import torch

_RENAMED = {  # transformers' Dinov2Model (5.x, then 4.x) -> timm
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "encoder.layer": "blocks",
    "attention.o_proj": "attn.proj",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_QUERY_KEY_VALUE = re.compile(r"(blocks\.\d+\.)attention\.(?:attention\.)?(q|k|v)(?:_proj|uery|ey|alue)\.(weight|bias)")


def dinov2_to_timm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    joined: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        for theirs, ours in _RENAMED.items():
            key = key.replace(theirs, ours)
        if found := _QUERY_KEY_VALUE.fullmatch(key):
            joined.setdefault(f"{found[1]}attn.qkv.{found[3]}", {})[found[2]] = value
        elif key != "embeddings.mask_token":
            out[key] = value
    return out | {key: torch.cat([parts["q"], parts["k"], parts["v"]]) for key, parts in joined.items()}
