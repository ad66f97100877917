"""From checkpoints to models in the runner's sense: the networks, the baselines beside them, and the prior that two of these need."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mdpretrain.evaluation import baselines
from mdpretrain.evaluation.runner import Model
from mdpretrain.geometry.canonical import depth_from_canonical_inverse_where_known
from mdpretrain.networks.priors import CheckpointPrior, FrozenPrior, StoredPrior
from mdpretrain.networks.transformers_prior import TransformersPrior
from mdpretrain.prompts.preparation import PromptPreparation
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor

Facts = list[tuple[str, str]]
Prior = Callable[[DepthBatch], Tensor]
STORED = "stored"


def predictor_model(predictor: Predictor) -> Model:
    """A predictor as the runner calls it: metres, NaN in images whose camera it would need; affine predictions as they are.

    Where the camera is unknown, a network that estimates the focal length from the image answers by its estimate.
    """

    def model(batch: DepthBatch) -> Tensor | DepthPrediction:
        prediction = predictor(batch)
        if prediction.space != DepthSpace.CANONICAL_INVERSE:
            return prediction
        given, estimated = batch.intrinsics[:, 0, 0], prediction.estimated_f_px
        focal_px = torch.where(batch.camera_known, given, torch.full_like(given, torch.nan) if estimated is None else estimated)
        depth, known = depth_from_canonical_inverse_where_known(prediction.values, focal_px, batch.image.shape[-1])
        return torch.where(known[:, None, None, None], depth, torch.full_like(depth, torch.nan))

    return model


def choose_prior(text: str, device: str) -> FrozenPrior:
    """What ``--prior`` names: a checkpoint or run folder of ours, a model folder of transformers, or "stored", the shards' own priors.

    Raises:
        ValueError: there is no such file or folder, or it holds no network that can be a prior.
    """
    if text == STORED:
        return StoredPrior(required=True)
    path = pathlib.Path(text)
    if not path.exists():
        raise ValueError(f"--prior {text}: there is no such file or folder; give a checkpoint, a run folder, a model folder or '{STORED}'")
    prior = TransformersPrior(path) if (path / "config.json").is_file() else CheckpointPrior(checkpoint=path)
    return prior.to(device)


def prompt_baselines(
    teacher: Predictor | None, prior_text: str | None, device: str, facts: Facts, name: str = "the teacher"
) -> tuple[dict[str, Model], Prior | None]:
    """``nearest`` and ``linear``; ``gmdr`` and ``pdsa`` where there is a prior: the one asked for, else the teacher's own.

    ``name`` is what the teacher is called in the facts.

    Returns:
        The models, and the prior they share (None without), which is computed once a batch.
    """
    models: dict[str, Model] = {"nearest": baselines.nearest, "linear": baselines.linear}
    own = None if teacher is None else teacher.prior
    prior = own if prior_text is None else choose_prior(prior_text, device)
    if prior is None:
        facts.append(("gmdr, pdsa", f"left out: {name} has no prior of its own to align; choose one with --prior"))
        return models, None
    facts.append(("prior of gmdr and pdsa", f"{name}'s own" if prior_text is None else prior_text))
    shared = baselines.once_per_batch(prior)
    preparation = baseline_preparation(None if teacher is None else teacher.preparation)
    return {**models, **baselines.aligned_prior_baselines(shared, preparation)}, shared


def baseline_preparation(own: torch.nn.Module | None) -> PromptPreparation:
    """The alignments as the teacher's recipe tuned them, if it uses both; else with their defaults."""
    wanted = list(baselines.PREPARED_BASELINES.values())
    if isinstance(own, PromptPreparation) and set(wanted) <= set(own.maps):
        return own
    return PromptPreparation(maps=wanted)


def median_models(loader: Iterable[DepthBatch], device: str, facts: Facts, progress: bool) -> dict[str, Model]:
    """The median depth maps of the training set; the canonical one only where the training set has cameras."""
    medians = baselines.fit_medians(loader, ("metric", "canonical"), progress)
    found: dict[str, Model] = {}
    for form, name in (("metric", "median_depth"), ("canonical", "median_depth_canonical")):
        if form in medians:
            found[name] = medians[form].to(device)
            fact = (name, f"per-pixel median of {medians[form].samples} training samples")
            facts += [fact] * (fact not in facts)
    return found
