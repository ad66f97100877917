"""What the indexes of a folder of labels say: every sample's figures, by source, and which of them thresholds keep. No tar is opened."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.index import load_index
from data_shards.progress import progress_bar
from data_shards.shard_table import open_table
from data_shards.storage.address import RemotePath, ShardPath
from data_shards.storage.retry import MissingFileError
from data_shards.storage.storage import default_storage
from mdpretrain.labeling.quality import FIGURES

Bounds = tuple[float | None, float | None]
DATASET_FILE, REJECTS_FILE = "dataset.json", "rejects.jsonl"


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The labels of a folder: one row for each labelled sample.

    ``place`` is int64 (samples, 2): number of its shard, position in it. ``columns``: figure -> float64 (samples,), NaN for none.
    ``unlabelled``: source -> how many of its samples have a stand-in here. ``record`` is the folder's dataset.json; ``rejects`` its list.
    """

    folder: ShardPath
    shards: list[ShardPath]
    keys: list[str]
    source: np.ndarray
    place: np.ndarray
    columns: dict[str, np.ndarray]
    unlabelled: dict[str, int]
    record: dict[str, Any]
    rejects: list[dict[str, str]]

    @property
    def sources(self) -> list[str]:
        """In order of name, those without a label included."""
        return sorted({*self.source.tolist(), *self.unlabelled})

    def rows_of(self, source: str) -> np.ndarray:
        """int64 numbers of a source's rows, ascending."""
        return np.flatnonzero(self.source == source)

    def kept(self, thresholds: Mapping[str, Bounds]) -> np.ndarray:
        """bool (samples,): which a mixture's row with these ``figures`` draws. Bounds included; without a value a sample is left out."""
        kept = np.ones(len(self.keys), bool)
        for name, (low, high) in thresholds.items():
            values = self.columns[name]
            kept &= ~np.isnan(values)
            kept &= values >= (-math.inf if low is None else low)
            kept &= values <= (math.inf if high is None else high)
        return kept


def read_label_table(folder: ShardPath, quiet: bool = False) -> LabelTable:
    """Read every index of a folder that ``mdpretrain label`` wrote, whole or in work.

    Raises:
        ValueError: a shard or index is missing or damaged, or no sample has figures; names the folder.
        OSError: the store cannot be reached.
    """
    shards = [path for path, _ in open_table(folder)]
    keys: list[str] = []
    sources: list[str] = []
    places: list[tuple[int, int]] = []
    figures: list[dict[str, float | None]] = []
    unlabelled: collections.Counter[str] = collections.Counter()
    with progress_bar(len(shards), "shard", "figures", quiet) as bar:
        for number, path in enumerate(shards):
            for position, entry in enumerate(load_index(path).entries):
                if entry.is_stand_in:
                    unlabelled[entry.source] += 1
                    continue
                keys.append(entry.key)
                sources.append(entry.source)
                places.append((number, position))
                figures.append(entry.figures or {})
            bar.update()
    names = {name for own in figures for name in own}
    if not names:
        raise ValueError(f"{folder}: its indexes hold no figures of labels; give a folder that `mdpretrain label` wrote")
    ordered = [name for name in FIGURES if name in names] + sorted(names - FIGURES.keys())
    columns = {name: np.array([_number(own.get(name)) for own in figures]) for name in ordered}
    record = json.loads(_read_file(folder, DATASET_FILE) or "{}")
    rejects = [json.loads(line) for line in _read_file(folder, REJECTS_FILE).splitlines()]
    place = np.array(places, dtype=np.int64).reshape(-1, 2)
    return LabelTable(folder, shards, keys, np.array(sources, dtype=object), place, columns, dict(unlabelled), record, rejects)


def read_thresholds(texts: Sequence[str], table: LabelTable) -> dict[str, Bounds]:
    """``NAME=LOW,HIGH`` as a row's ``figures``; an empty bound is none: ``consistency=0.6,``.

    Raises:
        ValueError: another form, a figure that no label of the table has, LOW above HIGH; names the text.
    """
    thresholds: dict[str, Bounds] = {}
    for text in texts:
        name, equals, bounds = text.partition("=")
        parts = bounds.split(",")
        if not equals or len(parts) != 2:
            raise ValueError(f"--figures {text}: write NAME=LOW,HIGH with an empty bound for none, like consistency=0.6,")
        if name not in table.columns:
            raise ValueError(f"--figures {text}: no label of {table.folder} has a figure {name!r}; there are {', '.join(table.columns)}")
        try:
            low, high = (float(part) if part.strip() else None for part in parts)
        except ValueError as error:
            raise ValueError(f"--figures {text}: {bounds!r} are no two numbers") from error
        if low is not None and high is not None and low > high:
            raise ValueError(f"--figures {text}: the first bound must not be above the second")
        thresholds[name] = low, high
    return thresholds


def reject_reasons(table: LabelTable) -> list[tuple[str, int]]:
    """(reason, how many samples), the most frequent first; a sample's key at the reason's beginning is left out."""
    reasons = (reject["reason"].removeprefix(f"{reject['key']}: ") for reject in table.rejects)
    return collections.Counter(reasons).most_common()


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _read_file(folder: ShardPath, name: str) -> str:
    """Empty where there is no such file, which a folder in work lacks."""
    path = folder / name
    try:
        if isinstance(path, RemotePath):
            return default_storage().remote.read_file(path).decode()
        return Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, MissingFileError):
        return ""
