"""A folder of images: read ahead, predicted in batches of one size, written behind, continued where an earlier call was interrupted.

One image that cannot be read or predicted is named, counted and survived. What ends the call: a network that cannot give metres of any
image, a disk that is full, another network's predictions in the output folder, Ctrl-C (no half file is left; the same call continues).
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from data_shards.atomic import remove_temporary_files, write_atomically
from data_shards.progress import progress_bar
from mdpretrain.inference.batches import NetworkSize
from mdpretrain.inference.depth_map import DepthMap
from mdpretrain.inference.formats import WriteOptions
from mdpretrain.inference.model import DepthModel, UnknownFocalLength, UnsuitableNetwork
from mdpretrain.inference.photographs import Photograph, read_photograph
from mdpretrain.inference.writers import is_whole, write_prediction

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif", ".jp2", ".avif")
READERS = WRITERS = 2
DAY_S = 86400.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One image and where its files go."""

    image: pathlib.Path
    folder: pathlib.Path
    stem: str


@dataclasses.dataclass
class FolderResult:
    """``failed``: an image and why; ``kept``: predicted by an earlier call; ``estimated``: with a focal length that a network estimated."""

    predicted: int = 0
    kept: int = 0
    estimated: int = 0
    failed: list[tuple[pathlib.Path, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class FolderRequest:
    """How the images of a folder are predicted and written.

    Args:
        size: as the network sees them.
        options: formats.
        settings: what decides the files, for ``is_whole``.
        batch_size: images of one size that go through the network together.
        focal_px: of every image; None: EXIF's, or an estimate.
        overwrite: keep nothing of an earlier call.
        quiet: no progress bar.
    """

    size: NetworkSize
    options: WriteOptions
    settings: Mapping[str, Any]
    batch_size: int = 8
    focal_px: float | None = None
    overwrite: bool = False
    quiet: bool = False


def list_jobs(root: pathlib.Path, output: pathlib.Path, recursive: bool) -> list[Job]:
    """The images of a folder in the order of their names; ``recursive`` goes into its folders, too, and the output has the same ones.

    Raises:
        ValueError: no image there, two images whose files would have one name, or an output folder whose pictures the next call would read.
    """
    inside = output.resolve() == root.resolve() or (recursive and root.resolve() in output.resolve().parents)
    if inside:
        raise ValueError(f"--output {output}: lies inside {root}, so its pictures would be read as images; choose a folder beside it")
    found = root.rglob("*") if recursive else root.iterdir()
    images = sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not images:
        deeper = "" if recursive else " (--recursive looks into its folders, too)"
        raise ValueError(f"{root}: holds no image ({', '.join(IMAGE_SUFFIXES)}){deeper}")
    jobs = [Job(path, output / path.parent.relative_to(root), path.stem) for path in images]
    taken: dict[pathlib.Path, pathlib.Path] = {}
    for job in jobs:
        target = job.folder / job.stem
        if target in taken:
            raise ValueError(f"{taken[target]} and {job.image}: their files would have one name; rename one, or give it another --output")
        taken[target] = job.image
    return jobs


def predict_folder(model: DepthModel, jobs: Sequence[Job], request: FolderRequest) -> FolderResult:
    """Predict and write every image that no earlier call has.

    Raises:
        ValueError: a network that needs a prompt or has no metres, what ``is_whole`` refuses, or a file that cannot be written.
    """
    if model.needs_prompt:
        raise ValueError(f"{model.name} is a prompted network: a folder or a video has no prompt to give it; use a student, or one image")
    for folder in {job.folder for job in jobs if job.folder.is_dir()}:
        remove_temporary_files(folder, DAY_S)
    pending = [job for job in jobs if request.overwrite or not _is_done(job, request)]
    result = FolderResult(kept=len(jobs) - len(pending))
    with (
        progress_bar(len(jobs), "image", "predict", request.quiet, initial=result.kept) as bar,
        _Writing(request) as writing,
    ):
        for group in _grouped(model, _read_ahead(pending, request.focal_px), request, result, bar):
            for job, depth in _predicted(model, group, request, result, bar):
                writing.add(job, depth)
                result.predicted += 1
                result.estimated += depth.photo.f_px_is_estimate
                bar.update(1)
    return result


def write_failures(path: pathlib.Path, failed: Sequence[tuple[pathlib.Path, str]]) -> None:
    """One line of json an image; no file where none failed."""
    if failed:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"image": str(image), "reason": reason}) + "\n" for image, reason in failed]
        write_atomically(path, "".join(lines).encode())
    else:
        path.unlink(missing_ok=True)


def _is_done(job: Job, request: FolderRequest) -> bool:
    """Whole, of equal settings, and not older than the image."""
    if not is_whole(job.folder, job.stem, request.options, request.settings):
        return False
    return (job.folder / f"{job.stem}.json").stat().st_mtime >= job.image.stat().st_mtime


Read = tuple[Job, Photograph]


def _read_ahead(jobs: Sequence[Job], focal_px: float | None) -> Iterator[tuple[Job, Photograph | ValueError]]:
    """Photographs in order, a few of them read while the network works."""

    def read(job: Job) -> Photograph | ValueError:
        try:
            return read_photograph(job.image, focal_px)
        except ValueError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(READERS) as executor:
        running: collections.deque[tuple[Job, concurrent.futures.Future[Photograph | ValueError]]] = collections.deque()
        try:
            for job in jobs:
                running.append((job, executor.submit(read, job)))
                if len(running) > 2 * READERS:
                    first, future = running.popleft()
                    yield first, future.result()
            while running:
                first, future = running.popleft()
                yield first, future.result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)


def _grouped(
    model: DepthModel, reads: Iterator[tuple[Job, Photograph | ValueError]], request: FolderRequest, result: FolderResult, bar: tqdm
) -> Iterator[list[Read]]:
    """Photographs that can share a batch. At most four batches of pixels wait, then the kind that has waited longest goes, full or not."""
    waiting: dict[tuple[int, int, bool], list[Read]] = {}
    for job, photo in reads:
        if isinstance(photo, ValueError):
            _fail(job, photo, result, bar)
            continue
        kind = model.kind(photo, request.size)
        waiting.setdefault(kind, []).append((job, photo))
        if len(waiting[kind]) == request.batch_size:
            yield waiting.pop(kind)
        elif sum(map(len, waiting.values())) >= 4 * request.batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _predicted(
    model: DepthModel, group: list[Read], request: FolderRequest, result: FolderResult, bar: tqdm
) -> Iterator[tuple[Job, DepthMap]]:
    """The group's depth maps; where the batch fails, each image by itself, so that only what is at fault is lost."""
    try:
        depths = model.predict_batch([photo for _, photo in group], request.size)
    except UnsuitableNetwork:  # no image would fare better: not a finding of this one
        raise
    except ValueError as error:
        if len(group) == 1 or isinstance(error, UnknownFocalLength):  # all of a group know their focal length, or none does
            for job, _ in group:
                _fail(job, error, result, bar)
            return
        for one in group:
            yield from _predicted(model, [one], request, result, bar)
        return
    yield from ((job, depth) for (job, _), depth in zip(group, depths))


def _fail(job: Job, error: ValueError, result: FolderResult, bar: tqdm) -> None:
    reason = " ".join(str(error).split())
    result.failed.append((job.image, reason))
    bar.write(f"not predicted: {reason}", file=sys.stderr)
    bar.update(1)


class _Writing:
    """Encodes and writes while the network works; what cannot be written ends the call."""

    def __init__(self, request: FolderRequest) -> None:
        self._request = request
        self._executor = concurrent.futures.ThreadPoolExecutor(WRITERS)
        self._running: collections.deque[concurrent.futures.Future[Any]] = collections.deque()

    def __enter__(self) -> _Writing:
        return self

    def add(self, job: Job, depth: DepthMap) -> None:
        write = (job.folder, job.stem, depth.depth_m, depth.photo, depth.how, self._request.options, self._request.settings)
        self._running.append(self._executor.submit(write_prediction, *write))
        while len(self._running) > 4 * WRITERS:
            self._running.popleft().result()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            for future in self._running:
                future.result()
