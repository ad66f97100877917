"""The LightningDataModule over shards: what a recipe's ``data:`` section configures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import torch
from lightning.pytorch import LightningDataModule

from mdpretrain.data.evaluation_stream import EvaluationLoader, evaluation_loader
from mdpretrain.data.faults import FaultBudget, FaultLog
from mdpretrain.data.mixture import GlobalOrder, MixtureSource
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import Augmentation, DepthLimits, PromptOptions, SamplePipeline
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.training_stream import Share, TrainingBatches, TrainingLoader, check_state

DEFAULT_AUGMENTATION = Augmentation()
DEFAULT_SHUFFLE = ShuffleOptions()
DEFAULT_FAULTS = FaultBudget()


class ShardDataModule(LightningDataModule):
    """Training on a weighted mixture of shard folders, validation on others.

    The position in the sample order is Lightning's own count of finished batches, so a resumed run, on any number of
    processes that divides the batch, goes on with the batch after the last one it trained on.

    Args:
        train: the mixture; may be empty for a run that only validates.
        val: folders to validate on, every sample once per validation.
        image_size: [height, width] of every batch.
        batch_size: the *global* batch of one step, over all processes (times accumulate_grad_batches for one update).
        num_workers: worker processes of each process.
        seed: of order, augmentation and prompts.
        augmentation: random view and colour; null trains on the centred view.
        prompt: sparse prompts drawn from metric labels, in training and validation; null for none.
        val_batch_size: images per validation batch and process; by default this process's share of ``batch_size``.
        steps_per_epoch: steps that Lightning calls an epoch; by default one pass over as many samples as the mixture has.
        shuffle: how far samples are mixed.
        faults: how many bad samples a run survives.
        bad_sample_file: where they are listed; by default ``bad_samples.jsonl`` in the trainer's root folder.
        pin_memory: page-locked batches; by default where there is a GPU.
    """

    def __init__(
        self,
        train: list[MixtureSource],
        val: list[str],
        image_size: tuple[int, int],
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        augmentation: Augmentation | None = DEFAULT_AUGMENTATION,
        prompt: PromptOptions | None = None,
        val_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        shuffle: ShuffleOptions = DEFAULT_SHUFFLE,
        faults: FaultBudget = DEFAULT_FAULTS,
        bad_sample_file: str | None = None,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # validation may have fewer samples than processes
        self.train_sources = list(train)
        self.val_folders = list(val)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.augmentation = augmentation
        self.prompt = prompt
        self.val_batch_size = val_batch_size
        self.steps_per_epoch = steps_per_epoch
        self.shuffle = shuffle
        self.fault_budget = faults
        self.bad_sample_file = bad_sample_file
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.order: GlobalOrder | None = None
        self._folders: list[ShardFolder] = []
        self._faults: FaultLog | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open every shard that this stage reads, so that a missing one ends the run before it starts.

        Raises:
            ValueError: a folder or shard is missing or damaged, two sources share a name, or the batch does not divide.
        """
        if stage in (None, "fit") and self.order is None:
            self._open_mixture()
        if stage in (None, "fit", "validate", "test"):
            for folder in self.val_folders:
                ShardFolder(folder)

    def train_dataloader(self) -> TrainingLoader:
        assert self.order is not None, "Lightning calls setup first"
        rank, world_size = self._layout()
        limits = [DepthLimits(source.min_depth_m, source.max_depth_m) for source in self.train_sources]
        pipeline = SamplePipeline(self.image_size, self.augmentation, self.prompt, self.seed)
        share = Share(self.batch_size, rank, world_size)
        batches = TrainingBatches(self.order, self._folders, limits, pipeline, share, self.fault_budget)
        return TrainingLoader(
            batches,
            self._epoch_length(),
            self.num_workers,
            self._fault_log(),
            self.identity(),
            consumed=self._finished_steps,
            first_step=self._finished_steps(),
            pin_memory=self.pin_memory,
        )

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        if not self.val_folders:
            return []
        rank, world_size = self._layout()
        return evaluation_loader(
            self.val_folders,
            self.image_size,
            self.val_batch_size or max(1, self.batch_size // world_size),
            prompt=self.prompt,
            seed=self.seed,
            num_workers=self.num_workers,
            rank=rank,
            world_size=world_size,
            faults=self._fault_log(),
            pin_memory=self.pin_memory,
        )

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        return self.val_dataloader()

    def identity(self) -> dict[str, Any]:
        """What the order depends on; a checkpoint with another identity is refused."""
        assert self.order is not None
        mixture = {
            name: {"weight": float(source.weight), "shards": folder.fingerprint, "samples": len(folder)}
            for name, source, folder in zip(self.order.names, self.train_sources, self._folders)
        }
        return {"mixture": mixture, "batch_size": self.batch_size, **self.order.describe()}

    def state_dict(self) -> dict[str, Any]:
        if self.order is None:
            return {}
        return {"state_version": 1, "steps": self._finished_steps(), "identity": self.identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the checkpoint fits; the position itself is restored with Lightning's count of batches.

        Raises:
            ValueError: the checkpoint belongs to another mixture, seed or batch size, naming what differs.
        """
        if self.order is not None:
            check_state(state_dict, self.identity())

    @property
    def skipped_samples(self) -> int:
        """Bad samples that this process met and replaced so far; the progress lines show it."""
        return 0 if self._faults is None else sum(self._faults.bad.values())

    def source_passes(self) -> dict[str, float]:
        """How many passes over each source training has made so far."""
        assert self.order is not None
        return self.order.passes(self._finished_steps() * self.batch_size)

    def _open_mixture(self) -> None:
        self._folders = [ShardFolder(source.path) for source in self.train_sources]
        names = [source.name or Path(source.path).resolve().name for source in self.train_sources]
        weights = [float(source.weight) for source in self.train_sources]
        sizes = [folder.shard_sizes for folder in self._folders]
        self.order = GlobalOrder(names, weights, sizes, self.seed, self.shuffle)
        Share(self.batch_size, *self._layout())

    def _layout(self) -> tuple[int, int]:
        """(rank, number of processes)"""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _epoch_length(self) -> int:
        return self.steps_per_epoch or max(1, sum(map(len, self._folders)) // self.batch_size)

    def _finished_steps(self) -> int:
        """Steps whose batch has been trained on, over all epochs and restarts: Lightning's ``processed``, which its checkpoints
        hold and restore before they ask for the loader. ``delivered`` would count a batch whose step was interrupted."""
        if self.trainer is None:
            return 0
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]  # Lightning's type is too wide

    def _fault_log(self) -> FaultLog:
        if self._faults is None:
            root = None if self.trainer is None else Path(self.trainer.default_root_dir) / "bad_samples.jsonl"
            self._faults = FaultLog(self.fault_budget, self.bad_sample_file or root)
        return self._faults
