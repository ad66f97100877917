"""Learned spatial propagation of a dense map from its measured pixels (CSPN, arXiv 1808.00150; non-local form: NLSPN, 2007.10042).

An interpolation blurs a depth edge over the whole gap between two prompt points; the image says where in that gap the edge lies. Instead
of naming the depth there, the network says for every pixel *which neighbours it belongs with*, and the values flow along those
affinities from both sides until they meet at the edge:

    h <- (1 - sum_j k_j) h + sum_j k_j shift_j(h),     k_j = a_j / max(1, sum_j |a_j|),     then at the prompt's points  h <- h + g (m - h)

over the eight neighbours at each distance of ``dilations`` (far ones first), ``rounds`` times; ``a`` are the affinities, ``m`` the
measured values, ``g`` in (0, 1) the trust in each measurement at each step (after n steps 1 - (1 - g)^n of it stands: to set a wrong
point aside the network must bring g near zero, and to believe it it need do nothing). Affinities of zero leave the map as it is. Negative
ones sharpen, and could amplify without end: so no step may leave the range of the image's own map and measurements.

Legend: ``B`` batch, ``A`` = 8 per dilation, ``H W`` pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NEIGHBOURS = tuple((down, across) for down in (-1, 0, 1) for across in (-1, 0, 1) if (down, across) != (0, 0))
INITIAL_TRUST = 3.0  # logit of g before anything is learned: 0.95 at each step, so that measured pixels keep their value


class SpatialPropagation(nn.Module):
    """The iteration; it has no parameters. What it needs per pixel (``channels`` raw values, zeros: no propagation) a head predicts.

    Args:
        dilations: distances of the neighbours in pixels of the image, in the order they are used within a round.
        rounds: how often they are gone through.

    Raises:
        ValueError: no dilation, one below 1, or no round.
    """

    def __init__(self, dilations: tuple[int, ...] = (4, 2, 1), rounds: int = 3) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1 or rounds < 1:
            raise ValueError(
                f"propagation dilations {list(dilations)} and rounds {rounds}: give distances in pixels and rounds, all at least 1"
            )
        self.dilations, self.rounds = tuple(dilations), rounds
        self.channels = len(NEIGHBOURS) * len(self.dilations) + 1

    def forward(
        self,
        values: Float[Tensor, "B 1 H W"],
        raw: Float[Tensor, "B R H W"],
        measured: Float[Tensor, "B 1 H W"],
        mask: Float[Tensor, "B 1 H W"],
    ) -> Float[Tensor, "B 1 H W"]:
        """``values`` after the last round, in their own unit.

        Args:
            values: the dense map that the iteration starts from.
            raw: ``channels`` per pixel: eight affinities for each dilation, then the logit of the trust less ``INITIAL_TRUST``.
            measured: the prompt in the unit of ``values``; anything (finite) where ``mask`` is 0.
            mask: 1 at the prompt's points, 0 elsewhere.
        """
        trust = mask * torch.sigmoid(raw[:, -1:] + INITIAL_TRUST)
        known = torch.cat([values, torch.where(mask > 0, measured, values)], dim=1).detach().flatten(1)
        low, high = (bound[:, None, None] for bound in torch.aminmax(known, dim=1))
        # Single planes from here on: the gradient of a slice of many channels is all of those channels, once a step.
        weights = [bounded_affinities(part) for part in raw[:, :-1].split(len(NEIGHBOURS), dim=1)]
        affinities = [(part.unbind(1), 1.0 - part.sum(dim=1)) for part in weights]
        plane, kept, added = values[:, 0], (1.0 - trust)[:, 0], (trust * measured)[:, 0]
        for _ in range(self.rounds):
            for dilation, (neighbours, own) in zip(self.dilations, affinities, strict=True):
                mixed = _step(plane, neighbours, own, dilation)
                plane = torch.addcmul(added, kept, torch.clamp(mixed, low, high))
        return plane[:, None]

    def extra_repr(self) -> str:
        return f"dilations={list(self.dilations)}, rounds={self.rounds}"


def bounded_affinities(raw: Float[Tensor, "B 8 H W"]) -> Float[Tensor, "B 8 H W"]:
    """a_j / max(1, sum |a_j|): the weights of the neighbours sum to at most 1 in absolute value (CSPN eq. 2, without a forced sum of 1)."""
    return raw / raw.abs().sum(dim=1, keepdim=True).clamp_min(1.0)


def _step(plane: Tensor, neighbours: tuple[Tensor, ...], own: Tensor, dilation: int) -> Tensor:
    """One exchange with the eight neighbours at a distance, all [B H W]; beyond the border stands the border's own value."""
    height, width = plane.shape[-2:]
    padded = F.pad(plane[:, None], (dilation,) * 4, mode="replicate")[:, 0]
    result = plane * own
    for weight, (down, across) in zip(neighbours, NEIGHBOURS, strict=True):
        top, left = dilation * (1 + down), dilation * (1 + across)
        result = torch.addcmul(result, weight, padded[:, top : top + height, left : left + width])
    return result
