"""Video files, read and written frame by frame with PyAV (``pip install 'mdpretrain[predict]'``).

PyAV and not OpenCV: it keeps each frame's time stamp exactly (phones record at a varying rate), tells damage from the end, knows how the
phone was held, and writes H.264, which browsers play; OpenCV's wheels do none of that.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np

from data_shards.atomic import FileAside

ENCODERS = ("libx264", "mpeg4")  # the first that this PyAV has
QUALITY = {"libx264": {"crf": "18", "preset": "medium"}, "mpeg4": {"qscale": "3"}}
UNSTATED_RATE = Fraction(30)  # of a file that states none, as raw streams do


def require_av() -> None:
    """Ask for PyAV before any work.

    Raises:
        ValueError: it is not installed.
    """
    if importlib.util.find_spec("av") is None:
        raise ValueError("a video needs PyAV, which is not installed: pip install 'mdpretrain[predict]'")


@dataclasses.dataclass(frozen=True)
class VideoFrame:
    """``time`` is in units of the video's ``time_base``."""

    number: int
    pixels: np.ndarray  # uint8 (H, W, 3) RGB, upright
    time: int


@dataclasses.dataclass(frozen=True)
class Video:
    """What a video file states of itself; ``frame_count`` is counted in it, not taken from its header."""

    path: pathlib.Path
    frame_count: int
    rate: Fraction
    time_base: Fraction

    def frames(self) -> Iterator[VideoFrame]:
        """Every frame in the order in which they are shown, one in memory at a time, turned as the player would turn it.

        Raises:
            ValueError: a damaged frame, naming its number.
        """
        import av

        number = 0
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for number, frame in enumerate(container.decode(stream)):
                    time = number * _ticks(self.rate, self.time_base) if frame.pts is None else frame.pts
                    yield VideoFrame(number, _upright(frame.to_ndarray(format="rgb24"), frame.rotation), time)
        except (av.FFmpegError, OSError) as error:
            raise ValueError(f"{self.path}: damaged after frame {number} of {self.frame_count} ({error}); copy the video again") from error


def open_video(path: pathlib.Path) -> Video:
    """Count the frames of a video, without decoding them.

    Raises:
        ValueError: no such file, no video in it, PyAV missing.
    """
    require_av()
    import av

    if not path.is_file():
        raise ValueError(f"{path}: there is no such video")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate, time_base = stream.average_rate or UNSTATED_RATE, stream.time_base
            count = sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a video ({error})") from error
    if count == 0:
        raise ValueError(f"{path}: holds no frame of video")
    return Video(path, count, Fraction(rate), Fraction(time_base or 1 / rate))


class VideoWriter:
    """An mp4 of frames of one size at given times, written aside: it has its name when it is whole, and a call that fails leaves nothing.

    Args:
        path: the file.
        rate, time_base: of the video that it follows.
    """

    def __init__(self, path: pathlib.Path, rate: Fraction, time_base: Fraction) -> None:
        import av

        self.path = path
        self._rate, self._time_base = rate, time_base
        self._aside = FileAside(path)
        self._container: Any = av.open(str(self._aside.temporary), "w", format="mp4")
        self._stream: Any = None

    def write(self, picture: np.ndarray, time: int) -> None:
        """Append a frame, uint8 (H, W, 3) RGB; odd sides are made even by repeating the last row or column, as H.264 asks."""
        import av

        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._stream is None:
            encoder = next(name for name in ENCODERS if name in av.codecs_available)
            self._stream = self._container.add_stream(encoder, rate=self._rate, options=QUALITY[encoder])
            self._stream.width, self._stream.height, self._stream.pix_fmt = picture.shape[1], picture.shape[0], "yuv420p"
            self._stream.codec_context.time_base = self._time_base
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame.pts, frame.time_base = time, self._time_base
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None:
                self._aside.finish()
                self._aside.publish()
        finally:
            self._aside.discard()


def _ticks(rate: Fraction, time_base: Fraction) -> int:
    return max(1, round(1 / (rate * time_base)))


def _upright(pixels: np.ndarray, rotation_degrees: int) -> np.ndarray:
    """Turned counter-clockwise by what the file states, in quarter turns."""
    return np.ascontiguousarray(np.rot90(pixels, round(rotation_degrees / 90) % 4))
