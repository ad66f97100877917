"""Join checkpoints, shards and baselines into one evaluation and its report."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import torch
from torch import Tensor

from data_shards.storage.address import ShardPath
from mdpretrain.data.evaluation_stream import evaluation_loader
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation import baselines
from mdpretrain.evaluation.curves import read_curves
from mdpretrain.evaluation.panels import SampleCollector
from mdpretrain.evaluation.protocols import Protocol, find_protocol
from mdpretrain.evaluation.report import ReportContent, write_report
from mdpretrain.evaluation.runner import Model, Tally, counted_pixels, evaluate, measure
from mdpretrain.geometry.canonical import depth_from_canonical_inverse_where_known
from mdpretrain.losses.targets import z_depth
from mdpretrain.prompts.preparation import PromptPreparation
from mdpretrain.structures import DepthBatch, DepthPrediction, DepthSpace
from mdpretrain.tasks.predictor import Predictor, load_predictor


@dataclasses.dataclass
class EvaluationRequest:
    """Everything ``mdpretrain evaluate`` was asked for; see its ``--help``."""

    shards: list[ShardPath]
    output: pathlib.Path
    image_size: tuple[int, int]
    teacher: pathlib.Path | None = None
    student: pathlib.Path | None = None
    training_shards: list[ShardPath] = dataclasses.field(default_factory=list)
    prompt_count: tuple[int, int] | None = None
    protocols: list[str] = dataclasses.field(default_factory=lambda: ["metric_default"])
    runs: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    include: list[str] | None = None
    batch_size: int = 8
    num_workers: int = 0
    seed: int = 0
    device: str = "cpu"
    samples_shown: int = 6
    title: str = "Depth evaluation"
    progress: bool = True
    weights: Literal["trained", "ema"] = "trained"


class Agreement:
    """An observer: how far the student is from the teacher, measured like any model with the teacher's depth as truth."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = dataclasses.replace(protocol, aggregation="image")
        self.tally = Tally()

    def __call__(self, batch: DepthBatch, predictions_m: dict[str, Tensor]) -> None:
        if not {"teacher", "student"} <= set(predictions_m):
            return
        truth, _ = z_depth(batch)
        teacher = predictions_m["teacher"].clamp(*self.protocol.clamp_m)
        counts = counted_pixels(truth, batch.valid, self.protocol) & teacher.isfinite()
        for index in range(len(batch)):
            if bool(counts[index].any()):
                moments = measure(predictions_m["student"][index], teacher[index], counts[index], DepthSpace.METRIC, self.protocol)
                if moments is not None:
                    self.tally.add(moments)

    def result(self) -> dict[str, Any] | None:
        """``{"samples", "protocol", <metric>: float, ...}``, or None if not both models answered."""
        if not self.tally.samples:
            return None
        return {"samples": self.tally.samples, "protocol": self.protocol.name, **self.tally.metrics("image")}


def predictor_model(predictor: Predictor) -> Model:
    """A predictor as the runner calls it: metres, NaN in images whose camera it would need; affine predictions as they are."""

    def model(batch: DepthBatch) -> Tensor | DepthPrediction:
        prediction = predictor(batch)
        if prediction.space != DepthSpace.CANONICAL_INVERSE:
            return prediction
        focal_px = torch.where(batch.camera_known, batch.intrinsics[:, 0, 0], torch.full_like(batch.intrinsics[:, 0, 0], torch.nan))
        depth, known = depth_from_canonical_inverse_where_known(prediction.values, focal_px, batch.image.shape[-1])
        return torch.where(known[:, None, None, None], depth, torch.full_like(depth, torch.nan))

    return model


def run_evaluation(request: EvaluationRequest) -> pathlib.Path:
    """Evaluate the named checkpoints beside their baselines and write the report; returns the page's path.

    Raises:
        ValueError: neither teacher nor student, an unknown protocol, a prompted network without prompts, or what the parts raise.
    """
    protocols = [find_protocol(name) for name in request.protocols]
    if request.teacher is None and request.student is None:
        raise ValueError("nothing to evaluate: give --teacher, --student or both")
    for folder in request.runs.values():
        read_curves(folder)  # a mistyped folder is refused now, not after the evaluation
    prompt = None if request.prompt_count is None else PromptOptions(request.prompt_count, interpolate=True)
    loader = evaluation_loader(
        request.shards, request.image_size, request.batch_size, prompt, request.seed, request.num_workers, request.include
    )
    facts = [
        ("evaluated", f"{loader.samples} samples of {', '.join(str(path) for path in request.shards)}"),
        ("image size", f"{request.image_size[0]} × {request.image_size[1]} pixels (height × width), centre crop"),
        ("prompts", f"{prompt.count[0]} to {prompt.count[1]} points, log-uniform, seed {request.seed}" if prompt else "none"),
    ]
    models, prior = _models(request, facts)
    models.update(_medians(request, facts))
    collector = SampleCollector(request.samples_shown, prior)
    agreement = Agreement(protocols[0])

    def observe(batch: DepthBatch, predictions_m: dict[str, Tensor]) -> None:
        with torch.no_grad():
            collector(batch, predictions_m)
            agreement(batch, predictions_m)

    rows = evaluate(models, loader, protocols, request.device, observe, request.progress)
    if bad := sum(loader.faults.bad.values()):
        facts.append(("unreadable", f"{bad} samples of the shards could not be read and are in no figure"))
    facts.append(("torch", f"{torch.__version__} on {request.device}"))
    content = ReportContent(request.title, facts, rows, protocols, collector.chosen(), request.runs, agreement.result())
    return write_report(content, request.output)


def _models(request: EvaluationRequest, facts: list[tuple[str, str]]) -> tuple[dict[str, Model], Any]:
    """Teacher, student and prompt baselines, and the teacher's prior (None if it has none)."""
    models: dict[str, Model] = {}
    prior, preparation = None, PromptPreparation()
    for name, checkpoint in (("teacher", request.teacher), ("student", request.student)):
        if checkpoint is None:
            continue
        predictor = load_predictor(checkpoint, request.device, request.weights)
        if predictor.needs_prompt and request.prompt_count is None:
            raise ValueError(f"{checkpoint}: the {name} is a prompted network; give --prompt-count LOW HIGH")
        facts.insert(0, (name, f"{checkpoint} (fingerprint {predictor.fingerprint[:12]})"))
        models[name] = predictor_model(predictor)
        if name == "teacher" and predictor.prior is not None:
            prior = baselines.once_per_batch(predictor.prior)
            preparation = _baseline_preparation(predictor.preparation)
    if request.prompt_count is not None:
        models.update(nearest=baselines.nearest, linear=baselines.linear)
        if prior is not None:
            models.update(baselines.aligned_prior_baselines(prior, preparation))
    return models, prior


def _baseline_preparation(own: torch.nn.Module | None) -> PromptPreparation:
    """The alignments as the teacher's recipe tuned them, if it uses both; else with their defaults."""
    wanted = list(baselines.PREPARED_BASELINES.values())
    if isinstance(own, PromptPreparation) and set(wanted) <= set(own.maps):
        return own
    return PromptPreparation(maps=wanted)


def _medians(request: EvaluationRequest, facts: list[tuple[str, str]]) -> dict[str, Model]:
    """The median depth maps of the training set; the canonical one only where the training set has cameras."""
    if not request.training_shards:
        return {}
    loader = evaluation_loader(request.training_shards, request.image_size, request.batch_size, num_workers=request.num_workers)
    medians = baselines.fit_medians(loader, ("metric", "canonical"), request.progress)
    found: dict[str, Model] = {}
    for form, name in (("metric", "median_depth"), ("canonical", "median_depth_canonical")):
        if form in medians:
            found[name] = medians[form].to(request.device)
            facts.append((name, f"per-pixel median of {medians[form].samples} training samples"))
    return found
