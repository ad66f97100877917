"""The last two resizes of a DPT network and its head, in horizontal stripes: the same numbers in a bounded memory.

Behind the finest fusion block everything is local: a resize by two, a 3x3 convolution, a resize to the image, 3x3 and 1x1. At
2160 x 3840 the widest of these maps take gigabytes (256 channels at half the image, 128 at the whole). A stripe of the image's
rows needs only the rows of each map that its convolutions and resizes read, so no map ever exists as a whole.
For inference: in training the backward pass would keep every stripe's maps anyway.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.networks.decoders.dpt import DPTHead


def striped_head(
    head: DPTHead, decoded: Float[Tensor, "B C h w"], decoded_size: tuple[int, int], size: tuple[int, int], stripe_rows: int
) -> Float[Tensor, "B 1 H W"]:
    """``head(interpolate(decoded, decoded_size), size)``, ``stripe_rows`` rows of the result at a time.

    Args:
        head: with ``align_corners=True``, as published.
        decoded: what the decoder gives with ``resize_last=False``.
        decoded_size: (height, width) that the decoder's last resize would bring it to.
        size: (height, width) of the result.
        stripe_rows: rows of the result that are computed together.
    """
    assert head.align_corners, "stripes are written for resizing by aligned corners"
    wide = head.output[0]
    assert isinstance(wide, nn.Conv2d)
    height = size[0]
    stripes = []
    for first in range(0, height, stripe_rows):
        last = min(first + stripe_rows, height)
        low, high = max(first - 1, 0), min(last + 1, height)  # the rows that the 3x3 convolution of this stripe reads
        x = _reduced_rows(head.reduce, decoded, decoded_size, size, low, high)
        x = _convolve_rows(wide, x, first == 0, last == height)
        stripes.append(head.output[1:](x))  # type: ignore[index]
    return torch.cat(stripes, dim=2)


def _reduced_rows(
    reduce: nn.Conv2d, decoded: Tensor, decoded_size: tuple[int, int], size: tuple[int, int], first: int, last: int
) -> Float[Tensor, "B C rows W"]:
    """Rows ``first`` to ``last`` of ``interpolate(reduce(interpolate(decoded, decoded_size)), size)``."""
    middle = decoded_size[0]
    low, high = _rows_read(first, last, middle, size[0])
    top, bottom = max(low - 1, 0), min(high + 1, middle)
    x = resized_rows(decoded, 0, decoded.shape[-2], decoded_size, top, bottom)
    x = _convolve_rows(reduce, x, low == 0, high == middle)
    return resized_rows(x, low, middle, size, first, last)


def _rows_read(first: int, last: int, height: int, out_height: int) -> tuple[int, int]:
    """Which rows of a map of ``height`` rows the rows ``first`` to ``last`` of its resize to ``out_height`` are made of."""
    scale = (height - 1) / max(out_height - 1, 1)
    # one row more than needed on either side: a position that rounds across a whole number then still finds its rows
    return max(int(first * scale) - 1, 0), min(int((last - 1) * scale) + 3, height)


def resized_rows(
    source: Float[Tensor, "B C r w"], offset: int, height: int, size: tuple[int, int], first: int, last: int
) -> Float[Tensor, "B C rows W"]:
    """Rows ``first`` to ``last`` of a bilinear resize (aligned corners) to ``size``, from some rows of the map.

    Args:
        source: rows ``offset`` to ``offset + r`` of a map of ``height`` rows, all that is read among them.
    """
    position = torch.arange(first, last, device=source.device, dtype=torch.float64) * ((height - 1) / max(size[0] - 1, 1))
    low = position.floor().clamp(max=max(height - 2, 0))
    weight = (position - low).to(torch.float32)[:, None]
    index = low.long() - offset
    upper = source.index_select(2, index)
    lower = source.index_select(2, (index + 1).clamp(max=source.shape[2] - 1))
    rows = torch.lerp(upper.float(), lower.float(), weight.expand(upper.shape[-2:])).to(source.dtype)
    # as many rows as before: along the height this resize is the identity
    return F.interpolate(rows, size=(last - first, size[1]), mode="bilinear", align_corners=True)


def _convolve_rows(convolution: nn.Conv2d, rows: Tensor, at_top: bool, at_bottom: bool) -> Tensor:
    """A 3x3 convolution whose zeros stand above and below the map only: a stripe brings its neighbours' rows itself."""
    padded = F.pad(rows, (0, 0, int(at_top), int(at_bottom)))
    return F.conv2d(padded, convolution.weight, convolution.bias, padding=(0, 1))
