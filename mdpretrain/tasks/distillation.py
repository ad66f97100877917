"""Training of a prompt-free metric network from pseudo-labels, which are samples like any other (label kind ``pseudo``)."""

from __future__ import annotations

from torch import Tensor, nn

from mdpretrain.losses.point_table import PointMapLoss
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.base import DEFAULT_OPTIMIZER, DEFAULT_SCHEDULE, TrainingTask
from mdpretrain.tasks.feature_alignment import FeatureAligner, FeatureAlignment
from mdpretrain.tasks.optimizer import AdamW
from mdpretrain.tasks.schedule import Schedule


class Distillation(TrainingTask):
    """Image -> metric or canonical inverse depth. The labels decide whether this is distillation or plain training.

    A batch that carries a prompt is refused: a student must not learn to need one.

    Args:
        network, loss, optimizer, schedule: see TrainingTask.
        feature_alignment: keeps the encoder's features near a frozen one's while training (not part of ``val/loss``); null: does not.

    Raises:
        ValueError: a head of a point-map network that no term of its loss trains.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: nn.Module,
        optimizer: AdamW = DEFAULT_OPTIMIZER,
        schedule: Schedule = DEFAULT_SCHEDULE,
        feature_alignment: FeatureAlignment | None = None,
    ) -> None:
        super().__init__(network, loss, optimizer, schedule)
        self.feature_alignment = feature_alignment
        self._aligner: FeatureAligner | None = None
        if isinstance(loss, PointMapLoss):
            loss.check_heads(network)

    def on_fit_start(self) -> None:
        """Read the frozen encoder now, so that a wrong file ends the run at its start."""
        super().on_fit_start()
        if self.feature_alignment is not None:
            self._ready_aligner(self.feature_alignment)

    def _ready_aligner(self, options: FeatureAlignment) -> FeatureAligner:
        if self._aligner is None:
            self._aligner = FeatureAligner(self.network, options)
        return self._aligner

    def training_loss(self, batch: DepthBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss table's, and ``feature_alignment`` as a term of its own."""
        if self.feature_alignment is None:
            return super().training_loss(batch)
        aligner = self._ready_aligner(self.feature_alignment)
        loss, terms = super().training_loss(batch)
        term = aligner.losses(len(batch)).mean()
        return loss + self.feature_alignment.weight * term, {**terms, "feature_alignment": term.detach()}

    def sample_losses(self, batch: DepthBatch) -> list[Tensor]:
        """The loss of every sample by itself, feature alignment included while training."""
        if self.feature_alignment is None or not self.training:
            return super().sample_losses(batch)
        aligner = self._ready_aligner(self.feature_alignment)
        losses = super().sample_losses(batch)
        return [loss + self.feature_alignment.weight * term for loss, term in zip(losses, aligner.losses(len(batch)).unbind())]

    def predict_depth(self, batch: DepthBatch) -> DepthPrediction:
        """The student's prediction from the image alone.

        Raises:
            ValueError: the network's output has no metres in it.
        """
        if batch.prompt is not None or batch.prepared is not None:
            raise ValueError("a student sees no prompt: set data.prompt to null in its recipe")
        prediction = self.network(batch)
        if prediction.space not in (DepthSpace.METRIC, DepthSpace.CANONICAL_INVERSE):
            raise ValueError(
                f"Distillation trains a metric network, and {type(self.network).__name__} predicts {prediction.space}; "
                "train it with mdpretrain.tasks.affine_invariant.AffineInvariantTraining"
            )
        return prediction
