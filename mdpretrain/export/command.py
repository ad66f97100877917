"""``mdpretrain import-weights`` and ``mdpretrain export``."""

from __future__ import annotations

import argparse
import pathlib

from mdpretrain.export.point_map import import_point_map
from mdpretrain.export.reading import import_weights
from mdpretrain.export.student import import_student
from mdpretrain.export.writing import export


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
    """``mdpretrain export RUN --output FOLDER``."""
    parser = argparse.ArgumentParser(prog="mdpretrain export", description="A PromptDA checkpoint -> files that other programs load.")
    what = "a run folder (its newest checkpoint), RUN/checkpoints/best or a checkpoint file"
    parser.add_argument("checkpoint", type=pathlib.Path, metavar="CHECKPOINT", help=what)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        required=True,
        help="the folder (transformers) or the .ckpt file (original) to write; neither may exist",
    )
    parser.add_argument(
        "--format", choices=("transformers", "original"), default="transformers", help="whose files (default: transformers)"
    )
    parser.add_argument("--ema", action="store_true", help="the averaged weights (ema_decay) in place of the trained ones")
    options = parser.parse_args(argv)
    print(f"wrote {export(options.checkpoint, options.output, options.format, options.ema)}")
    return 0
