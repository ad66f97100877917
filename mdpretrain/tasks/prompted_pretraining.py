"""Training of a prompted teacher: prior -> prompt preparation -> conditioned network -> losses (MetricAnything)."""

from __future__ import annotations

from torch import nn

from mdpretrain.structures import DepthBatch, DepthPrediction
from mdpretrain.tasks.base import DEFAULT_OPTIMIZER, DEFAULT_SCHEDULE, TrainingTask
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.prompting import prepare_batch
from mdpretrain.tasks.schedule import Schedule


class PromptedPretraining(TrainingTask):
    """Image and sparse metric prompt -> metric depth. The prior is frozen, stays in eval and goes into the checkpoint.

    Args:
        network, loss, optimizer, schedule: see TrainingTask.
        preparation: ``PromptPreparation``.
        prior: what the preparation aligns to the prompt; null: the prompt alone.
        prior_dropout: share of the training images that are prepared without their prior, so that the network knows how to do without
            (see ``prior_dropout.py``; validation keeps every prior).

    Raises:
        ValueError: a drop-out that is no probability below 1, or one of a prior that is not there.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        preparation: nn.Module,
        prior: nn.Module | None = None,
        optimizer: AdamW = DEFAULT_OPTIMIZER,
        schedule: Schedule = DEFAULT_SCHEDULE,
        prior_dropout: float = 0.0,
    ) -> None:
        super().__init__(network, loss, optimizer, schedule)
        if not 0 <= prior_dropout < 1:
            raise ValueError(f"prior_dropout is {prior_dropout}; give a probability in [0, 1), for without any prior set prior to null")
        if prior_dropout and prior is None:
            raise ValueError(f"prior_dropout is {prior_dropout} and there is no prior to drop: set it to 0, or give a prior")
        self.prior_dropout = prior_dropout
        self.preparation = preparation
        self.prior = prior
        self.stored_modules = ("network", "preparation") if prior is None else ("network", "preparation", "prior")
        if prior is not None:
            prior.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PromptedPretraining:
        """Switch the network; what is frozen stays in eval."""
        super().train(mode)
        if self.prior is not None:
            self.prior.eval()
        return self

    def predict_depth(self, batch: DepthBatch) -> DepthPrediction:
        """The teacher's prediction from the image and its prepared prompt."""
        return self.network(prepare_batch(batch, self.prior, self.preparation, self.prior_dropout if self.training else 0.0))
