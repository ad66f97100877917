"""Single frames of a video by their number, without decoding the whole of it for each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.sources.base import RejectedSample

LIBRARIES = ("av",)


@functools.lru_cache(maxsize=1)
def open_video(path: Path) -> Video:
    """The video, kept open: a worker reads the frames of one recording after each other."""
    return Video(path)


class Video:
    """Frames are numbered from 0 in the order in which they are shown, by their time stamps (phones record at a varying rate)."""

    def __init__(self, path: Path) -> None:
        """RejectedSample if the file is missing or holds no video."""
        import av

        self.path = path
        try:
            with av.open(str(path)) as container:
                self.times = sorted(packet.pts for packet in container.demux(container.streams.video[0]) if packet.pts is not None)
            self._container = av.open(str(path))
        except (av.FFmpegError, IndexError, OSError) as error:
            raise RejectedSample(f"{path}: not a readable video ({error}); copy it again") from error
        self._stream = self._container.streams.video[0]
        self._next = 0
        self._frames: Iterator[Any] = self._container.decode(self._stream)

    def frame(self, number: int) -> np.ndarray:
        """Pixels (height, width, 3) of uint8, red first, as stored: a rotation that players would apply is not.

        The frame after the last one is decoded next; any other is looked for from the key frame before it.

        Raises:
            RejectedSample: the video has no such frame, or it cannot be decoded.
        """
        import av

        if not 0 <= number < len(self.times):
            raise RejectedSample(f"{self.path}: has {len(self.times)} frames, none with number {number}; copy it again")
        try:
            if number != self._next:
                self._container.seek(self.times[number], stream=self._stream)
                self._frames = self._container.decode(self._stream)
            self._next = -1  # until this frame is found
            image = next((frame for frame in self._frames if frame.pts is not None and frame.pts >= self.times[number]), None)
        except av.FFmpegError as error:
            raise RejectedSample(f"{self.path}: frame {number} cannot be decoded ({error}); copy the video again") from error
        if image is None or image.pts != self.times[number]:
            raise RejectedSample(f"{self.path}: frame {number} cannot be decoded; copy the video again")
        self._next = number + 1
        return image.to_ndarray(format="rgb24")
