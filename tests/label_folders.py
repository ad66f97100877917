"""Folders of pseudo-labels with known figures, as sidecars or whole shards, for the tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tiny_shards import HEIGHT, WIDTH, make_sample

from data_shards.index import IndexedShard, list_shards
from data_shards.samples import META_SUFFIX
from data_shards.schema import LabelKind, Sample
from data_shards.shard_table import write_table
from data_shards.sidecars import sidecar_members
from data_shards.writer import write_shard

Figures = Mapping[str, float | None]


def label_of(key: str, source: str, figures: Figures) -> Sample:
    """A label 10 % farther than the plane of ``tiny_shards``, with a hole, and a confidence of 0.25 and 0.75 in halves."""
    label = np.float32(1.1) * make_sample(key, source).depth
    label[:3, :4] = np.nan
    confidence = np.full((HEIGHT, WIDTH), 0.25, np.float32)
    confidence[:, WIDTH // 2 :] = 0.75
    changes = {"depth": label, "confidence": confidence, "label_kind": LabelKind.PSEUDO, "teacher": "fedcba98", "quality": dict(figures)}
    return make_sample(key, source, **changes)


def write_labels(originals: Path, folder: Path, figures: Mapping[str, Figures], whole: bool = False) -> Path:
    """Labels for the samples of ``originals`` that ``figures`` names by key; the others have a stand-in, or are not in whole shards."""
    folder.mkdir()
    rejects = []
    for path in list_shards(originals):
        shard, written = IndexedShard(path), []
        for position, entry in enumerate(shard.index.entries):
            if entry.key not in figures:
                rejects.append({"key": entry.key, "reason": f"{entry.key}: no metric z-depth to draw a prompt from"})
                if not whole:
                    written.append((entry.key, {META_SUFFIX: shard.read(position)[META_SUFFIX]}))
                continue
            label = label_of(entry.key, entry.source, figures[entry.key])
            written.append(label if whole else (entry.key, sidecar_members(label, ["depth", "confidence"])))
        write_shard(folder / path.name, written)
    record = {
        "teacher": "fedcba98",
        "fingerprint": "0123",
        "request": {"seed": 0, "prompt": {"count": [5, 9], "lidar": {"lines": [4, 64]}}},
        "complete": True,
    }
    (folder / "dataset.json").write_text(json.dumps(record | {"shards": [path.name for path in list_shards(originals)]}))
    (folder / "rejects.jsonl").write_text("".join(json.dumps(reject) + "\n" for reject in rejects))
    write_table(folder)
    return folder
