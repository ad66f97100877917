"""Runs of the stream alone, without training: what a resume, a changed mixture or a fault does to the ledger and the hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_shards.mixture import MixtureSource
from mdpretrain.data.datamodule import ShardDataModule
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.networks.checkpoint_files import checkpoint_name


def make_module(root: Path, **changes: Any) -> ShardDataModule:
    """Sources ``one`` (12 samples) and ``two`` (5) in ``root``, drawn 2 : 1 in batches of 3."""
    options: dict[str, Any] = {
        "train": [MixtureSource(str(root / "one"), weight=2.0), MixtureSource(str(root / "two"))],
        "val": [],
        "image_size": (12, 16),
        "batch_size": 3,
        "shuffle": ShuffleOptions(2, 8),
        "seed": 4,
        "pin_memory": False,
    }
    return ShardDataModule(**(options | changes))


def stream(run: Path, module: ShardDataModule, steps: int, resume: bool = False, save_every: int = 2, killed: bool = False) -> list[str]:
    """Take ``steps`` steps and save the data state as a run's checkpoints do; returns the keys.

    Resumes from the newest checkpoint; ``killed`` leaves without closing anything.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    module.write_ledger(run / "ledger")
    module.bad_sample_file = str(run / "bad_samples.jsonl")
    module.setup("fit")
    if resume and (saved := sorted(folder.glob("*.ckpt"))):
        module.load_state_dict(torch.load(saved[-1], weights_only=True)["ShardDataModule"])
    loader, keys = module.train_dataloader(), []
    goal = loader.next_step + steps
    while loader.next_step < goal:
        for batch in loader:
            keys += batch.key
            if loader.next_step % save_every == 0:
                torch.save({"ShardDataModule": module.state_dict()}, folder / checkpoint_name(loader.next_step))
            if loader.next_step == goal:
                break
    if not killed:
        module.teardown("fit")
    return keys
