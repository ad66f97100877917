"""Training of a prompt-free metric network from pseudo-labels, which are samples like any other (label kind ``pseudo``)."""

from __future__ import annotations

from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.base import TrainingTask


class Distillation(TrainingTask):
    """Image -> metric or canonical inverse depth. The labels decide whether this is distillation or plain training.

    A batch that carries a prompt is refused: a student must not learn to need one.
    """

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
