"""One row of a mixture, as recipes write it under ``data.train``. Which samples it lets through: ``data_shards.selection``.

Here and not beside the loader, so that ``data-shards mix`` and training read a row alike. What an option changes:

* the order: path (its shards), weight, name, max_passes, fraction, licences, figures;
* the sample: min_depth_m, max_depth_m, crop, loss_kind, sidecars;
* when a run gives up: max_bad_fraction, max_bad_in_a_row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from data_shards.schema import LABEL_KINDS


@dataclasses.dataclass(frozen=True)
class MixtureSource:
    """One row of the mixture.

    Args:
        path: a folder of shards with their indexes, as ``data-shards build`` writes it.
        weight: share of the samples drawn from here, relative to the other rows.
        name: how the order, the state and messages call it; the folder's own name unless given. Renaming a source changes its order.
        min_depth_m: nearer pixels count as not measured (metric samples only).
        max_depth_m: farther pixels count as not measured (metric samples only).
        crop: side of the random box for this source's samples, instead of ``augmentation.crop``.
        loss_kind: the row of the loss table that serves these samples, instead of their own label kind: captured, reconstructed,
            rendered or pseudo.
        licences: only samples whose licence matches one of these glob patterns, e.g. ``[CC-BY-4.0, CC0-*]``.
        figures: only samples whose figure in the index lies in the range, bounds included, null for no bound, e.g.
            ``{depth_distribution: [0.2, null]}``. A sample whose figure is null (it has no value for it) is left out.
        fraction: share of the samples that is kept, chosen by a hash of each sample's key: the same ones in every run, those of a smaller
            fraction among those of a larger one. Their number is near ``fraction * N``, not equal to it.
        max_passes: how often each sample is shown at most; afterwards the other rows share this row's part by their weights.
        sidecars: folders of shards of the same names and keys whose members join the samples', e.g. pseudo-labels; samples without a label
            in a folder of labels are left out.
        max_bad_fraction: share of its draws that may be bad, instead of ``faults.max_fraction``.
        max_bad_in_a_row: bad samples in a row that it may have, instead of ``faults.max_consecutive``.

    Raises:
        ValueError: an impossible value, naming row and option.
    """

    path: str
    weight: float = 1.0
    name: str | None = None
    min_depth_m: float | None = None
    max_depth_m: float | None = None
    crop: tuple[float, float] | None = None
    loss_kind: str | None = None
    licences: list[str] | None = None
    figures: dict[str, tuple[float | None, float | None]] | None = None
    max_passes: float | None = None
    fraction: float | None = None
    sidecars: list[str] = dataclasses.field(default_factory=list)
    max_bad_fraction: float | None = None
    max_bad_in_a_row: int | None = None

    def __post_init__(self) -> None:
        where = f"source {self.path}"
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"{where}: weight {self.weight} must be positive; leave the row out to drop a source")
        low, high = self.min_depth_m, self.max_depth_m
        if (low is not None and low < 0) or (high is not None and high <= (low or 0)):
            raise ValueError(f"{where}: min_depth_m {low} and max_depth_m {high} must satisfy 0 <= min < max")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"{where}: crop is {list(self.crop)}; give two fractions with 0 < low <= high <= 1")
        kinds = [kind.value for kind in LABEL_KINDS]
        if self.loss_kind is not None and self.loss_kind not in kinds:
            raise ValueError(f"{where}: loss_kind {self.loss_kind!r} is no row of the loss table; there are {kinds}")
        if self.max_passes is not None and not 0 < self.max_passes < math.inf:
            raise ValueError(f"{where}: max_passes {self.max_passes} must be positive; leave it out for no limit")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"{where}: fraction {self.fraction} must lie in (0, 1]; leave it out for the whole source")
        for name, (least, most) in (self.figures or {}).items():
            if least is not None and most is not None and least > most:
                raise ValueError(f"{where}: figures.{name} is [{least}, {most}]; the first bound must not be above the second")
        if self.max_bad_fraction is not None and not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"{where}: max_bad_fraction {self.max_bad_fraction} must lie in [0, 1]")
        if self.max_bad_in_a_row is not None and self.max_bad_in_a_row < 1:
            raise ValueError(f"{where}: max_bad_in_a_row {self.max_bad_in_a_row} must be at least 1")

    @property
    def called(self) -> str:
        """Its name in the mixture: ``name``, else the last part of the path."""
        if self.name is not None:
            return self.name
        return self.path.rstrip("/").rsplit("/", 1)[-1] if "://" in self.path else Path(self.path).resolve().name

    @property
    def filters(self) -> bool:
        """Whether its options leave samples out; a sidecar of labels may, too."""
        return self.licences is not None or bool(self.figures) or (self.fraction or 1.0) < 1


def scaled(sources: Sequence[MixtureSource], fraction: float) -> list[MixtureSource]:
    """Rows of which only this further share is kept (``data.fraction`` of a recipe); 1 leaves them as they are.

    Raises:
        ValueError: no share in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.fraction is {fraction}; it must lie in (0, 1], 1 for the whole mixture")
    if fraction == 1:
        return list(sources)
    return [dataclasses.replace(source, fraction=fraction * (source.fraction or 1.0)) for source in sources]


def place_of(key: str) -> float:
    """A number in [0, 1) that depends on a sample's key alone, evenly spread: a row keeps the samples below its ``fraction``."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, person=b"fraction").digest()
    return (int.from_bytes(digest, "little") >> 11) / (1 << 53)  # 53 bits: exact in a float


def max_draws(max_passes: float | None, samples: int) -> int | None:
    """A row's ``max_passes`` as a number of draws from ``samples`` samples, at least 1; None for no limit."""
    return None if max_passes is None else max(1, math.floor(max_passes * samples))
