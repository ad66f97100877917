"""Join checkpoints, shards and baselines into one evaluation and its report."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import torch
from torch import Tensor

from data_shards.mixture import MixtureSource
from data_shards.storage.address import ShardPath
from mdpretrain.data.crops import Cut
from mdpretrain.data.evaluation_stream import evaluation_loader
from mdpretrain.data.pipeline import PromptOptions
from mdpretrain.evaluation import models as model_table
from mdpretrain.evaluation import robustness
from mdpretrain.evaluation.comparison import compared, pairs_of
from mdpretrain.evaluation.contestants import Compared, Contestants, is_stored, network_of, open_stored
from mdpretrain.evaluation.curves import read_curves
from mdpretrain.evaluation.gap import GapMeter
from mdpretrain.evaluation.measurements import ProtocolRecord, kind_rows, table_rows
from mdpretrain.evaluation.panels import SampleCollector
from mdpretrain.evaluation.passes import Frames, Pass, plain_pass, prompt_pass
from mdpretrain.evaluation.regressions import RegressionCollector
from mdpretrain.evaluation.report import ReportContent, write_report
from mdpretrain.evaluation.runner import ImageObserver, Model, run_models
from mdpretrain.evaluation.tables import BASELINES_OF
from mdpretrain.evaluation.uncertainty import Resampling
from mdpretrain.structures import DepthBatch
from mdpretrain.tasks.predictor import Predictor, load_predictor

AGREEING = ("teacher", "student")  # names whose agreement is reported, whichever of them is the reference


@dataclasses.dataclass
class EvaluationRequest:
    """Everything ``mdpretrain evaluate`` was asked for; see its ``--help``.

    ``prompt``: the prompts to draw, None for none; ``prompt_protocols`` bring their own. ``image_size`` None: ``long_side`` if given, else
    the prompt protocols' own sizes. ``protocols`` None: metric_default; prompt protocols have pixel protocols of their own. ``compared``:
    further networks and stored depth by name (``contestants``); ``compare_all``: in all pairs, however many.
    """

    shards: list[ShardPath]
    output: pathlib.Path
    image_size: tuple[int, int] | None = None
    long_side: int | None = None
    multiple: int = 14
    teacher: pathlib.Path | None = None
    student: pathlib.Path | None = None
    compared: Compared = dataclasses.field(default_factory=dict)
    compare_all: bool = False
    prior: str | None = None
    training_shards: list[ShardPath] = dataclasses.field(default_factory=list)
    training_sidecars: list[ShardPath] = dataclasses.field(default_factory=list)
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
        if self.training_sidecars and len(self.training_sidecars) != len(self.training_shards):
            raise ValueError(
                f"--training-sidecars names {len(self.training_sidecars)} folders and --training-shards {len(self.training_shards)}; "
                "give the labels of each folder of shards, in the same order"
            )
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
        if self.count_prompt_pixels and not self.compared:
            raise ValueError(
                "--count-prompt-pixels goes with --prompt-protocol or --compare; otherwise prompt pixels count always: leave it out"
            )
        if self.prior is not None and self.prompt is None:
            raise ValueError(
                "--prior is aligned to a prompt, and none are drawn; give --prompt-count LOW HIGH, --prompt or --prompt-protocol"
            )
        if not size_given:
            raise ValueError("at what size? give --image-size HEIGHT WIDTH, or --long-side PIXELS for whole images")
        exclude = bool(self.compared) and self.prompt is not None and not self.count_prompt_pixels
        return [plain_pass(frames, self.prompt, self.protocols or ["metric_default"], exclude)]

    def named(self) -> Compared:
        """Everything that is compared, in the order that makes the first the reference.

        Raises:
            ValueError: nothing at all, or a name that is given twice.
        """
        own = {name: [str(path)] for name, path in (("teacher", self.teacher), ("student", self.student)) if path is not None}
        if twice := sorted(own.keys() & self.compared.keys()):
            raise ValueError(f"--compare {twice[0]}=... and --{twice[0]} are one name for two things; give one of them")
        if not own and not self.compared:
            raise ValueError("nothing to evaluate: give --teacher, --student or both, or --compare NAME=CHECKPOINT ...")
        return own | self.compared


def run_evaluation(request: EvaluationRequest) -> pathlib.Path:
    """Evaluate the named checkpoints beside their baselines and write the report; returns the page's path.

    Raises:
        ValueError: nothing to evaluate, an unknown protocol, a prompted network without prompts, or what the parts raise.
    """
    passes, named = request.passes(), request.named()
    axes = robustness.check_axes(request.robustness, passes[0].prompt)
    for folder in request.runs.values():
        read_curves(folder)  # a mistyped folder is refused now, not after the evaluation
    first_loader = passes[0].loader()
    shards = ", ".join(str(path) for path in request.shards)
    facts = [("evaluated", f"{first_loader.samples} samples of {shards}")]
    facts += [(f"image size {one.title}".rstrip(), one.describe_size()) for one in passes]
    if not request.prompt_protocols:
        facts.append(("prompts", describe_prompt(passes[0].prompt, request.seed)))
    contestants, models, prior = _models(request, named, passes[0].prompt is not None, facts)
    resampling = Resampling(request.resamples, request.seed)
    pairs = pairs_of(contestants.names, request.compare_all)
    own = [AGREEING] if set(AGREEING) <= set(contestants.names) and AGREEING not in pairs else []
    meter, worst = GapMeter([*pairs, *own]), RegressionCollector(pairs)
    records: list[ProtocolRecord] = []
    medians: dict[tuple[tuple[int, int] | None, Cut | None], dict[str, Model]] = {}
    samples = []
    for number, one in enumerate(passes):
        collector = SampleCollector(-(-request.samples_shown // len(passes)), prior, one.title)
        loader = first_loader if number == 0 else one.loader()
        view = (one.frames.image_size, one.cut)  # two cuts of one size show other parts of the images
        if view not in medians:
            medians[view] = _medians(request, one, facts)
        records += run_models(
            {**models, **contestants.stored_models(one), **medians[view]},
            loader,
            one.protocols,
            request.device,
            collector,
            request.progress,
            stored=contestants.stored,
            image_observer=_both(meter, worst),
        )
        samples += collector.chosen()
        if bad := sum(loader.faults.bad.values()):
            facts.append(
                ("unreadable", f"{bad} samples of the shards could not be read and are in no figure{f' of {one.title}' * bool(one.title)}")
            )
    curves = robustness.run(
        axes, models, passes[0], request.device, resampling, request.seen_patterns, request.progress, contestants.prompted
    )
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
        agreement=meter.agreement(records[0], *AGREEING),
        kind_rows=[row for record in records for row in kind_rows(record, resampling)],
        comparisons=[found for record in records for found in _comparisons(record, contestants, pairs, resampling)],
        claims=[one.protocols[0].name for one in passes],
        robustness=curves,
        gaps=[gap for record in records for gap in meter.gaps(record, pairs, resampling)],
        regressions=worst.worst(),
        inputs=contestants.inputs(),
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


def _both(meter: GapMeter, worst: RegressionCollector) -> ImageObserver:
    def observe(
        batch: DepthBatch, index: int, record: ProtocolRecord, truth_m: Tensor, counts: Tensor, depths_m: dict[str, Tensor]
    ) -> None:
        meter(batch, index, record, truth_m, counts, depths_m)
        worst(batch, index, record, truth_m, counts, depths_m)

    return observe


def _models(
    request: EvaluationRequest, named: Compared, prompted: bool, facts: model_table.Facts
) -> tuple[Contestants, dict[str, Model], model_table.Prior | None]:
    """What is compared, the networks and prompt baselines as models, and the prior that gmdr and pdsa align (None if there is none).

    The baselines take the preparation and the prior of the first prompted network.
    """
    own_facts: model_table.Facts = []
    networks: dict[str, Predictor] = {}
    for name, parts in named.items():
        if is_stored(parts):
            continue
        path, averaged = network_of(parts)
        predictor = load_predictor(path, request.device, "ema" if averaged else request.weights)
        if predictor.needs_prompt and not prompted:
            raise ValueError(f"{path}: the {name} is a prompted network; give --prompt-count LOW HIGH, --prompt or --prompt-protocol")
        networks[name] = predictor
        own_facts.append((name, f"{parts[0]} (fingerprint {predictor.fingerprint[:12]})"))
    contestants = Contestants(list(named), networks, open_stored(named, request.shards, own_facts))
    facts[:0] = own_facts
    models = contestants.network_models()
    if not prompted:
        return contestants, models, None
    first = next(iter(contestants.prompted), None)
    called = "the teacher" if first in (None, "teacher") else str(first)
    teacher = None if first is None else networks[first]
    found, prior = model_table.prompt_baselines(teacher, request.prior, request.device, facts, called)
    return contestants, {**models, **found}, prior


def _medians(request: EvaluationRequest, one: Pass, facts: model_table.Facts) -> dict[str, Model]:
    """The median depth maps at the pass's size and cut; whole images have sizes of their own, which a map cannot have."""
    if not request.training_shards:
        return {}
    folders: list[ShardPath | MixtureSource] = list(request.training_shards)
    if request.training_sidecars:
        joined = zip(request.training_shards, request.training_sidecars, strict=True)
        folders = [MixtureSource(str(shards), sidecars=[str(sidecars)]) for shards, sidecars in joined]
    if one.frames.image_size is None:
        raise ValueError("--training-shards: the median-depth baselines need images of one size; leave it out, or give --image-size")
    loader = evaluation_loader(folders, one.frames.image_size, request.batch_size, num_workers=request.num_workers, cut=one.cut)
    return model_table.median_models(loader, request.device, facts, request.progress)


def _comparisons(
    record: ProtocolRecord, contestants: Contestants, pairs: list[tuple[str, str]], resampling: Resampling
) -> list[dict[str, Any]]:
    """Each network minus each baseline that was given the same input, and of each pair the second minus the first."""
    with_baselines = [(name, other) for name, given in contestants.inputs().items() for other in BASELINES_OF.get(given, ())]
    wanted = [*with_baselines, *((model, reference) for reference, model in pairs)]
    return [found for model, other in wanted if (found := compared(record, model, other, resampling))]
