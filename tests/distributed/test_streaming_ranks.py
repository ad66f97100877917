"""The same global key sequence whatever the number of processes and workers; state saved under one layout restores under another."""

from __future__ import annotations

from pathlib import Path

import lightning
import pytest
import torch
from tiny_shards import write_folder

from data_shards.mixture import MixtureSource
from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.data.faults import FaultBudget
from mdpretrain.data.ledger import DeliveryRecord, add_hashes, hash_from_text, hash_text
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import Augmentation, PromptOptions, RowOptions, SamplePipeline
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.training_stream import Share, TrainingBatches, TrainingLoader
from mdpretrain.structures import DepthBatch

BATCH, STEPS = 8, 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[ShardFolder]:
    root: Path = tmp_path_factory.mktemp("mixture")
    return [ShardFolder(write_folder(root / name, sizes, name)) for name, sizes in (("one", [7, 3]), ("two", [11]), ("three", [1, 2, 1]))]


def make_loader(folders: list[ShardFolder], rank: int, world_size: int, workers: int, first_step: int = 0) -> TrainingLoader:
    """Opened as one of ``world_size`` processes would."""
    order = GlobalOrder(["one", "two", "three"], [3.0, 2.0, 1.0], [folder.shard_sizes for folder in folders], 11, ShuffleOptions(2, 8))
    pipeline = SamplePipeline((12, 16), Augmentation(), PromptOptions((2, 20), interpolate=True), seed=11)
    batches = TrainingBatches(order, folders, [RowOptions()] * 3, pipeline, Share(BATCH, rank, world_size), [FaultBudget()] * 3)
    return TrainingLoader(batches, STEPS, workers, DeliveryRecord(order.names), first_step=first_step)


def global_batches(folders: list[ShardFolder], world_size: int, workers: int, first_step: int = 0) -> list[list[DepthBatch]]:
    """Per step, the processes' batches in order of rank."""
    loaders = [make_loader(folders, rank, world_size, workers, first_step) for rank in range(world_size)]
    return [list(step) for step in zip(*loaders)]


def keys_of(steps: list[list[DepthBatch]]) -> list[list[str]]:
    return [[key for batch in step for key in batch.key] for step in steps]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 3), (2, 1), (2, 4), (4, 2), (8, 0)])
def test_every_layout_sees_the_same_pixels(folders: list[ShardFolder], world_size: int, workers: int) -> None:
    reference, other = global_batches(folders, 1, 0), global_batches(folders, world_size, workers)
    assert keys_of(reference) == keys_of(other) and len(reference) == STEPS
    for (whole,), parts in zip(reference, other):
        assert torch.cat([part.position for part in parts]).tolist() == whole.position.tolist()
        for name in ("image", "depth", "valid", "intrinsics"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
        for name in ("depth_m", "mask", "interpolated_inverse_depth"):
            assert torch.equal(torch.cat([getattr(part.prompt, name) for part in parts]), getattr(whole.prompt, name)), name


@pytest.mark.parametrize(("world_size", "workers"), [(1, 3), (2, 1), (2, 4), (4, 2)])
def test_the_hash_does_not_depend_on_the_layout(folders: list[ShardFolder], world_size: int, workers: int) -> None:
    """The processes' own sums, added up, are the sum of one process; one step fewer is another sum."""
    alone = make_loader(folders, 0, 1, 0)
    reference = []
    for step, _ in enumerate(alone, start=1):
        reference.append(alone.record.state(step))
    loaders = [make_loader(folders, rank, world_size, workers) for rank in range(world_size)]
    for loader in loaders:
        list(loader)
    total = (0, 0)
    for loader in loaders:
        total = add_hashes(total, hash_from_text(loader.record.state(STEPS)["hash"]))
    assert hash_text(total) == reference[-1]["hash"] and reference[-1]["samples"] == BATCH * STEPS
    assert len({state["hash"] for state in reference}) == STEPS


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 3), (4, 1)])
def test_any_layout_goes_on_after_any_step(folders: list[ShardFolder], world_size: int, workers: int) -> None:
    undisturbed = keys_of(global_batches(folders, 1, 0))
    assert keys_of(global_batches(folders, world_size, workers, first_step=2))[: STEPS - 2] == undisturbed[2:]


def test_a_batch_that_does_not_divide_is_refused(folders: list[ShardFolder]) -> None:
    with pytest.raises(ValueError, match=r"batch_size 8 .* divide evenly among the 3 processes"):
        make_loader(folders, 0, 3, 0)


class _Writer(lightning.LightningModule):
    """Trains one number; every rank writes down what it was given."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: DepthBatch, batch_number: int) -> torch.Tensor:
        self._write("train", batch.key)
        return self.weight * batch.image.mean()

    def validation_step(self, batch: DepthBatch, batch_number: int) -> None:
        self._write("val", batch.key)

    def _write(self, stage: str, keys: list[str]) -> None:
        with open(self.folder / f"{stage}{self.global_rank}.txt", "a") as file:
            file.write(" ".join(keys) + "\n")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def _fit(folders: list[ShardFolder], output: Path, processes: int, steps: int, checkpoint: Path | None = None) -> list[str]:
    """Train under DDP (gloo) in forked processes; returns the global batches as lines, saves ``output/last.ckpt``."""
    output.mkdir()
    module = ShardDataModule(
        train=[MixtureSource(str(folder.path)) for folder in folders[:2]], val=[str(folders[2].path)], image_size=(12, 16), batch_size=4,
        num_workers=1, pin_memory=False,
    )  # fmt: skip
    trainer = lightning.Trainer(
        strategy="ddp_fork" if processes > 1 else "auto", devices=processes, accelerator="cpu", max_steps=steps, max_epochs=-1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=output,
        num_sanity_val_steps=0, val_check_interval=2, check_val_every_n_epoch=None,
        callbacks=[_SaveAtTheEnd(output / "last.ckpt")],
    )  # fmt: skip
    trainer.fit(_Writer(output), datamodule=module, ckpt_path=checkpoint, weights_only=False)
    ranks = [(output / f"train{rank}.txt").read_text().splitlines() for rank in range(processes)]
    return [" ".join(parts) for parts in zip(*ranks, strict=True)]


class _SaveAtTheEnd(lightning.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: lightning.Trainer, module: lightning.LightningModule, *_: object) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore")
def test_lightning_ddp_sees_the_global_batches_of_one_process(folders: list[ShardFolder], tmp_path: Path) -> None:
    """One process, two processes, and two processes that go on where one stopped."""
    alone = _fit(folders, tmp_path / "alone", 1, 6)
    assert len(alone) == 6 and len(alone[0].split()) == 4
    assert _fit(folders, tmp_path / "pair", 2, 6) == alone
    start = _fit(folders, tmp_path / "start", 1, 3)
    assert start + _fit(folders, tmp_path / "end", 2, 6, tmp_path / "start" / "last.ckpt") == alone
    validated = sorted(key for rank in (0, 1) for key in (tmp_path / "pair" / f"val{rank}.txt").read_text().split())
    assert validated == sorted([f"three/{k:04d}" for k in range(4)] * 3)
