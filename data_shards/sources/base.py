"""What a raw source must offer to be built into shards: a deterministic list of items, and samples from each item."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Protocol

from data_shards.schema import Sample
from data_shards.sources.record import SourceRecord


class RejectedSample(ValueError):
    """One raw item cannot become a sample; the message is the reason that ``rejects.jsonl`` will carry."""


@dataclasses.dataclass(frozen=True)
class SourceItem:
    """A unit of work: ``key`` is unique in the source; ``payload`` (JSON values only) is all that ``Source.read`` needs."""

    key: str
    payload: dict[str, Any]


class Source(Protocol):
    """A raw data set. Instances are picklable, and ``read`` is a pure function of the item; ``record`` states its facts once."""

    name: ClassVar[str]
    record: ClassVar[SourceRecord]

    def items(self) -> list[SourceItem]:
        """Every item in a fixed order.

        Raises:
            ValueError: the input folder is missing or is not laid out as this source expects, naming the path.
        """
        ...

    def read(self, item: SourceItem) -> list[Sample]:
        """The samples of one item (a rendered scene gives several views).

        Raises:
            RejectedSample: the item is unusable, with the file and the reason.
        """
        ...
