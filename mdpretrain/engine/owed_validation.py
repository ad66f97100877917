"""A validation that was due at the step of the checkpoint, and never ran, is made up for when the run goes on.

Checkpoints are written when a step ends, before the validation that is due at it; a run that is stopped or killed in between would
miss that validation for good, and its best checkpoint with it.
"""

from __future__ import annotations

from typing import Any

import lightning


class OwedValidation(lightning.Callback):
    """Remembers at which step the last validation ended; a resumed run begins with the one that it owes."""

    def __init__(self) -> None:
        self.validated_step = -1
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"validated_step": self.validated_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the checkpoint that the run goes on from."""
        self.validated_step, self._resumed = state_dict["validated_step"], True

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """This step owes nothing any more."""
        self.validated_step = trainer.global_step

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Everything is restored, and nothing has been trained yet."""
        resumed, self._resumed = self._resumed, False
        loop = trainer.fit_loop.epoch_loop
        fetcher: Any = trainer.fit_loop._data_fetcher
        if (
            not resumed
            or self.validated_step == trainer.global_step
            or not trainer.enable_validation
            or not loop._should_check_val_fx(fetcher)
        ):
            return
        # as Lightning does it between two steps
        connector = trainer._logger_connector
        first, trainer.validating = connector._first_loop_iter, True
        loop.val_loop.run()
        trainer.training, connector._first_loop_iter = True, first
