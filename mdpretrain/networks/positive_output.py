"""Making a raw map a positive canonical inverse depth C = f_px / (W * depth).

The last layer's bias starts at a constant: C = 0.3, a typical scene (f_px = W at 3.3 m; a 53 degree view), so that the first
steps move depth and not the output's scale. Its weights stay as torch draws them: much smaller ones
starve everything below of gradient, and a network from scratch learns the mean scene first (docs/measurements.md).
"""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

PositiveActivation = Literal["softplus", "exp", "relu"]
INITIAL_CANONICAL_INVERSE_DEPTH = 0.3


def positive(raw: Tensor, activation: PositiveActivation) -> Tensor:
    """softplus (default: linear for near things, never dead), exp (steps are relative), relu (as MetricAnything released)."""
    if activation == "softplus":
        return F.softplus(raw)
    if activation == "exp":
        return raw.clamp(max=10.0).exp()
    return F.relu(raw)


def start_at_typical_depth(last: nn.Module, activation: PositiveActivation, canonical: float = INITIAL_CANONICAL_INVERSE_DEPTH) -> None:
    """Initialise the bias of the last convolution so that ``positive`` starts near ``canonical``.

    Raises:
        ValueError: a start that the activation cannot give: below 0, or 0 but by "relu".
    """
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    if canonical < 0 or (canonical == 0 and activation != "relu"):
        raise ValueError(f"canonical inverse depth cannot start at {canonical} with the activation {activation!r}; 0.3 is a typical scene")
    if activation == "relu":
        nn.init.constant_(last.bias, canonical)
    else:
        nn.init.constant_(last.bias, math.log(math.expm1(canonical)) if activation == "softplus" else math.log(canonical))
