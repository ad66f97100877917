"""Evaluation streams: finite, exact under any number of processes, and free of chance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_shards import HEIGHT, WIDTH, damage_image, write_folder

from data_shards.mixture import MixtureSource
from data_shards.schema import LABEL_KINDS, LabelKind
from mdpretrain.data.crops import Cut
from mdpretrain.data.evaluation_stream import evaluation_loader
from mdpretrain.data.faults import FaultLog
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.structures import DepthBatch

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


def test_a_stored_prompt_and_an_edge_depth_count_in_validation_too(tmp_path: Path) -> None:
    low, edge = np.full((HEIGHT // 4, WIDTH // 4), 2.5, np.float32), np.full((HEIGHT, WIDTH), 3.5, np.float32)
    phones = write_folder(tmp_path / "phones", [2], "phones", prompt=low, depth_edge=edge)
    (batch,) = evaluation_loader([phones], SIZE, 2, PromptOptions((4, 9), interpolate=True, stored=True))
    assert batch.prompt is not None and batch.prompt.mask.all() and (batch.prompt.depth_m == 2.5).all()
    assert batch.edge_depth is not None and (batch.edge_depth == 3.5).all()
    (batch,) = evaluation_loader([phones], SIZE, 2, PromptOptions((4, 9)))
    assert batch.prompt is not None and 4 <= batch.prompt.mask[0].sum() <= 9


def test_a_row_of_a_mixture_keeps_its_limits(tmp_path: Path) -> None:
    folder = str(write_folder(tmp_path / "one", [2], "one"))
    (plain,) = evaluation_loader([folder], SIZE, 2)
    middle = plain.depth[plain.valid].median().item()
    row = MixtureSource(folder, max_depth_m=middle, loss_kind="pseudo")
    whole, limited = evaluation_loader([folder, row], SIZE, 2)  # each folder by its own
    assert torch.equal(whole.valid, plain.valid)
    near, far = plain.depth < 0.9 * middle, plain.depth > 1.1 * middle  # between them the resampling mixes both
    assert near.any() and far.any() and limited.valid[near].all() and not limited.valid[far].any()
    assert set(limited.label_kind.tolist()) == {LABEL_KINDS.index(LabelKind.PSEUDO)}


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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_smaller_than_the_cut_is_the_users_error_and_no_bad_sample(folders: list[Path], num_workers: int) -> None:
    with pytest.raises(ValueError, match=r"one/0000: an image of 48 x 36 .* smaller than the protocol's cut of 1216 x 352; choose another"):
        list(evaluation_loader(folders, (352, 1216), 2, num_workers=num_workers, cut=Cut(vertical="bottom")))


def test_nothing_to_evaluate_is_an_error(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no sample in .* matches"):
        evaluation_loader(folders, SIZE, 1, include=["three/*"])
    with pytest.raises(ValueError, match="no such folder"):
        evaluation_loader([tmp_path / "nowhere"], SIZE, 1)


def validation_step_counts(folders: list[Path], world_size: int, batch_size: int, **options) -> list[list[DepthBatch]]:
    return [
        list(evaluation_loader(folders, SIZE, batch_size, rank=rank, world_size=world_size, in_step=True, **options))
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("sizes", [[1], [0, 2, 0], [1, 0, 0, 3], [2, 5]])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 2), (2, 1), (3, 2), (5, 1), (8, 4)])
def test_no_process_waits_for_anothers_missing_batch(tmp_path: Path, sizes: list[int], world_size: int, batch_size: int) -> None:
    """Tiny, empty and ragged shards, fewer samples and fewer shards than processes: equal numbers of batches, each sample once."""
    folder = write_folder(tmp_path / "val", sizes, "val")
    ranks = validation_step_counts([folder], world_size, batch_size, prompt=PromptOptions((2, 4), interpolate=True))
    assert len({len(batches) for batches in ranks}) == 1
    real = [key for batches in ranks for batch in batches for key in batch.key if key]
    assert sorted(real) == [f"val/{k:04d}" for k in range(sum(sizes))]
    for batch in (batch for batches in ranks for batch in batches):
        fillers = batch.position == -1
        assert batch.samples == int((~fillers).sum()) and (fillers.all() or not fillers.any())
        assert not batch.valid[fillers].any() and (batch.depth[fillers] == 0).all() and not batch.prompt.mask[fillers].any()
        assert (batch.prompt.kind[fillers] == -1).all() and (batch.prompt.kind[~fillers] == 0).all()
        assert batch.image.isfinite().all() and batch.valid[~fillers].flatten(1).any(1).all()


def test_a_batch_of_bad_samples_becomes_a_filler(folders: list[Path], tmp_path: Path) -> None:
    for number in (0, 1, 2, 3, 4):
        damage_image(folders[0], f"one/{number:04d}")
    ranks = validation_step_counts(folders, 2, 1, faults=FaultLog(None))
    assert [len(batches) for batches in ranks] == [4, 4]
    assert sorted(key for batches in ranks for batch in batches for key in batch.key) == [""] * 5 + [f"two/{k:04d}" for k in range(3)]
    for number in range(3):
        damage_image(folders[1], f"two/{number:04d}")
    with pytest.raises(ValueError, match="none of the 8 samples of one, two can be read"):
        validation_step_counts(folders, 2, 1)


def test_a_missing_shard_is_an_error_even_if_only_its_index_tells(folders: list[Path]) -> None:
    (folders[0] / "00001.tar").unlink()
    with pytest.raises(ValueError, match=r"one/00001\.tar: is missing, but its index is there"):
        evaluation_loader(folders, SIZE, 1)
