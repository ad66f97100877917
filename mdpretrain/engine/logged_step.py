"""Which training steps are logged: the only ones at whose end a callback may wait for the device."""

from __future__ import annotations

import mdpretrain.compat  # noqa: F401  (before lightning)

# isort: split
import lightning


def is_logged_step(trainer: lightning.Trainer) -> bool:
    """Whether the batch at hand ends an optimiser step whose figures Lightning writes. Ask in ``on_train_batch_end``."""
    loop = trainer.fit_loop.epoch_loop
    every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]  # the trainer sets it by name
    return (loop._batches_that_stepped + 1) % every == 0 and not loop._should_accumulate()
