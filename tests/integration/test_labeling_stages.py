"""Reading, the network and writing run at once, over the borders of shards, and within bounds."""

from __future__ import annotations

import pathlib
import threading
import time

import pytest
from test_labeling import make_sample

from data_shards.schema import Sample
from data_shards.writer import KeyedMembers, write_shard
from mdpretrain.labeling.host_maps import HostMaps
from mdpretrain.labeling.labeler import Labeler, LabelMaps, LabelRead
from mdpretrain.labeling.source_shards import SourceShard
from tests.labelling_workers import REQUEST, brightness_teacher

PATIENCE_S = 60.0


class Watched(Labeler):
    """Waits at two places for what only happens meanwhile, and counts what is between the network and the tar."""

    def __init__(self, batch_size: int) -> None:
        super().__init__(brightness_teacher(), REQUEST, batch_size, decode_threads=1, encode_threads=1)
        self.second_shard_read, self.second_batch_computed = threading.Event(), threading.Event()
        self.computed = self.finished = self.most_between = 0

    def read(self, shard: SourceShard, position: int) -> LabelRead | str:
        if shard.keys[0] == "scene/006":
            self.second_shard_read.set()
        return super().read(shard, position)

    def compute(self, group: list[LabelRead]) -> LabelMaps:
        if self.computed + len(group) >= 6:  # the first shard's last batch: the next shard is read before it is done
            assert self.second_shard_read.wait(PATIENCE_S), "nothing was read ahead"
        if self.computed:
            self.second_batch_computed.set()
        self.computed += len(group)
        self.most_between = max(self.most_between, self.computed - self.finished)
        return super().compute(group)

    def finish(self, read: LabelRead, computed: HostMaps, index: int) -> Sample | KeyedMembers | str:
        assert self.second_batch_computed.wait(PATIENCE_S), "the network waited for the writer"
        time.sleep(0.002)
        self.finished += 1
        return super().finish(read, computed, index)


def test_stages_overlap_over_the_border_of_shards_and_are_bounded(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        write_shard(tmp_path / "shards" / f"toy-{shard:06d}.tar", [make_sample(6 * shard + k) for k in range(6)])
    labeler = Watched(batch_size=2)
    result = labeler.label_folder(tmp_path / "shards", tmp_path / "labels", quiet=True)
    assert result.labelled == labeler.finished == 24
    assert labeler.most_between <= 3 * labeler.batch_size


def test_ctrl_c_in_the_network_leaves_nothing_half_done(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        write_shard(tmp_path / "shards" / f"toy-{shard:06d}.tar", [make_sample(6 * shard + k) for k in range(6)])
    labeler = Labeler(brightness_teacher(), REQUEST, batch_size=2)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(labeler, "passes", stopped)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        labeler.label_folder(tmp_path / "shards", tmp_path / "labels", quiet=True)
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == [".lock", "dataset.json"]
    assert threading.active_count() == before
