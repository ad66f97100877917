"""Where a model is worse than another: of each pair the images that lost most, with what is needed to draw them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mdpretrain.evaluation.measurements import ProtocolRecord
from mdpretrain.evaluation.panels import ShownSample, shown_sample
from mdpretrain.metrics.depth import MEANS
from mdpretrain.structures import DepthBatch

LISTED, DRAWN = 20, 3  # images per pair: in metrics.json, and with pictures in the report
SMALLEST = 1e-3  # difference of AbsRel from which on an image is worse: a label and its own teacher differ by their codec
ABS_REL = 1 + MEANS.index("relative")  # its place in a row of moments


@dataclasses.dataclass(frozen=True)
class Regression:
    """One image in which ``model`` has a clearly larger AbsRel than ``reference``; ``shown``: its maps, if they are kept."""

    reference: str
    model: str
    protocol: str
    key: str
    source: str
    reference_abs_rel: float
    model_abs_rel: float
    shown: ShownSample | None

    @property
    def loss(self) -> float:
        """By how much the model's AbsRel is larger."""
        return self.model_abs_rel - self.reference_abs_rel

    def record(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "model": self.model,
            "other": self.reference,
            "protocol": self.protocol,
            "key": self.key,
            "source": self.source,
            "model_abs_rel": self.model_abs_rel,
            "other_abs_rel": self.reference_abs_rel,
        }


class RegressionCollector:
    """An image observer of the runner: keeps the ``LISTED`` worst images of every pair and protocol, the first ``DRAWN`` with their maps.

    Args:
        pairs: (reference, model).
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = list(pairs)
        self._kept: dict[tuple[str, str, str], list[Regression]] = {}

    def __call__(
        self, batch: DepthBatch, index: int, record: ProtocolRecord, truth_m: Tensor, counts: Tensor, depths_m: dict[str, Tensor]
    ) -> None:
        """Look at one image under one protocol; see ``runner.ImageObserver``."""
        for reference, model in self.pairs:
            if reference not in depths_m or model not in depths_m:
                continue
            errors = float(record.rows[reference][-1][ABS_REL]), float(record.rows[model][-1][ABS_REL])
            kept = self._kept.setdefault((reference, model, record.protocol.name), [])
            if errors[1] - errors[0] < SMALLEST or (len(kept) == LISTED and errors[1] - errors[0] <= kept[-1].loss):
                continue
            depths = {name: depths_m[name] for name in (reference, model)}
            shown = shown_sample(batch, index, truth_m, depths, counts)
            kept.append(Regression(reference, model, record.protocol.name, batch.key[index], batch.source[index], *errors, shown))
            kept.sort(key=lambda one: (-one.loss, one.key))
            kept[DRAWN:] = [dataclasses.replace(one, shown=None) for one in kept[DRAWN:LISTED]]

    def worst(self) -> list[Regression]:
        """Pair by pair and protocol by protocol, the worst first."""
        return [one for kept in self._kept.values() for one in kept]

    def drawn(self, reference: str, model: str, protocol: str) -> list[Regression]:
        """Those whose maps are kept."""
        return self._kept.get((reference, model, protocol), [])[:DRAWN]
