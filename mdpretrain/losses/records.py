"""Every loss that a recipe may name, declared once: its function, the spaces in which it means something, its invariance."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mdpretrain.losses import absolute, distance_balanced, gradients, scale_shift
from mdpretrain.structures import DepthSpace

Invariance = Literal["none", "scale", "affine"]
GIVEN_BY_TABLE = ("prediction", "target", "valid", "weight", "reduction")
ABSOLUTE_SPACES = frozenset({DepthSpace.METRIC, DepthSpace.CANONICAL_INVERSE})
SCALE_SPACES = ABSOLUTE_SPACES | {DepthSpace.SCALE_INVARIANT}
ALL_SPACES = frozenset(DepthSpace)


@dataclasses.dataclass(frozen=True)
class LossRecord:
    """One loss. ``invariance`` says which samples it may serve besides metric ones: those known up to a factor ("scale",
    "affine" as well). ``positive_targets``: sky (inverse depth 0) must stay out of it. ``reads_edges``: its target is the sample's second
    depth, and a sample without one gives it nothing. ``differences``: dividing prediction and target by a unit divides the loss by it.
    ``options``: what a recipe may set."""

    name: str
    function: Callable[..., Tensor]
    spaces: frozenset[DepthSpace]
    invariance: Invariance
    positive_targets: bool = False
    reads_edges: bool = False
    differences: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments that a recipe may give, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in GIVEN_BY_TABLE}


_RECORDS = (
    LossRecord("mae", absolute.mae, ABSOLUTE_SPACES, "none", differences=True),
    LossRecord("robust_mae", absolute.robust_mae, ABSOLUTE_SPACES, "none", differences=True),
    LossRecord("log_l1", absolute.log_l1, ABSOLUTE_SPACES, "none", positive_targets=True),
    LossRecord("relative_l1", absolute.relative_l1, frozenset({DepthSpace.METRIC}), "none", positive_targets=True),
    LossRecord(
        "inverse_relative_l1", absolute.inverse_relative_l1, frozenset({DepthSpace.CANONICAL_INVERSE}), "none", positive_targets=True
    ),
    LossRecord("silog", absolute.silog, ABSOLUTE_SPACES, "none", positive_targets=True),
    LossRecord("scale_invariant_log", absolute.scale_invariant_log, SCALE_SPACES, "scale", positive_targets=True),
    LossRecord("distance_balanced", distance_balanced.distance_balanced, frozenset({DepthSpace.CANONICAL_INVERSE}), "none"),
    LossRecord("mage", gradients.mage, ABSOLUTE_SPACES, "none", differences=True),
    LossRecord("male", gradients.male, ABSOLUTE_SPACES, "none", differences=True),
    LossRecord("msge", gradients.msge, ABSOLUTE_SPACES, "none"),
    LossRecord("gradient_matching", gradients.gradient_matching, ABSOLUTE_SPACES, "none", differences=True),
    LossRecord("edge_gradient", gradients.edge_gradient, ABSOLUTE_SPACES, "none", reads_edges=True, differences=True),
    LossRecord("ssi_mae", scale_shift.ssi_mae, ALL_SPACES, "affine"),
    LossRecord("ssi_mage", scale_shift.ssi_mage, ALL_SPACES, "affine"),
    LossRecord("ssi_male", scale_shift.ssi_male, ALL_SPACES, "affine"),
    LossRecord("ssi_msge", scale_shift.ssi_msge, ALL_SPACES, "affine"),
    LossRecord("ssi_gradient_matching", scale_shift.ssi_gradient_matching, ALL_SPACES, "affine"),
)
LOSSES: dict[str, LossRecord] = {record.name: record for record in _RECORDS}


def check_term(name: str, options: dict[str, Any], where: str) -> LossRecord:
    """The record of one recipe line, its options proved on a 1x1 image so that a bad value fails before training.

    Raises:
        ValueError: an unknown loss or option (listing what there is), or an option value that the loss refuses.
    """
    if name not in LOSSES:
        raise ValueError(f"{where}: unknown loss {name!r}; there are {sorted(LOSSES)}")
    record = LOSSES[name]
    if unknown := sorted(set(options) - set(record.options)):
        raise ValueError(
            f"{where}: loss {name!r} has no argument {unknown[0]!r}; it takes {sorted(record.options)} besides name and weight"
        )
    tiny = torch.ones(1, 1, 1, 1)
    try:
        record.function(tiny, tiny, tiny > 0, **options)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: loss {name!r} cannot take {options}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return record
