"""Training of an affine-invariant depth network (AnyDepth's SDT; it also makes the prior that prompts are aligned to)."""

from __future__ import annotations

from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.base import TrainingTask


class AffineInvariantTraining(TrainingTask):
    """Image -> inverse depth up to scale and shift; every label kind can teach it, metric or not."""

    def predict_depth(self, batch: DepthBatch) -> DepthPrediction:
        """The network's prediction.

        Raises:
            ValueError: the network predicts in another space.
        """
        prediction = self.network(batch)
        if prediction.space is not DepthSpace.AFFINE_INVARIANT:
            raise ValueError(
                f"AffineInvariantTraining trains an affine-invariant network, and {type(self.network).__name__} predicts "
                f"{prediction.space}; train it with mdpretrain.tasks.distillation.Distillation"
            )
        return prediction
