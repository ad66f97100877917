"""Join checkpoints, shards and baselines into one evaluation and its report."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from data_shards.storage.address import ShardPath
from mdpretrain.data.crops import Cut
from mdpretrain.data.evaluation_stream import evaluation_loader
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation import models as model_table
from mdpretrain.evaluation import robustness
from mdpretrain.evaluation.curves import read_curves
from mdpretrain.evaluation.measurements import ProtocolRecord, compared, figures, image_row, kind_rows, table_rows
from mdpretrain.evaluation.panels import SampleCollector
from mdpretrain.evaluation.passes import Frames, Pass, plain_pass, prompt_pass
from mdpretrain.evaluation.protocols import Protocol
from mdpretrain.evaluation.report import ReportContent, write_report
from mdpretrain.evaluation.runner import Model, Observer, counted_pixels, measure, run_models, without_prompt_pixels
from mdpretrain.evaluation.tables import MEDIAN_BASELINES, PROMPT_BASELINES
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.losses.targets import z_depth
from mdpretrain.structures import DepthBatch, DepthSpace
from mdpretrain.tasks.predictor import Predictor, load_predictor


@dataclasses.dataclass
class EvaluationRequest:
    """Everything ``mdpretrain evaluate`` was asked for; see its ``--help``.

    ``prompt``: the prompts to draw, None for none; ``prompt_protocols`` bring their own. ``image_size`` None: ``long_side`` if given, else
    the prompt protocols' own sizes. ``protocols`` None: metric_default; prompt protocols have pixel protocols of their own.
    """

    shards: list[ShardPath]
    output: pathlib.Path
    image_size: tuple[int, int] | None = None
    long_side: int | None = None
    multiple: int = 14
    teacher: pathlib.Path | None = None
    student: pathlib.Path | None = None
    prior: str | None = None
    training_shards: list[ShardPath] = dataclasses.field(default_factory=list)
    prompt: PromptOptions | None = None
    prompt_protocols: list[str] = dataclasses.field(default_factory=list)
    count_prompt_pixels: bool = False
    protocols: list[str] | None = None
    robustness: list[str] = dataclasses.field(default_factory=list)
    seen_patterns: list[str] | None = None
    runs: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    include: list[str] | None = None
    batch_size: int = 8
    num_workers: int = 0
    seed: int = 0
    resamples: int = 1000
    device: str = "cpu"
    samples_shown: int = 6
    title: str = "Depth evaluation"
    progress: bool = True
    weights: Literal["trained", "ema"] = "trained"

    def passes(self) -> list[Pass]:
        """What the shards are gone through for.

        Raises:
            ValueError: an unknown protocol, no size or two, prompts both described and named by a protocol, or an option that has no
                effect beside the others.
        """
        if self.image_size is not None and self.long_side is not None:
            raise ValueError("--image-size and --long-side both say what is seen; give one of them")
        size_given = self.image_size is not None or self.long_side is not None
        frames = Frames(
            self.shards,
            self.image_size,
            self.long_side or 518,
            self.multiple,
            self.include,
            self.batch_size,
            self.num_workers,
            self.seed,
        )
        if self.prompt_protocols:
            if self.prompt is not None:
                raise ValueError("--prompt-protocol brings its own prompts; leave --prompt-count and --prompt out")
            if self.protocols is not None:
                raise ValueError(
                    "--prompt-protocol brings its own pixel protocol; leave --protocol out, and write NAME@PIXELS for another one "
                    f"(--prompt-protocol {self.prompt_protocols[0].partition('@')[0]}@{self.protocols[0]})"
                )
            return [prompt_pass(name, frames, size_given, self.count_prompt_pixels) for name in self.prompt_protocols]
        if self.count_prompt_pixels:
            raise ValueError("--count-prompt-pixels goes with --prompt-protocol; other protocols count prompt pixels always: leave it out")
        if self.prior is not None and self.prompt is None:
            raise ValueError(
                "--prior is aligned to a prompt, and none are drawn; give --prompt-count LOW HIGH, --prompt or --prompt-protocol"
            )
        if not size_given:
            raise ValueError("at what size? give --image-size HEIGHT WIDTH, or --long-side PIXELS for whole images")
        return [plain_pass(frames, self.prompt, self.protocols or ["metric_default"])]


class Agreement:
    """An observer: how far the student is from the teacher, measured like any model with the teacher's depth as truth."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = dataclasses.replace(protocol, aggregation="image")
        self.rows: list[np.ndarray] = []

    def __call__(self, batch: DepthBatch, predictions_m: dict[str, Tensor]) -> None:
        if not {"teacher", "student"} <= set(predictions_m):
            return
        truth, _ = z_depth(batch)
        teacher = predictions_m["teacher"].clamp(*self.protocol.clamp_m)
        counts = without_prompt_pixels(counted_pixels(truth, batch.valid, self.protocol), batch.prompt, self.protocol) & teacher.isfinite()
        for index in range(len(batch)):
            if bool(counts[index].any()):
                moments = measure(predictions_m["student"][index], teacher[index], counts[index], DepthSpace.METRIC, self.protocol)
                if moments is not None:
                    self.rows.append(image_row(moments))

    def result(self) -> dict[str, Any] | None:
        """``{"samples", "protocol", <metric>: float, ...}``, or None if not both models answered."""
        if not self.rows:
            return None
        found = figures(np.stack(self.rows), [], self.protocol.aggregation)
        return {"samples": found.images, "protocol": self.protocol.name, **found.named()}


def run_evaluation(request: EvaluationRequest) -> pathlib.Path:
    """Evaluate the named checkpoints beside their baselines and write the report; returns the page's path.

    Raises:
        ValueError: neither teacher nor student, an unknown protocol, a prompted network without prompts, or what the parts raise.
    """
    passes = request.passes()
    if request.teacher is None and request.student is None:
        raise ValueError("nothing to evaluate: give --teacher, --student or both")
    axes = robustness.check_axes(request.robustness, passes[0].prompt)
    for folder in request.runs.values():
        read_curves(folder)  # a mistyped folder is refused now, not after the evaluation
    first_loader = passes[0].loader()
    shards = ", ".join(str(path) for path in request.shards)
    facts = [("evaluated", f"{first_loader.samples} samples of {shards}")]
    facts += [(f"image size {one.title}".rstrip(), one.describe_size()) for one in passes]
    if not request.prompt_protocols:
        facts.append(("prompts", describe_prompt(passes[0].prompt, request.seed)))
    models, prior = _models(request, passes[0].prompt is not None, facts)
    resampling = Resampling(request.resamples, request.seed)
    agreement = Agreement(passes[0].protocols[0])
    records: list[ProtocolRecord] = []
    medians: dict[tuple[tuple[int, int] | None, Cut | None], dict[str, Model]] = {}
    samples = []
    for number, one in enumerate(passes):
        collector = SampleCollector(-(-request.samples_shown // len(passes)), prior, one.title)
        loader = first_loader if number == 0 else one.loader()
        observers: list[Observer] = [collector, agreement] if number == 0 else [collector]
        view = (one.frames.image_size, one.cut)  # two cuts of one size show other parts of the images
        if view not in medians:
            medians[view] = _medians(request, one, facts)
        records += run_models({**models, **medians[view]}, loader, one.protocols, request.device, _all_of(observers), request.progress)
        samples += collector.chosen()
        if bad := sum(loader.faults.bad.values()):
            facts.append(
                ("unreadable", f"{bad} samples of the shards could not be read and are in no figure{f' of {one.title}' * bool(one.title)}")
            )
    curves = robustness.run(axes, models, passes[0], request.device, resampling, request.seen_patterns, request.progress)
    facts.append(
        ("intervals", f"95 %, percentile bootstrap over the images of each source, {request.resamples} resamples, seed {request.seed}")
    )
    facts.append(("torch", f"{torch.__version__} on {request.device}"))
    content = ReportContent(
        title=request.title,
        facts=facts,
        rows=[row for record in records for row in table_rows(record, resampling)],
        protocols=[record.protocol for record in records],
        samples=samples,
        runs=request.runs,
        agreement=agreement.result(),
        kind_rows=[row for record in records for row in kind_rows(record, resampling)],
        comparisons=[found for record in records for found in _comparisons(record, resampling)],
        claims=[one.protocols[0].name for one in passes],
        robustness=curves,
    )
    return write_report(content, request.output)


def describe_prompt(prompt: PromptOptions | None, seed: int) -> str:
    """For the report."""
    if prompt is None:
        return "none"
    kinds = (
        "" if prompt.weights is None else f", kinds by weight: {', '.join(f'{name} {weight:g}' for name, weight in prompt.weights.items())}"
    )
    return f"{prompt.count[0]} to {prompt.count[1]} points, log-uniform, seed {seed}{kinds}"


def _all_of(observers: list[Observer]) -> Observer:
    def observe(batch: DepthBatch, predictions_m: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for observer in observers:
                observer(batch, predictions_m)

    return observe


def _models(request: EvaluationRequest, prompted: bool, facts: model_table.Facts) -> tuple[dict[str, Model], model_table.Prior | None]:
    """Teacher, student and prompt baselines, and the prior that gmdr and pdsa align (None if there is none)."""
    models: dict[str, Model] = {}
    teacher: Predictor | None = None
    for name, checkpoint in (("teacher", request.teacher), ("student", request.student)):
        if checkpoint is None:
            continue
        predictor = load_predictor(checkpoint, request.device, request.weights)
        if predictor.needs_prompt and not prompted:
            raise ValueError(f"{checkpoint}: the {name} is a prompted network; give --prompt-count LOW HIGH, --prompt or --prompt-protocol")
        facts.insert(0, (name, f"{checkpoint} (fingerprint {predictor.fingerprint[:12]})"))
        models[name] = model_table.predictor_model(predictor)
        teacher = predictor if name == "teacher" else teacher
    if not prompted:
        return models, None
    found, prior = model_table.prompt_baselines(teacher, request.prior, request.device, facts)
    return {**models, **found}, prior


def _medians(request: EvaluationRequest, one: Pass, facts: model_table.Facts) -> dict[str, Model]:
    """The median depth maps at the pass's size and cut; whole images have sizes of their own, which a map cannot have."""
    if not request.training_shards:
        return {}
    if one.frames.image_size is None:
        raise ValueError("--training-shards: the median-depth baselines need images of one size; leave it out, or give --image-size")
    loader = evaluation_loader(
        request.training_shards, one.frames.image_size, request.batch_size, num_workers=request.num_workers, cut=one.cut
    )
    return model_table.median_models(loader, request.device, facts, request.progress)


def _comparisons(record: ProtocolRecord, resampling: Resampling) -> list[dict[str, Any]]:
    """Each network minus each baseline that was given the same input."""
    pairs = [("teacher", name) for name in PROMPT_BASELINES] + [("student", name) for name in MEDIAN_BASELINES]
    return [found for model, other in pairs if (found := compared(record, model, other, resampling))]
