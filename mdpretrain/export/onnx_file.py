"""A prompt-free network -> an ONNX file that onnxruntime computes as torch does, and the comparison that says so.

Inputs: ``image`` float32 [B, 3, H, W], sRGB in [0, 1], and for a network of canonical inverse depth ``f_px`` float32 [B], the focal length
in pixels of that image. Outputs: metres first if there are any, see ``onnx_graph``. The number of images is free; the size is fixed, or
free in multiples of the encoder's patch. Everything a caller must know stands in the file's metadata.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_shards.atomic import aside_of
from mdpretrain.export.facts import predictor_facts
from mdpretrain.export.onnx_graph import ImageToDepth, ImageToMetricDepth, named_outputs, prediction_of
from mdpretrain.export.pretrained import Weights, load_for_export
from mdpretrain.geometry.canonical import INVERSE_DEPTH_RANGE
from mdpretrain.networks.encoders.timm_encoder import TimmEncoder
from mdpretrain.structures import DepthSpace
from mdpretrain.tasks.predictor import Predictor

OPSET = 20
TOLERANCE = 1e-3
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST_IN_ONE_FILE = 1_800_000_000  # protobuf ends at 2 GB
_FLOOR = 1e-3  # differences are relative to the value, or to this share of the largest


@dataclasses.dataclass(frozen=True)
class OnnxReport:
    """What was written and how far it is from torch: the largest relative difference by ``"HxW"``."""

    path: pathlib.Path
    differences: dict[str, float]

    @property
    def largest(self) -> float:
        return max(self.differences.values())


def export_onnx(
    checkpoint: pathlib.Path, output: pathlib.Path, size: tuple[int, int] | None = None, weights: Weights = "trained"
) -> OnnxReport:
    """``write_onnx`` of a checkpoint, run or pretrained folder, with its facts in the metadata."""
    require_packages()
    predictor, content = load_for_export(checkpoint, weights)
    _refuse_prompted(predictor)
    return write_onnx(predictor, output, size, predictor_facts(predictor, content, weights))


def write_onnx(
    predictor: Predictor, output: pathlib.Path, size: tuple[int, int] | None = None, facts: dict[str, Any] | None = None
) -> OnnxReport:
    """Write and check ``output``; weights too large for one file lie beside it in ``output`` + ``.data``.

    Args:
        predictor: of a prompt-free network, on the CPU.
        output: a .onnx file that is not there yet.
        size: (height, width) of the image; null: free.
        facts: for the metadata.

    Raises:
        ValueError: packages missing, a network that needs a prompt or that torch cannot follow, a size off its patch, an output of another
            name or that exists, or numbers further from torch's than ``TOLERANCE``; then nothing is written.
    """
    require_packages()
    if output.suffix != ".onnx":
        raise ValueError(f"{output}: the file's name must end in .onnx")
    for file in (output, output.with_name(output.name + ".data")):
        if file.exists():
            raise ValueError(f"{file} exists already; name a new file")
    encoder = _exportable_encoder(predictor, size)
    sizes = _checked_sizes(encoder, size)
    prediction = prediction_of(predictor.network, torch.rand(1, 3, *sizes[0]))
    canonical, outputs = prediction.space is DepthSpace.CANONICAL_INVERSE, list(named_outputs(prediction))
    module = (ImageToMetricDepth if canonical else ImageToDepth)(predictor.network).eval()
    program = _program(module, encoder, sizes[0], size is None, ["depth_m", *outputs] if canonical else outputs)
    program.model.metadata_props.update(_metadata(encoder, prediction.space, size, facts or {}))
    aside = aside_of(output)
    aside.mkdir(parents=True)
    try:
        written = aside / output.name  # under its final name, by which the file knows its weights
        weights = sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())
        program.save(written, external_data=weights > _LARGEST_IN_ONE_FILE)
        differences = compare(written, predictor.network, sizes)
        report = OnnxReport(output, differences)
        if not report.largest <= TOLERANCE:
            raise ValueError(
                f"{output} was not written: onnxruntime differs from torch by {report.largest:.1e} (relative; {differences}), more "
                f"than {TOLERANCE:.0e}"
            )
        for file in sorted(aside.iterdir(), key=lambda file: file.suffix == ".onnx"):  # the weights first: a .onnx that is there is whole
            os.replace(file, output.parent / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return report


def compare(file: pathlib.Path, network: nn.Module, sizes: list[tuple[int, int]]) -> dict[str, float]:
    """Largest relative difference between onnxruntime and torch by ``"HxW"``.

    At the first size noise, black, white and a ramp together; at the others one image of noise. Depth in metres is compared by its
    inverse, in which far things are small: there a difference is relative to the value or to a thousandth of the largest.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs, outputs = ([entry.name for entry in entries] for entries in (session.get_inputs(), session.get_outputs()))
    generator = torch.Generator().manual_seed(0)
    differences = {}
    for index, (height, width) in enumerate(sizes):
        images = _images(height, width, generator) if index == 0 else torch.rand(1, 3, height, width, generator=generator)
        f_px = torch.linspace(0.5, 2.0, len(images)) * width
        given = {"image": images.numpy(), "f_px": f_px.numpy()}
        found = session.run(None, {name: given[name] for name in inputs})
        reference = _reference(network, images, f_px if "f_px" in inputs else None)
        pairs = zip(outputs, found, strict=True)
        differences[f"{height}x{width}"] = max(_difference(name, values, reference[name]) for name, values in pairs)
    return differences


def require_packages() -> None:
    """Raise ValueError, naming the extra, where a package of ONNX is missing."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"ONNX export needs {', '.join(missing)}: pip install 'mdpretrain[onnx]'")


def _reference(network: nn.Module, images: Tensor, f_px: Tensor | None) -> dict[str, Tensor]:
    outputs = named_outputs(prediction_of(network, images))
    if f_px is None:
        return outputs
    inverse = outputs["canonical_inverse_depth"].double() * (images.shape[-1] / f_px.double())[:, None, None, None]
    return outputs | {"depth_m": 1.0 / inverse.clamp(*INVERSE_DEPTH_RANGE)}


def _difference(name: str, found: np.ndarray, reference: Tensor) -> float:
    ours, wanted = (np.asarray(values, dtype=np.float64) for values in (found, reference.numpy()))
    if name == "depth_m":
        ours, wanted = 1.0 / ours, 1.0 / wanted
    if ours.shape != wanted.shape or not np.isfinite(ours).all():
        return float("inf")
    return float((np.abs(ours - wanted) / np.maximum(np.abs(wanted), _FLOOR * np.abs(wanted).max() + 1e-30)).max())


def _images(height: int, width: int, generator: torch.Generator) -> Tensor:
    ramp = torch.linspace(0, 1, width).expand(3, height, width)
    return torch.stack([torch.rand(3, height, width, generator=generator), torch.zeros_like(ramp), torch.ones_like(ramp), ramp])


def _refuse_prompted(predictor: Predictor) -> None:
    if predictor.needs_prompt:
        raise ValueError(
            f"{type(predictor.network).__name__} reads a prompt, whose alignment (searches and least squares over a free number of points) "
            "is no ONNX graph: export a prompt-free student of it, or use --format pretrained (PromptDA also --format transformers)"
        )


def _exportable_encoder(predictor: Predictor, size: tuple[int, int] | None) -> TimmEncoder:
    _refuse_prompted(predictor)
    encoder, name = getattr(predictor.network, "encoder", None), type(predictor.network).__name__
    if not isinstance(encoder, TimmEncoder):
        raise ValueError(f"{name} has no image encoder of this package, so the sizes that it reads are not known: use --format pretrained")
    if size is not None and encoder.input_size is None and (size[0] % encoder.stride or size[1] % encoder.stride):
        raise ValueError(f"--size {size[0]} {size[1]}: both must be multiples of {encoder.stride}, the patch of {encoder.model_name}")
    return encoder


def _checked_sizes(encoder: TimmEncoder, size: tuple[int, int] | None) -> list[tuple[int, int]]:
    """The sizes that the file is compared at; the first is the one it is traced with."""
    if size is not None:
        return [size]
    if encoder.input_size is None:  # cells of the grid: not square, smaller and larger than the first
        return [(rows * encoder.stride, columns * encoder.stride) for rows, columns in ((6, 8), (5, 3), (8, 8), (11, 16))]
    height, width = encoder.input_size  # every image is resized to this
    return [(height // 2 + 5, width // 2 + 2), (height, width), (height + height // 3, 2 * width + 1)]


def _program(module: ImageToDepth, encoder: TimmEncoder, size: tuple[int, int], dynamic: bool, outputs: list[str]) -> Any:
    inputs = module.inputs
    example = (torch.rand(2, 3, *size), torch.full((2,), float(size[1])))[: len(inputs)]
    dimension = torch.export.Dim
    images = dimension("images", min=1, max=4096)
    shapes: dict[str, Any] = {"image": {0: images}, "f_px": {0: images}}
    if dynamic:
        multiple = encoder.stride if encoder.input_size is None else 1
        rows, columns = dimension("rows", min=2, max=8192), dimension("columns", min=2, max=8192)
        shapes["image"] |= {2: multiple * rows if multiple > 1 else rows, 3: multiple * columns if multiple > 1 else columns}
    with _quiet(), torch.no_grad():
        try:
            traced = torch.export.export(module, example, dynamic_shapes={name: shapes[name] for name in inputs}, strict=False)
            program = torch.onnx.export(
                traced, dynamo=True, verbose=False, input_names=list(inputs), output_names=outputs, opset_version=OPSET
            )
        except Exception as error:  # the exporter has many types for: this operation has no ONNX
            first = " ".join(str(error.__cause__ or error).split())[:300]
            raise ValueError(
                f"torch cannot turn this {type(module.network).__name__} into ONNX ({type(error).__name__}: {first}); "
                "use --format pretrained"
            ) from error
    assert program is not None
    return program


def _metadata(encoder: TimmEncoder, space: DepthSpace, size: tuple[int, int] | None, facts: dict[str, Any]) -> dict[str, str]:
    multiple = encoder.stride if encoder.input_size is None else 1
    height_width = f"H and W any multiples of {multiple}" if size is None else f"H = {size[0]}, W = {size[1]}"
    properties = {
        "image": f"float32 [B, 3, H, W], sRGB in [0, 1], {height_width}",
        "depth_space": space.value,
        "opset": str(OPSET),
        "facts": json.dumps(facts),
    }
    if space is DepthSpace.CANONICAL_INVERSE:
        properties["f_px"] = "float32 [B], focal length in pixels of the image that is given (scale it when the image is resized)"
        properties["canonical_inverse_depth"] = "f_px / (W * depth_m)"
    if space in (DepthSpace.CANONICAL_INVERSE, DepthSpace.METRIC):
        properties["depth_m"] = "z-depth in metres, along the optical axis"
    if fingerprint := facts.get("fingerprint"):
        properties["fingerprint"] = str(fingerprint)
    return {f"mdpretrain.{name}": value for name, value in properties.items()}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings are about itself."""
    loggers = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
