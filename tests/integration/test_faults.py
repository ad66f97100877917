"""Budgets of bad samples: judged alike by every layout and every replay, per source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stream_runs import make_module, stream
from tiny_shards import damage_image, write_folder

from data_shards.mixture import MixtureSource
from mdpretrain.data.faults import BadSample, FaultBudget, FaultLog, judge, read_fault_log
from mdpretrain.data.ledger import DeliveryRecord
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import RowOptions, SamplePipeline
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.training_stream import Share, TrainingBatches, TrainingLoader


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """One sample of twelve is bad in ``one``; ``two`` is sound."""
    write_folder(tmp_path / "one", [5, 7], "one")
    write_folder(tmp_path / "two", [5], "two")
    damage_image(tmp_path / "one", "one/0004")
    return tmp_path


def rows(root: Path, **options: float) -> list[MixtureSource]:
    return [MixtureSource(str(root / "one"), **options), MixtureSource(str(root / "two"))]


def test_a_run_ends_at_the_same_step_however_often_it_was_resumed(shards: Path) -> None:
    """Nine draws per step: 200 draws of the source are reached in step 44, the next judgement is before step 50."""
    options = {"train": rows(shards), "batch_size": 9}
    sentence = r"source 'one': (\d+) bad samples in 225 draws before step 50 pass its budget of 5\.0%"
    with pytest.raises(ValueError, match=sentence) as undisturbed:
        stream(shards / "run", make_module(shards, **options), 60, save_every=7)
    with pytest.raises(ValueError, match=sentence) as again:
        stream(shards / "run", make_module(shards, **options), 60, resume=True)  # from step 49
    stream(shards / "other", make_module(shards, **options), 21, save_every=7, killed=True)
    with pytest.raises(ValueError, match=sentence) as resumed:
        stream(shards / "other", make_module(shards, num_workers=2, **options), 60, resume=True)
    assert str(undisturbed.value) == str(again.value) == str(resumed.value)
    assert "raise max_bad_fraction of its row" in str(resumed.value)


def test_a_row_may_have_its_own_budget(shards: Path) -> None:
    options = {"train": rows(shards, max_bad_fraction=0.2), "batch_size": 9}
    assert len(stream(shards / "run", make_module(shards, **options), 55, save_every=60)) == 9 * 55
    damage_image(shards / "one", "one/0003")
    for patience, fine in ((1, False), (3, True)):
        generous = make_module(shards, train=rows(shards, max_bad_fraction=1.0, max_bad_in_a_row=patience), batch_size=9)
        if fine:
            stream(shards / str(patience), generous, 6)
        else:
            with pytest.raises(ValueError, match="source 'one': 1 bad samples in a row at position"):
                stream(shards / str(patience), generous, 6)


@pytest.mark.parametrize("world_size", [1, 3, 9])
def test_every_process_judges_the_sum_over_all(shards: Path, world_size: int) -> None:
    """Processes that exchange their counts as a strategy does; each raises the same sentence before the same step."""
    folders = [ShardFolder(shards / name) for name in ("one", "two")]
    loaders: list[TrainingLoader] = []

    def make(rank: int) -> TrainingLoader:
        order = GlobalOrder(["one", "two"], [1.0, 1.0], [folder.shard_sizes for folder in folders], 4, ShuffleOptions(2, 8))
        pipeline = SamplePipeline((12, 16), None, None, seed=4)
        batches = TrainingBatches(order, folders, [RowOptions()] * 2, pipeline, Share(9, rank, world_size), [FaultBudget()] * 2)
        record = DeliveryRecord(order.names, join=lambda own: own)
        return TrainingLoader(batches, 50, 0, record)

    loaders = [make(rank) for rank in range(world_size)]
    for loader in loaders:
        assert len(list(loader)) == 50
    parts = [loader.record.bad_so_far() for loader in loaders]
    total = [sum(part[name] for part in parts) for name in ("one", "two")]
    for loader in loaders:
        loader.record._join = lambda own: total
        with pytest.raises(ValueError, match=rf"source 'one': {total[0]} bad samples in 225 draws before step 50"):
            next(iter(loader))
    assert 225 // 12 <= total[0] <= 225 // 12 + 2 and total[1] == 0


def test_the_budget_is_a_share_of_the_draws() -> None:
    budgets = [FaultBudget(max_fraction=0.1)]
    judge(["a"], budgets, {"a": 40}, [400], 100)
    judge(["a"], budgets, {"a": 100}, [199], 100)  # too few draws to call it a rate
    with pytest.raises(ValueError, match=r"source 'a': 41 bad samples in 400 draws before step 100 pass its budget of 10\.0%"):
        judge(["a"], budgets, {"a": 41}, [400], 100)
    judge(["a"], [FaultBudget(max_fraction=1.0)], {"a": 400}, [400], 100)


def test_the_list_survives_half_a_line_and_two_runs(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    log = FaultLog(path)
    bad = [BadSample(7, attempt, "one", "x.tar", f"one/{attempt}", "because") for attempt in (0, 1)]
    log.record(bad)
    with open(path, "ab") as file:
        file.write(b'{"position": 9, "att')  # killed here
    FaultLog(path).record([BadSample(11, 0, "two", "y.tar", "two/3", "because"), BadSample(3, 0, "v", "v.tar", "v/0", "", "evaluation")])
    found = read_fault_log(path)
    assert {position: sorted(keys) for position, keys in found.items()} == {7: ["one/0", "one/1"], 11: ["two/3"]}
    assert json.loads(path.read_text().splitlines()[0])["attempt"] == 0 and log.bad == {"one": 2}
    assert read_fault_log(tmp_path / "nowhere") == {}
