"""The LightningDataModule over shards: what a recipe's ``data:`` section configures."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import torch
from lightning.pytorch import LightningDataModule

from data_shards.mixture import MixtureSource, scaled
from data_shards.storage.options import StorageOptions
from data_shards.storage.storage import Storage
from mdpretrain.data.evaluation_stream import EvaluationLoader, evaluation_loader
from mdpretrain.data.faults import FaultBudget, FaultLog
from mdpretrain.data.fetch_ahead import FetchAhead, Node, NodeDraws
from mdpretrain.data.ledger import DeliveryRecord, LedgerWriter, next_session, session_folder, write_plan
from mdpretrain.data.mixture import GlobalOrder, check_names
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.pipeline import Augmentation, PromptOptions, RowOptions, SamplePipeline
from mdpretrain.data.plan import SOURCE_KEYS, Leg, OnMixtureChange, first_difference, first_leg, go_on, leg_at
from mdpretrain.data.processes import Processes
from mdpretrain.data.shard_folder import ShardFolder
from mdpretrain.data.source_reader import SourceReader
from mdpretrain.data.training_stream import Share, TrainingBatches, TrainingLoader
from mdpretrain.structures import DepthBatch

STATE_VERSION = 2
DEFAULT_AUGMENTATION = Augmentation()
DEFAULT_SHUFFLE = ShuffleOptions()
DEFAULT_FAULTS = FaultBudget()
DEFAULT_STORAGE = StorageOptions()


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
        fraction: share of every row's samples that is trained on, chosen by their keys, times the row's own ``fraction``.
        augmentation: random view and colour; null trains on the centred view.
        prompt: sparse prompts drawn from metric labels, in training and validation; null for none.
        val_batch_size: images per validation batch and process; by default this process's share of ``batch_size``.
        steps_per_epoch: batches that Lightning calls an epoch, rounded to whole optimiser steps; by default one pass over as many
            samples as the mixture has.
        shuffle: how far samples are mixed.
        faults: how many bad samples a run survives; a row of the mixture may say otherwise for itself.
        bad_sample_file: where they are listed; by default ``bad_samples.jsonl`` in the trainer's root folder.
        on_mixture_change: what a resume does whose mixture, seed, batch size or shuffling is not the checkpoint's: "refuse" it;
            "continue" with the new order from here, each unchanged source where it stands; "restart" the new order here.
        storage: how remote shards are read (docs/storage.md); nothing of it changes what is read.
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
        fraction: float = 1.0,
        augmentation: Augmentation | None = DEFAULT_AUGMENTATION,
        prompt: PromptOptions | None = None,
        val_batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        shuffle: ShuffleOptions = DEFAULT_SHUFFLE,
        faults: FaultBudget = DEFAULT_FAULTS,
        bad_sample_file: str | None = None,
        on_mixture_change: OnMixtureChange = "refuse",
        storage: StorageOptions = DEFAULT_STORAGE,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # validation may have fewer samples than processes
        self.train_sources = scaled(train, fraction)
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
        self.on_mixture_change = on_mixture_change
        self.storage = Storage(storage)
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.ledger_folder: Path | None = None
        self.order: GlobalOrder | None = None
        self._readers: dict[str, SourceReader] = {}
        self._legs: list[Leg] = []
        self._restored: dict[str, Any] | None = None
        self._loader: TrainingLoader | None = None
        self._faults: FaultLog | None = None

    def write_ledger(self, folder: Path) -> None:
        """Write every key that is trained on into sessions of ``folder``."""
        self.ledger_folder = folder

    def setup(self, stage: str | None = None) -> None:
        """Open every shard that this stage reads, so that a missing one ends the run before it starts.

        Raises:
            ValueError: a folder or shard is missing or damaged, two sources share a name, or the batch does not divide.
        """
        if stage in (None, "fit") and self.order is None:
            self._open_mixture()
        if stage in (None, "fit", "validate", "test"):
            for folder in self.val_folders:
                ShardFolder(folder, storage=self.storage)

    def train_dataloader(self) -> TrainingLoader:
        assert self.order is not None, "Lightning calls setup first"
        rank, world_size = self._layout()
        first_step = self._finished_steps()
        leg = self._legs[-1]
        assert first_step >= leg.first_step, "Lightning restores its count of batches before it asks for the loader"
        share = Share(self.batch_size, rank, world_size, leg.first_step, leg.first_position)
        self._refuse_too_long_a_run(share)
        readers = [self._readers[name] for name in self.order.names]
        base = None if self._restored is None else self._restored["delivered"]
        open_ledger = None if self.ledger_folder is None else functools.partial(self._open_ledger, self.ledger_folder, first_step)
        record = DeliveryRecord(self.order.names, self._fault_log(), base, open_ledger, self._join)
        if self._loader is not None:  # asked for again in one process: by some strategies, or to train on
            record.take_over(self._loader.record, first_step)
        self._loader = TrainingLoader(
            self._batches(self.order, share, self._fetch_ahead(readers, share)),
            self._epoch_length(),
            self.num_workers,
            record,
            consumed=None if self.trainer is None else self._finished_steps,
            first_step=first_step,
            pin_memory=self.pin_memory,
            give_up_after_s=self.storage.options.give_up_after_s,
        )
        return self._loader

    @property
    def order_legs(self) -> list[dict[str, Any]]:
        """The legs of the run so far as JSON values: what its batches can be computed anew from."""
        return [dataclasses.asdict(leg) for leg in self._legs]

    def rebuild_batch(self, legs: list[dict[str, Any]], step: int, rank: int, world_size: int) -> DepthBatch:
        """Process ``rank``'s part of global batch ``step`` of a run on ``world_size`` processes, read and computed anew.

        Raises:
            ValueError: a source of those legs is not in this recipe, or its samples are no longer what they were.
        """
        leg = leg_at([Leg(**record) for record in legs], step)
        for name, row in leg.identity["mixture"].items():
            reader = self._readers.get(name)
            if reader is None:
                raise ValueError(f"the batch of step {step} was drawn from source {name!r}, which this recipe does not have")
            if change := first_difference(
                {key: row.get(key) for key in SOURCE_KEYS}, {key: reader.identity().get(key) for key in SOURCE_KEYS}
            ):
                raise ValueError(f"source {name!r} is not what step {step} was drawn from: {change}; restore its shards and filters")
        order = leg.order({name: reader.shard_sizes for name, reader in self._readers.items()})
        share = Share(int(leg.identity["batch_size"]), rank, world_size, leg.first_step, leg.first_position)
        delivery = self._batches(order, share, None)[step]
        if delivery.batch is None:
            raise ValueError(f"the batch of step {step} cannot be read again: {delivery.fatal}")
        return delivery.batch

    def _batches(self, order: GlobalOrder, share: Share, ahead: FetchAhead | None) -> TrainingBatches:
        """The map from step to batch of one process."""
        readers = [self._readers[name] for name in order.names]
        rows = [reader.source for reader in readers]
        options = [RowOptions.of(row) for row in rows]
        pipeline = SamplePipeline(self.image_size, self.augmentation, self.prompt, self.seed)
        return TrainingBatches(order, readers, options, pipeline, share, [self.fault_budget.of(row) for row in rows], ahead)

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
            in_step=True,
            storage=self.storage,
        )

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        return self.val_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """Steps, legs, and the account of what was delivered; the same on every process, which all call it together."""
        if self._loader is None:
            return {}
        steps = self._finished_steps()
        return {"state_version": STATE_VERSION, "steps": steps, "legs": self.order_legs, "delivered": self._loader.record.state(steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; the position itself is restored with Lightning's count of batches.

        Raises:
            ValueError: the checkpoint belongs to another mixture, seed or batch size, naming what differs, and
                ``on_mixture_change`` does not say what to do.
        """
        if self.order is None or not state_dict:
            return
        if state_dict.get("state_version") != STATE_VERSION:
            version = state_dict.get("state_version")
            raise ValueError(f"the checkpoint's data state has version {version!r}, this code reads {STATE_VERSION}; start a new run")
        saved, steps = [Leg(**leg) for leg in state_dict["legs"]], int(state_dict["steps"])
        now = dataclasses.replace(self._legs[-1], first_step=0, first_position=0, earlier={})
        self._legs = go_on(saved, steps, now, self.on_mixture_change)
        self.order = self._legs[-1].order({name: reader.shard_sizes for name, reader in self._readers.items()})
        delivered = state_dict["delivered"]
        bad = {name: count for name, count in delivered["bad"].items() if self._goes_on(name, steps)}
        self._restored = {"steps": steps, "delivered": delivered | {"bad": bad}}
        self._loader = None

    def teardown(self, stage: str) -> None:
        """The ledger is whole when the run ends."""
        if self._loader is not None:
            self._loader.record.close(self._finished_steps())

    def on_exception(self, exception: BaseException) -> None:
        """Also when it ends by an error."""
        self.teardown("fit")

    @property
    def skipped_samples(self) -> int:
        """Bad samples that this process met and replaced so far; the progress lines show it."""
        return 0 if self._faults is None else sum(self._faults.bad.values())

    def source_passes(self) -> dict[str, float]:
        """How many passes over each source training has made so far."""
        assert self.order is not None
        return self.order.passes(self._legs[-1].position(self._finished_steps()))

    def _open_mixture(self) -> None:
        rank, _ = self._layout()
        check_names([source.called for source in self.train_sources])
        processes = Processes.of_this_run()
        readers = [SourceReader(source, storage=self.storage, processes=processes) for source in self.train_sources]
        self._readers = {reader.name: reader for reader in readers}
        for reader in readers if rank == 0 else ():
            if reader.unlabelled:
                print(f"{reader.name}: {reader.unlabelled} samples have no label in its sidecars and are left out", file=sys.stderr)
        self._legs = [first_leg(readers, self.seed, self.batch_size, self.shuffle)]
        self.order = self._legs[-1].order({name: reader.shard_sizes for name, reader in self._readers.items()})
        Share(self.batch_size, *self._layout())

    def _goes_on(self, source: str, steps: int) -> bool:
        """Whether a source's account of bad samples belongs to what it is now, or to a mixture that ended at ``steps``."""
        leg = self._legs[-1]
        return source in self._readers and (leg.first_step < steps or source in leg.earlier or steps == 0)

    def _open_ledger(self, folder: Path, first_step: int) -> LedgerWriter:
        """This process's file of a new session; the number of the session is rank 0's.

        At the first batch and not with the loader, which some strategies ask for once more than they use it.
        """
        assert self.order is not None
        rank, world_size = self._layout()
        number = next_session(folder) if rank == 0 else 0
        if world_size > 1:
            assert self.trainer is not None
            number = self.trainer.strategy.broadcast(number)
        if rank == 0:
            plan = {"first_step": first_step, "world_size": world_size, "num_workers": self.num_workers, "names": self.order.names}
            write_plan(folder, number, plan | {"legs": self.order_legs})
        return LedgerWriter(session_folder(folder, number), rank)

    def _join(self, values: list[int]) -> list[int]:
        """Sums over all processes."""
        if self.trainer is None or self.trainer.world_size == 1:
            return values
        strategy = self.trainer.strategy
        total = strategy.reduce(torch.tensor(values, dtype=torch.int64, device=strategy.root_device), reduce_op="sum")
        return total.tolist()

    def _refuse_too_long_a_run(self, share: Share) -> None:
        """A mixture whose every row has a ``max_passes`` must last until the trainer's last step."""
        assert self.order is not None
        if self.order.end is None or self.trainer is None or self.trainer.max_steps < 0:
            return
        batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
        if share.start(batches) > self.order.end:
            raise ValueError(
                f"trainer.max_steps {self.trainer.max_steps} needs {share.start(batches)} samples, but the mixture ends after "
                f"{self.order.end}, when every source has been shown as often as its max_passes allows; raise one, or train fewer steps"
            )

    def _fetch_ahead(self, readers: list[SourceReader], share: Share) -> FetchAhead | None:
        """None where all shards are local."""
        if not any(reader.remote for reader in readers):
            return None
        assert self.order is not None
        node = Node(share.rank, share.rank, 1)
        if self.trainer is not None:
            node = Node(share.rank, share.rank - self.trainer.local_rank, self.trainer.num_devices)
        draws, samples = NodeDraws(self.order, share, node), share.batch_size // share.world_size * node.ranks
        return FetchAhead(draws, readers, self.storage.options.prefetch_samples, samples, node, share.first_step)

    def _layout(self) -> tuple[int, int]:
        """(rank, number of processes)"""
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _epoch_length(self) -> int:
        """In batches; whole optimiser steps, because at the end of an epoch Lightning takes an accumulated step that has only begun."""
        length = self.steps_per_epoch or sum(map(len, self._readers.values())) // self.batch_size
        accumulated = 1 if self.trainer is None else self.trainer.accumulate_grad_batches
        return max(1, length // accumulated) * accumulated

    def _finished_steps(self) -> int:
        """Steps whose batch has been trained on, over all epochs and restarts: Lightning's ``processed``, which its checkpoints
        hold and restore before they ask for the loader. ``delivered`` would count a batch whose step was interrupted."""
        if self.trainer is not None:
            return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]  # Lightning's type is too wide
        if self._loader is not None:
            return self._loader.next_step
        return 0 if self._restored is None else int(self._restored["steps"])

    def _fault_log(self) -> FaultLog:
        if self._faults is None:
            root = None if self.trainer is None else Path(self.trainer.default_root_dir) / "bad_samples.jsonl"
            self._faults = FaultLog(self.bad_sample_file or root)
        return self._faults
