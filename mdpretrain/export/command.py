"""``mdpretrain import-weights`` and ``mdpretrain export``."""

from __future__ import annotations

import argparse
import pathlib

from mdpretrain.export.onnx_file import export_onnx
from mdpretrain.export.point_map import import_point_map
from mdpretrain.export.pretrained import Weights, export_pretrained
from mdpretrain.export.reading import import_weights
from mdpretrain.export.student import import_student
from mdpretrain.export.writing import export

FORMATS = ("pretrained", "onnx", "transformers", "original")


def import_weights_command(argv: list[str]) -> int:
    """``mdpretrain import-weights [--from FAMILY] SOURCE --output FILE.safetensors``."""
    parser = argparse.ArgumentParser(prog="mdpretrain import-weights", description="Released weights -> a checkpoint of mdpretrain.")
    what = (
        "whose weights they are: PromptDA's or metric Depth Anything V2's (prompt-da, the default), MetricAnything's Student-DepthMap, "
        "or MoGe-2's, as which its Student-PointMap is released, too"
    )
    families = ("prompt-da", "metric-anything-student", "moge-2")
    parser.add_argument("--from", dest="family", choices=families, default="prompt-da", help=what)
    what = (
        "prompt-da: a folder of transformers (of metric, not of relative depth), or a checkpoint file of the original repositories; "
        "metric-anything-student: student_depthmap.pt; moge-2: model.pt"
    )
    parser.add_argument("source", type=pathlib.Path, metavar="SOURCE", help=what)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the .safetensors file to write")
    what = "prompt-da: what the output spans in an image without prompt (default: the source's, or 20)"
    parser.add_argument("--max-depth-m", type=float, help=what)
    options = parser.parse_args(argv)
    if options.family != "prompt-da":
        if options.max_depth_m is not None:
            raise ValueError("--max-depth-m is for --from prompt-da; the student's depth is not spanned by a number")
        imported = import_student if options.family == "metric-anything-student" else import_point_map
        print(f"wrote {imported(options.source, options.output)}")
        return 0
    print(f"wrote {import_weights(options.source, options.output, options.max_depth_m)}")
    return 0


def export_command(argv: list[str]) -> int:
    """``mdpretrain export RUN --output WHERE [--format pretrained|onnx|transformers|original]``."""
    parser = argparse.ArgumentParser(prog="mdpretrain export", description="A checkpoint -> files that others load.")
    what = "a run folder (its newest checkpoint), RUN/checkpoints/best, a checkpoint file or a pretrained folder"
    parser.add_argument("checkpoint", type=pathlib.Path, metavar="CHECKPOINT", help=what)
    where = "what to write, which may not exist: a folder (pretrained, transformers), a .onnx file, or (original) a .ckpt or .pt file"
    parser.add_argument("--output", type=pathlib.Path, required=True, help=where)
    forms = "pretrained (the default, for every network): loads with mdpretrain.load; onnx: prompt-free networks; transformers: "
    forms += "networks that transformers has a class for; original: PromptDA's (.ckpt) or MetricAnything's release (.pt)"
    parser.add_argument("--format", choices=FORMATS, default="pretrained", help=forms)
    parser.add_argument("--ema", action="store_true", help="the averaged weights (ema_decay) in place of the trained ones")
    parser.add_argument("--dtype", choices=("float32", "bf16"), default="float32", help="pretrained: bf16 halves the file, and rounds")
    parser.add_argument("--license", metavar="NAME", help="pretrained: the weights' licence (apache-2.0, cc-by-nc-4.0, ...) for the card")
    size = "onnx: HEIGHT WIDTH of the image, or dynamic (the default): any multiples of the patch"
    parser.add_argument("--size", nargs="+", default=["dynamic"], metavar="N", help=size)
    options = parser.parse_args(argv)
    weights: Weights = "ema" if options.ema else "trained"
    _refuse_options_of_others(options)
    if options.format == "pretrained":
        print(f"wrote {export_pretrained(options.checkpoint, options.output, weights, options.dtype, options.license)}")
        return 0
    if options.format == "onnx":
        report = export_onnx(options.checkpoint, options.output, _image_size(options.size), weights)
        print(f"wrote {report.path}: onnxruntime equals torch within {report.largest:.1e} relative at {', '.join(report.differences)}")
        return 0
    print(f"wrote {export(options.checkpoint, options.output, options.format, weights)}")
    return 0


def _refuse_options_of_others(options: argparse.Namespace) -> None:
    """Raise ValueError for an option that the chosen form would not look at."""
    given = {
        "--dtype": ("pretrained", options.dtype != "float32"),
        "--license": ("pretrained", options.license is not None),
        "--size": ("onnx", options.size != ["dynamic"]),
    }
    for name, (form, there) in given.items():
        if there and options.format != form:
            raise ValueError(f"{name} belongs to --format {form}; leave it out for {options.format}")


def _image_size(words: list[str]) -> tuple[int, int] | None:
    if words == ["dynamic"]:
        return None
    if len(words) == 2 and all(word.isdigit() and int(word) > 0 for word in words):
        return int(words[0]), int(words[1])
    raise ValueError(f"--size {' '.join(words)}: give a height and a width in pixels, or the word dynamic")
