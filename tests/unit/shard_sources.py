"""Sources for the tests of ``data-shards build``, importable by its worker processes too."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import ClassVar

from shard_samples import make_sample

from data_shards.cli import main
from data_shards.schema import Sample
from data_shards.sources import registry
from data_shards.sources.base import RejectedSample, SourceItem

ROWS = {"made": "shard_sources:Made", "made_folder": "shard_sources:MadeFolder"}


@dataclasses.dataclass
class Made:
    """``items`` items of two samples each in groups of 4 items; the item numbers in ``bad`` are rejected, in ``broken`` crash."""

    name: ClassVar[str] = "made"

    items_count: int = 20
    bad: str = ""
    broken: str = ""
    corrupt: str = ""
    killer: str = ""
    same_key: bool = False
    delay_s: float = 0.0
    grouped: bool = True

    def items(self) -> list[SourceItem]:
        return [
            SourceItem(f"g{n // 4}/{n:03d}", {"number": n} | ({"group": f"g{n // 4}"} if self.grouped else {}))
            for n in range(self.items_count)
        ]

    def read(self, item: SourceItem) -> list[Sample]:
        time.sleep(self.delay_s)
        number = item.payload["number"]
        if str(number) in self.bad.split(","):
            raise RejectedSample(f"{item.key}.png: no depth")
        if str(number) in self.broken.split(","):
            return [{}["missing"]]
        if str(number) in self.killer.split(","):
            os._exit(9)
        prefix = "g0/000" if self.same_key else item.key
        samples = [make_sample(f"{prefix}/{view}", seed=2 * number + view) for view in range(2)]
        if str(number) in self.corrupt.split(","):
            samples[1].image_bytes = samples[1].image_bytes[:-30]
        return samples


@dataclasses.dataclass
class MadeFolder:
    """One sample per file of a folder; the folder may vanish."""

    name: ClassVar[str] = "made_folder"

    input_path: Path

    def items(self) -> list[SourceItem]:
        return [SourceItem(path.stem, {"file": path.name}) for path in sorted(self.input_path.iterdir())]

    def read(self, item: SourceItem) -> list[Sample]:
        text = (self.input_path / item.payload["file"]).read_text()
        if text == "unmount":
            self.input_path.rename(self.input_path.with_name("gone"))
            raise RejectedSample(f"{item.payload['file']}: unreadable")
        return [make_sample(item.key, seed=int(text))]


if __name__ == "__main__":
    registry.CLASSES.update(ROWS)
    sys.exit(main())
