"""A video in, a video of its depth out: same frames at the same times, coloured on one scale, in bounded memory.

Two passes. The first looks at a few frames spread over the video and fixes what must not flicker: the near and far end of the colours
and, where a network has to estimate it, the focal length. The second predicts every frame by itself.
"""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
from collections.abc import Iterator

import numpy as np

from data_shards.atomic import remove_temporary_files
from data_shards.colour import DepthScale, depth_scale
from data_shards.progress import progress_bar
from mdpretrain.inference.batches import NetworkSize
from mdpretrain.inference.folder import DAY_S
from mdpretrain.inference.formats import WriteOptions
from mdpretrain.inference.model import DepthModel
from mdpretrain.inference.photographs import Photograph
from mdpretrain.inference.video_files import Video, VideoFrame, VideoWriter
from mdpretrain.inference.writers import write_prediction

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".wmv")
FRAMES_LOOKED_AT = 16
KEPT_OF_EACH = 64  # rows and columns of their depth, for the scale: a few thousand values say the percentiles


@dataclasses.dataclass(frozen=True)
class VideoRequest:
    """How a video is predicted and written.

    Args:
        size: of its frames as the network sees them.
        frame_options: formats of single frames, written into ``STEM_frames/``; None for none.
        batch_size: frames that go through the network together.
        focal_px: in pixels of a frame; None: estimated, or not needed.
        scale: near and far end of the colours in metres; None: the 1st and 99th percentile over frames spread over the video.
        side_by_side: the frame beside its depth.
        quiet: no progress bar.
    """

    size: NetworkSize
    frame_options: WriteOptions | None = None
    batch_size: int = 8
    focal_px: float | None = None
    scale: DepthScale | None = None
    side_by_side: bool = False
    quiet: bool = False


@dataclasses.dataclass(frozen=True)
class VideoResult:
    """The depth video, the frames in it, its colours' scale, and the camera all frames were predicted with."""

    path: pathlib.Path
    frames: int
    scale: DepthScale
    f_px: float | None
    f_px_source: str


def predict_video(model: DepthModel, video: Video, output: pathlib.Path, request: VideoRequest) -> VideoResult:
    """Write ``STEM_depth.mp4`` into ``output`` and, where asked for, files of every frame.

    Raises:
        ValueError: a prompted network, a damaged video, a focal length that is needed and missing, or a file that cannot be written.
    """
    if model.needs_prompt:
        raise ValueError(f"{model.name} is a prompted network: a folder or a video has no prompt to give it; use a student, or one image")
    output.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(output, DAY_S)
    scale, camera = _look(model, video, request)
    path = output / f"{video.path.stem}_depth.mp4"
    options = None if request.frame_options is None else dataclasses.replace(request.frame_options, colour_scale=scale)
    frames = 0
    with (
        progress_bar(video.frame_count, "frame", "predict", request.quiet) as bar,
        VideoWriter(path, video.rate, video.time_base) as writer,
    ):
        for group in _batches(video.frames(), request.batch_size):
            photos = [_photograph(video, frame, camera) for frame in group]
            for frame, depth in zip(group, model.predict_batch(photos, request.size)):
                picture = scale.colour(depth.depth_m)
                writer.write(np.concatenate([frame.pixels, picture], axis=1) if request.side_by_side else picture, frame.time)
                if options is not None:
                    folder = output / f"{video.path.stem}_frames"
                    write_prediction(folder, f"{frame.number:06d}", depth.depth_m, depth.photo, depth.how, options)
                frames += 1
            bar.update(len(group))
    return VideoResult(path, frames, scale, camera.f_px, camera.f_px_source)


def _look(model: DepthModel, video: Video, request: VideoRequest) -> tuple[DepthScale, Photograph]:
    """The scale of the colours, and a photograph whose camera is every frame's."""
    step = max(1, video.frame_count // FRAMES_LOOKED_AT)
    given = Photograph(video.path.name, np.zeros((1, 1, 3), np.uint8), request.focal_px, "--focal-px" if request.focal_px else "unknown")
    kept, cameras = [], []
    with progress_bar(None, "frame", "look", request.quiet) as bar:
        chosen = (frame for frame in video.frames() if frame.number % step == step // 2)
        for group in _batches(chosen, request.batch_size):
            depths = model.predict_batch([_photograph(video, frame, given) for frame in group], request.size)
            kept += [_thinned(depth.depth_m) for depth in depths]
            cameras += [depth.photo for depth in depths]
            bar.update(len(group))
    if not cameras:
        raise ValueError(f"{video.path}: none of its {video.frame_count} frames can be decoded; copy the video again")
    return request.scale or depth_scale(*kept), _one_camera(cameras)


def _one_camera(cameras: list[Photograph]) -> Photograph:
    """The median of the estimates, where it is estimates: frames of one video have one focal length."""
    first = cameras[0]
    if not first.f_px_is_estimate:
        return first
    focals = [camera.f_px for camera in cameras if camera.f_px is not None]
    return dataclasses.replace(first, f_px=statistics.median(focals), f_px_source=f"{first.f_px_source}, median of {len(focals)} frames")


def _photograph(video: Video, frame: VideoFrame, camera: Photograph) -> Photograph:
    return dataclasses.replace(camera, name=f"{video.path.name} frame {frame.number}", pixels=frame.pixels)


def _thinned(depth_m: np.ndarray) -> np.ndarray:
    rows, columns = (max(1, side // KEPT_OF_EACH) for side in depth_m.shape)
    return depth_m[rows // 2 :: rows, columns // 2 :: columns]


def _batches(frames: Iterator[VideoFrame], size: int) -> Iterator[list[VideoFrame]]:
    group: list[VideoFrame] = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
