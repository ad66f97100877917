"""``mdpretrain predict``: an image, a folder of images or a video in, depth out."""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

from data_shards.cli_verb import FINDINGS, GOOD, INTERRUPTED
from data_shards.colour import DepthScale
from mdpretrain.inference.batches import DEFAULT_LONG_SIDE, NetworkSize
from mdpretrain.inference.folder import FolderRequest, list_jobs, predict_folder, write_failures
from mdpretrain.inference.formats import FORMATS, MILLIMETRES, WriteOptions, format_names
from mdpretrain.inference.loading import load
from mdpretrain.inference.model import DepthModel
from mdpretrain.inference.photographs import check_focal, read_photograph, read_prompt
from mdpretrain.inference.video import VIDEO_SUFFIXES, VideoRequest, predict_video
from mdpretrain.inference.video_files import open_video
from mdpretrain.inference.writers import write_prediction
from mdpretrain.tasks.predictor import add_weights_option

FAILED_FILE = "failed.jsonl"


def predict_command(argv: list[str]) -> int:
    """``mdpretrain predict INPUT --checkpoint CKPT [--focal-px F] [--prompt depth.png] [--write npy,exr,glb] ...``.

    Returns:
        0; 1 where images of a folder could not be predicted; 130 after Ctrl-C.
    """
    options = _parser().parse_args(argv)
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size}: give a positive number")
    check_focal(options.focal_px, "--focal-px")
    _size(options, DEFAULT_LONG_SIDE)  # a size that is none is refused before the network is read
    is_video = options.input.suffix.lower() in VIDEO_SUFFIXES
    kind = "a folder" if options.input.is_dir() else "a video" if is_video else "an image"
    _refuse_options_of_others(options, kind)
    predict = {"a folder": _predict_folder, "a video": _predict_video, "an image": _predict_image}[kind]
    try:
        return predict(options)
    except KeyboardInterrupt:
        print(
            f"\nmdpretrain predict: interrupted; what is in {options.output} is whole, and the same call continues a folder",
            file=sys.stderr,
        )
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mdpretrain predict", description="Depth of an image, a folder of images or a video.")
    path = pathlib.Path
    parser.add_argument("input", type=path, help="an image, a folder of images, or a video file")
    parser.add_argument("--checkpoint", type=path, required=True, help="checkpoint, run folder, pretrained folder, or transformers' folder")
    parser.add_argument("--output", type=path, default=path("predictions"), help="folder for the files (default: predictions)")
    names = f"formats, comma-separated: {','.join(FORMATS)} (default {','.join(WriteOptions().formats)}; of a video's frames: none)"
    parser.add_argument("--write", type=format_names, metavar="FORMATS", help=names)
    parser.add_argument(
        "--png-scale", type=float, default=MILLIMETRES, help="codes per metre of png16 (default 1000: millimetres to 65.5 m)"
    )
    parser.add_argument("--focal-px", type=float, help="focal length in pixels of the image; EXIF is read when left out")
    parser.add_argument(
        "--focal-from", type=path, metavar="CHECKPOINT", help="a point-map student that estimates it where EXIF does not say it"
    )
    parser.add_argument("--prompt", type=path, help="of one image: sparse or low-resolution metric depth: 16-bit png, or npy in metres")
    parser.add_argument("--prompt-scale", type=float, default=1000.0, help="png units per metre (default 1000: millimetres)")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument(
        "--image-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="size the network sees, the image squeezed into it"
    )
    usual = f"the network's own, {DEFAULT_LONG_SIDE} where it takes any size"
    seen.add_argument("--long-side", type=int, help=f"the longer side the network sees, aspect kept (default: {usual})")
    seen.add_argument("--native-size", action="store_true", help="the network sees the image at its own size")
    parser.add_argument("--batch-size", type=int, default=8, help="images of one size that go through the network together")
    parser.add_argument("--precision", choices=("32", "bf16", "16"), default="32", help="of the network's arithmetic; half is for GPUs")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--recursive", action="store_true", help="a folder's folders, too")
    parser.add_argument("--overwrite", action="store_true", help="of a folder: predict anew what is there already")
    parser.add_argument(
        "--range", type=float, nargs=2, metavar=("NEAR", "FAR"), help="metres at the ends of the colours (default: from depth)"
    )
    parser.add_argument("--side-by-side", action="store_true", help="of a video: the frame beside its depth")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_weights_option(parser)
    return parser


def _refuse_options_of_others(options: argparse.Namespace, kind: str) -> None:
    """Raise ValueError for an option that the input would not look at."""
    given = (("--recursive", "a folder", options.recursive), ("--side-by-side", "a video", options.side_by_side))
    for name, needed, there in given:
        if there and kind != needed:
            raise ValueError(f"{name} is for {needed}, and {options.input} is {kind}; leave it out")


def _size(options: argparse.Namespace, usual_long_side: int) -> NetworkSize:
    image_size = None if options.image_size is None else (options.image_size[0], options.image_size[1])
    long_side = usual_long_side if options.long_side is None else options.long_side
    return NetworkSize(None if options.native_size or image_size else long_side, image_size)


def _load(options: argparse.Namespace) -> DepthModel:
    return load(options.checkpoint, options.device, options.precision, options.weights, options.focal_from)


def _write_options(options: argparse.Namespace) -> WriteOptions:
    return WriteOptions(options.write or WriteOptions().formats, options.png_scale, _scale(options.range))


def _scale(limits: list[float] | None) -> DepthScale | None:
    if limits is None:
        return None
    if not 0 < limits[0] < limits[1]:
        raise ValueError(f"--range {limits[0]:g} {limits[1]:g}: give metres with 0 < NEAR < FAR")
    return DepthScale(*limits)


def _predict_image(options: argparse.Namespace) -> int:
    formats = _write_options(options)
    photo = read_photograph(options.input, options.focal_px)
    prompt_m = None if options.prompt is None else [read_prompt(options.prompt, options.prompt_scale)]
    model = _load(options)
    depth = model.predict_batch([photo], _size(options, model.long_side), prompt_m)[0]
    written = write_prediction(
        options.output, options.input.stem, depth.depth_m, depth.photo, depth.how, formats, _settings(options, model)
    )
    print(f"focal length: {_focal(depth.f_px, depth.f_px_source)}")
    for line in [*(f"wrote {file}" for file in written.files), *written.notes]:
        print(line)
    return GOOD


def _predict_folder(options: argparse.Namespace) -> int:
    _refuse_prompt(options)
    formats = _write_options(options)
    jobs = list_jobs(options.input, options.output, options.recursive)
    model = _load(options)
    settings = _settings(options, model)
    size = _size(options, model.long_side)
    request = FolderRequest(size, formats, settings, options.batch_size, options.focal_px, options.overwrite, options.quiet)
    result = predict_folder(model, jobs, request)
    write_failures(options.output / FAILED_FILE, result.failed)
    kept = f", {result.kept} were there already" if result.kept else ""
    estimated = f" ({result.estimated} with an estimated focal length, see their .json)" if result.estimated else ""
    print(f"{options.output}: {result.predicted} of {len(jobs)} images predicted{estimated}{kept}")
    if result.failed:
        print(f"{len(result.failed)} not predicted, see {options.output / FAILED_FILE}; the first: {result.failed[0][1]}", file=sys.stderr)
    return FINDINGS if result.failed else GOOD


def _predict_video(options: argparse.Namespace) -> int:
    _refuse_prompt(options)
    scale = _scale(options.range)
    frames = None if options.write is None else _write_options(options)
    video = open_video(options.input)
    model = _load(options)
    size = _size(options, model.long_side)
    request = VideoRequest(size, frames, options.batch_size, options.focal_px, scale, options.side_by_side, options.quiet)
    result = predict_video(model, video, options.output, request)
    print(f"focal length: {_focal(result.f_px, result.f_px_source)}")
    print(f"wrote {result.path}: {result.frames} frames, {result.scale.near:.3g} m (warm) to {result.scale.far:.3g} m (cold), logarithmic")
    return GOOD


def _refuse_prompt(options: argparse.Namespace) -> None:
    if options.prompt is not None:
        raise ValueError(f"--prompt {options.prompt}: belongs to one image, and {options.input} has more; predict them one by one")


def _settings(options: argparse.Namespace, model: DepthModel) -> dict[str, Any]:
    """What decides the content of the files, beside the image and the formats."""
    return {
        "network": model.fingerprint(),
        "focal_from": None if model.focal_model is None else model.focal_model.fingerprint(),
        "focal_px": options.focal_px,
        "long_side": _size(options, model.long_side).long_side,
        "image_size": options.image_size,
        "precision": options.precision,
        "range": options.range,
    }


def _focal(f_px: float | None, source: str) -> str:
    return "unknown" if f_px is None else f"{f_px:.1f} px ({source})"
