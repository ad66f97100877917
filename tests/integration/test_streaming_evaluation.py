"""Evaluation streams: finite, exact under any number of processes, and free of chance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny_shards import HEIGHT, WIDTH, damage_image, write_folder

from mdpretrain.data.evaluation_stream import evaluation_loader
from mdpretrain.data.faults import FaultLog
from mdpretrain.data.pipeline import PromptOptions

SIZE = (12, 16)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [write_folder(tmp_path / "one", [4, 1], "one"), write_folder(tmp_path / "two", [3], "two")]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_sample_once_and_nobody_waits(folders: list[Path], world_size: int, batch_size: int) -> None:
    keys: Counter[str] = Counter()
    counts, positions = [], []
    for rank in range(world_size):
        loader = evaluation_loader(folders, SIZE, batch_size, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == len(loader) and sum(map(len, batches)) == loader.samples
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        counts.append(len(batches))
        for batch in batches:
            keys.update(batch.key)
            positions += batch.position.tolist()
    assert keys == Counter([f"one/{k:04d}" for k in range(5)] + [f"two/{k:04d}" for k in range(3)])
    assert sorted(positions) == list(range(8))
    assert max(counts) - min(counts) <= (1 if batch_size == 1 or world_size > 8 else 0)


def test_prompts_belong_to_the_key(folders: list[Path]) -> None:
    def prompts(seed: int = 0, **options) -> dict[str, torch.Tensor]:
        loader = evaluation_loader(folders, SIZE, prompt=PromptOptions((4, 9)), seed=seed, **options)
        return {key: batch.prompt.mask[b] for batch in loader for b, key in enumerate(batch.key)}

    reference = prompts(batch_size=3)
    alone = prompts(batch_size=1, num_workers=2, include=["two/*"])
    assert set(alone) == {f"two/{k:04d}" for k in range(3)}
    assert all(torch.equal(reference[key], mask) for key, mask in alone.items())
    other = prompts(seed=1, batch_size=3)
    assert not all(torch.equal(reference[key], other[key]) for key in reference)
    assert len({tuple(mask.flatten().tolist()) for mask in reference.values()}) == 8


def test_passes_and_workers_do_not_change_a_pixel(folders: list[Path]) -> None:
    loader = evaluation_loader(folders, SIZE, 3)
    passes = [list(loader), list(loader), list(evaluation_loader(folders, SIZE, 3, num_workers=2))]
    for batches in zip(*passes, strict=True):
        assert all(torch.equal(batches[0].image, batch.image) and batches[0].key == batch.key for batch in batches)


def test_whole_images_keep_their_view(folders: list[Path]) -> None:
    for batch in evaluation_loader(folders, None, 1, long_side=96, multiple=8):
        assert batch.image.shape == (1, 3, 72, 96)
        assert batch.intrinsics[0, 0, 0].item() == pytest.approx(40.0 * 96 / WIDTH) and batch.valid.all()
        assert batch.intrinsics[0, 1, 2].item() == pytest.approx(19.0 * 72 / HEIGHT)
    with pytest.raises(ValueError, match=r"whole images .* use 1"):
        evaluation_loader(folders, None, 2)


def test_a_bad_sample_is_left_out_and_listed(folders: list[Path], tmp_path: Path) -> None:
    damage_image(folders[0], "one/0001")
    damage_image(folders[0], "one/0004")
    faults = FaultLog(tmp_path / "bad.jsonl")
    keys = [key for batch in evaluation_loader(folders, SIZE, 1, faults=faults) for key in batch.key]
    assert len(keys) == 6 and not {"one/0001", "one/0004"} & set(keys)
    assert faults.bad == Counter(one=2) and len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_nothing_to_evaluate_is_an_error(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no sample in .* matches"):
        evaluation_loader(folders, SIZE, 1, include=["three/*"])
    with pytest.raises(ValueError, match="no such folder"):
        evaluation_loader([tmp_path / "nowhere"], SIZE, 1)
