"""MetricAnything's released Student-DepthMap without our code: names and shapes of its checkpoint, and its formula in plain torch.

Written from spec 1.6 and the release's public class (models/student_depthmap): ``released_shapes`` is the layout of
``student_depthmap.pt``, ``canonical_inverse_depth`` what its network computes.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

BUFFERS = ("bias_mask", "periods")  # ends of the names that are no parameters


@dataclasses.dataclass(frozen=True)
class Widths:
    """The release's; the tests' tiny ones change any of them."""

    channels: int = 1280
    heads: int = 20
    blocks: int = 32
    patch: int = 16
    hooked: int = 320
    final: int = 256
    middle: int = 320
    low: int = 640
    decoder: int = 256
    head: int = 32


TINY = Widths(channels=16, heads=2, blocks=27, patch=4, hooked=6, final=5, middle=7, low=9, decoder=8, head=3)


def released_shapes(w: Widths) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int, bias: int | None = None) -> None:
        shapes[f"{name}.weight"] = weight
        if bias is not None:
            shapes[f"{name}.bias"] = (bias,)

    vit, c, hidden = "encoder.patch_encoder", w.channels, 6 * w.channels * 2 // 3
    shapes |= {f"{vit}.cls_token": (1, 1, c), f"{vit}.storage_tokens": (1, 4, c), f"{vit}.mask_token": (1, c)}
    shapes[f"{vit}.rope_embed.periods"] = (c // w.heads // 4,)
    layer(f"{vit}.patch_embed.proj", c, 3, w.patch, w.patch, bias=c)
    for i in range(w.blocks):
        block = f"{vit}.blocks.{i}"
        layer(f"{block}.norm1", c, bias=c)
        layer(f"{block}.attn.qkv", 3 * c, c, bias=3 * c)
        shapes[f"{block}.attn.qkv.bias_mask"] = (3 * c,)
        layer(f"{block}.attn.proj", c, c, bias=c)
        layer(f"{block}.norm2", c, bias=c)
        layer(f"{block}.mlp.w1", hidden, c, bias=hidden)
        layer(f"{block}.mlp.w2", hidden, c, bias=hidden)
        layer(f"{block}.mlp.w3", c, hidden, bias=c)
        shapes |= {f"{block}.ls1.gamma": (c,), f"{block}.ls2.gamma": (c,)}
    layer(f"{vit}.norm", c, bias=c)
    ways = [("upsample_latent0", w.hooked, 1), ("upsample_latent1", w.hooked, 2), ("upsample_latent2", w.hooked, 2)]
    ways += [("upsample_latent3", w.hooked, 2), ("upsample0", w.final, 3), ("upsample1", w.middle, 1), ("upsample2", w.low, 1)]
    for name, width, doublings in ways:
        layer(f"encoder.{name}.0", width, c, 1, 1)
        for i in range(doublings):
            layer(f"encoder.{name}.{i + 1}", width, width, 2, 2)
    layer("encoder.upsample_lowres", c, w.low, 2, 2, bias=w.low)
    layer("encoder.fuse_lowres", w.low, 2 * w.low, 1, 1, bias=w.low)
    d = w.decoder
    for i, width in enumerate([w.final, *[w.hooked] * 4, w.middle, w.low]):
        layer(f"decoder.convs.{i}", d, width, 3, 3)
        for unit in ("resnet1", "resnet2") if i < 6 else ("resnet2",):
            for place in (1, 3):
                layer(f"decoder.fusions.{i}.{unit}.residual.{place}", d, d, 3, 3, bias=d)
        if i in (1, 4, 5, 6):
            layer(f"decoder.fusions.{i}.deconv", d, d, 2, 2)
        layer(f"decoder.fusions.{i}.out_conv", d, d, 1, 1, bias=d)
    layer("head.0", d // 2, d, 3, 3, bias=d // 2)
    layer("head.1", d // 2, d // 2, 2, 2, bias=d // 2)
    layer("head.2", w.head, d // 2, 3, 3, bias=w.head)
    for place in (4, 6, 8, 10):
        layer(f"head.{place}", w.head, w.head, 3, 3, bias=w.head)
    layer("head.12", 1, w.head, 1, 1, bias=1)
    return shapes


def random_release(w: Widths, seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep the size of what passes through, so that no layer is without effect; keys' biases that the mask must hide."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in released_shapes(w).items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        if "deconv" in name or name == "head.1.weight" or ("upsample" in name and not name.endswith(".0.weight")):
            fan_in = shape[0]  # transposed: every result has one input cell
        state[name] = torch.randn(shape, generator=generator) * fan_in**-0.5
        if len(shape) == 1:
            state[name] = state[name] * 0.2 + float(name.endswith(("gamma", "norm1.weight", "norm2.weight", "norm.weight")))
        elif "token" in name:
            state[name] = torch.randn(shape, generator=generator)
        if name.endswith("bias_mask"):
            state[name] = torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(w.channels)
        elif name.endswith("periods"):  # not quite what timm computes: the stored ones are to be used
            exponents = torch.arange(shape[0]) / shape[0]
            state[name] = (1.1 * 100.0**exponents).bfloat16().float()
    state["head.12.bias"] = torch.tensor([0.1])
    return state


def canonical_inverse_depth(state: dict[str, Tensor], w: Widths, image: Tensor) -> Tensor:
    """C [1 1 S S] of a square normalised image [1 3 S S], S = 96 patches, in the state's precision."""
    crop = 24 * w.patch
    half, quarter = (F.interpolate(image, scale_factor=s, mode="bilinear", align_corners=False) for s in (0.5, 0.25))
    full = [
        image[..., y : y + crop, x : x + crop] for y in range(0, 3 * crop + 1, 3 * crop // 4) for x in range(0, 3 * crop + 1, 3 * crop // 4)
    ]
    mid = [half[..., y : y + crop, x : x + crop] for y in range(0, crop + 1, crop // 2) for x in range(0, crop + 1, crop // 2)]
    final, hooked = _vit(state, w, torch.cat([*full, *mid, quarter]))
    maps = [_merged(feature[:25], 5, 3) for feature in hooked]
    finest, middle, low = _merged(final[:25], 5, 3), _merged(final[25:34], 3, 6), final[34:]

    def way(name: str, x: Tensor) -> Tensor:
        x = F.conv2d(x, state[f"encoder.{name}.0.weight"])
        for i in range(1, 4):
            if f"encoder.{name}.{i}.weight" in state:
                x = F.conv_transpose2d(x, state[f"encoder.{name}.{i}.weight"], stride=2)
        return x

    def both(name: str) -> tuple[Tensor, Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    second = F.conv_transpose2d(low, *both("encoder.upsample_lowres"), stride=2)
    coarsest = F.conv2d(torch.cat([way("upsample2", low), second], dim=1), *both("encoder.fuse_lowres"))
    levels = [way("upsample0", finest), *(way(f"upsample_latent{i}", maps[i]) for i in (3, 2, 1, 0)), way("upsample1", middle), coarsest]

    def unit(name: str, x: Tensor) -> Tensor:
        inner = F.conv2d(F.relu(x), *both(f"{name}.residual.1"), padding=1)
        return x + F.conv2d(F.relu(inner), *both(f"{name}.residual.3"), padding=1)

    path: Tensor | None = None
    for i in reversed(range(7)):
        level, fusion = F.conv2d(levels[i], state[f"decoder.convs.{i}.weight"], padding=1), f"decoder.fusions.{i}"
        path = unit(f"{fusion}.resnet2", level if path is None else path + unit(f"{fusion}.resnet1", level))
        if f"{fusion}.deconv.weight" in state:
            path = F.conv_transpose2d(path, state[f"{fusion}.deconv.weight"], stride=2)
        path = F.conv2d(path, *both(f"{fusion}.out_conv"))
    assert path is not None
    x = F.conv_transpose2d(F.conv2d(path, *both("head.0"), padding=1), *both("head.1"), stride=2)
    for place in (2, 4, 6, 8, 10):
        x = F.relu(F.conv2d(x, *both(f"head.{place}"), padding=1))
    return F.relu(F.conv2d(x, *both("head.12")))


def _vit(state: dict[str, Tensor], w: Widths, crops: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Normalised final features of all crops [N C 24 24] and the raw outputs of blocks 7, 13, 19 and 25."""
    vit, c = "encoder.patch_encoder", w.channels
    patches = F.conv2d(crops, state[f"{vit}.patch_embed.proj.weight"], state[f"{vit}.patch_embed.proj.bias"], stride=w.patch)
    rows, columns = patches.shape[-2:]
    prefix = torch.cat([state[f"{vit}.cls_token"], state[f"{vit}.storage_tokens"]], dim=1).expand(len(crops), -1, -1)
    x = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
    places = torch.stack(torch.meshgrid(*[2 * (torch.arange(n) + 0.5) / n - 1 for n in (rows, columns)], indexing="ij"), dim=-1)
    angles = 2 * math.pi * places.to(x.dtype).flatten(0, 1)[:, :, None] / state[f"{vit}.rope_embed.periods"]
    angles = angles.flatten(1).repeat(1, 2)  # [tokens, channels of a head]
    cos = torch.cat([torch.ones(5, angles.shape[1], dtype=x.dtype), angles.cos()])  # prefix tokens have no place
    sin = torch.cat([torch.zeros(5, angles.shape[1], dtype=x.dtype), angles.sin()])

    def rotated(t: Tensor) -> Tensor:
        first, second = t.chunk(2, dim=-1)
        return t * cos + torch.cat([-second, first], dim=-1) * sin

    def norm(name: str, t: Tensor) -> Tensor:
        return F.layer_norm(t, (c,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def linear(name: str, t: Tensor) -> Tensor:
        return t @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    hooked = []
    for i in range(w.blocks):
        block = f"{vit}.blocks.{i}"
        bias = state[f"{block}.attn.qkv.bias"] * state[f"{block}.attn.qkv.bias_mask"]
        qkv = norm(f"{block}.norm1", x) @ state[f"{block}.attn.qkv.weight"].T + bias
        q, k, v = (part.unflatten(-1, (w.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(rotated(q), rotated(k), v)  # softmax(q k / sqrt(channels of a head)) v
        x = x + linear(f"{block}.attn.proj", attended.transpose(1, 2).flatten(2)) * state[f"{block}.ls1.gamma"]
        inner = norm(f"{block}.norm2", x)
        gated = F.silu(linear(f"{block}.mlp.w1", inner)) * linear(f"{block}.mlp.w2", inner)
        x = x + linear(f"{block}.mlp.w3", gated) * state[f"{block}.ls2.gamma"]
        if i in (7, 13, 19, 25):
            hooked.append(x[:, 5:].transpose(1, 2).unflatten(2, (rows, columns)))
    return norm(f"{vit}.norm", x)[:, 5:].transpose(1, 2).unflatten(2, (rows, columns)), hooked


def _merged(crops: Tensor, n: int, trim: int) -> Tensor:
    """n x n overlapping token grids -> one: each crop's own part is laid where it lies in the whole."""
    side = crops.shape[-1]
    step = side - 2 * trim
    whole = torch.full((1, crops.shape[1], side + (n - 1) * step, side + (n - 1) * step), torch.nan, dtype=crops.dtype)
    for index, crop in enumerate(crops):
        y, x = divmod(index, n)
        top, left = trim * (y > 0), trim * (x > 0)
        bottom, right = side - trim * (y < n - 1), side - trim * (x < n - 1)
        whole[0, :, y * step + top : y * step + bottom, x * step + left : x * step + right] = crop[:, top:bottom, left:right]
    return whole
