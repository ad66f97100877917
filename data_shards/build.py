"""``data-shards build``: a raw source becomes a folder of shards, in parallel, and the same folder however often it is interrupted.

The item list is cut into fixed chunks, and each chunk becomes one shard; which samples a shard holds depends on the arguments only.
Beside the shards lie ``dataset.json`` (what was built from what), ``rejects.jsonl`` (what was left out, and why) and ``.build/``
(which chunks are done, for continuing).
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_shards.atomic import remove_temporary_files, write_atomically
from data_shards.build_worker import (
    STATE_FOLDER,
    Chunk,
    ChunkResult,
    GroupFilter,
    ShardSettings,
    build_chunk,
    build_chunk_in_worker,
    finished_chunk,
    start_worker,
)
from data_shards.index import load_index
from data_shards.progress import progress_bar
from data_shards.schema import SCHEMA_VERSION
from data_shards.sources.base import Source, SourceItem
from data_shards.sources.registry import make_source

DATASET_FILE = "dataset.json"
REJECTS_FILE = "rejects.jsonl"
LARGEST_DEFAULT_CHUNK = 128
DEFAULT_CHUNKS = 16


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What to build; everything here, and nothing else, decides the bytes of the shards (given the same raw files)."""

    source: str
    input_path: Path | None = None
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    groups: GroupFilter = dataclasses.field(default_factory=GroupFilter)
    items_per_shard: int | None = None
    container: str = "pco"
    quantisation: str | None = None


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What the folder holds after a build; ``reused``: nothing was left to do."""

    output: Path
    samples: int
    rejected: int
    filtered: int
    shards: tuple[str, ...]
    reused: bool
    first_reason: str | None


def build(request: BuildRequest, output: Path | str, workers: int = 1, start_method: str = "fork", quiet: bool = False) -> BuildResult:
    """Build the shards of ``request`` into ``output``; finished chunks of an earlier, equal build are kept.

    Raises:
        ValueError: the source refuses its input or options, ``output`` holds a build with other arguments, a key comes twice, the
            disk is full, the input went away, a worker died.
        KeyboardInterrupt: workers are stopped first; the same call continues.
    """
    output = Path(output).resolve()
    if request.input_path is not None:
        request = dataclasses.replace(request, input_path=Path(request.input_path).resolve())
    source = make_source(request.source, request.input_path, request.options)
    items = _items(source, request)
    record = _record(request, items)
    chunks = _chunks(request.source, items, record["items_per_shard"])
    _make_folder(output)
    with _locked(output):
        _refuse_other_build(output, record)
        remove_temporary_files(output)
        remove_temporary_files(output / STATE_FOLDER)
        results = {chunk.shard: done for chunk in chunks if (done := finished_chunk(output, chunk.shard)) is not None}
        pending = [chunk for chunk in chunks if chunk.shard not in results]
        if pending:
            write_atomically(output / DATASET_FILE, _json_bytes(record | {"complete": False}))
            settings = ShardSettings(source, request.input_path, request.groups, output, request.container, request.quantisation)
            for result in _run(settings, pending, workers, start_method, sum(len(c.items) for c in chunks), quiet):
                results[result.shard] = result
        return _finish(output, record, [results[chunk.shard] for chunk in chunks], reused=not pending)


def default_items_per_shard(items: int) -> int:
    """At least 16 shards where there are enough items (they are what workers share out), at most 128 items in each."""
    return max(1, min(LARGEST_DEFAULT_CHUNK, math.ceil(items / DEFAULT_CHUNKS)))


def _items(source: Source, request: BuildRequest) -> list[SourceItem]:
    items = source.items()
    if not items:
        raise ValueError(f"source {request.source!r} finds no items in {request.input_path}; is this the folder you mean?")
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise ValueError(f"source {request.source!r} lists the item key {item.key!r} twice; keys must be unique")
        seen.add(item.key)
    # Where items already name their group, the ones that were not asked for are never read.
    kept = [item for item in items if request.groups.keeps(str(item.payload["group"]))] if "group" in items[0].payload else items
    if not kept:
        groups = sorted({str(item.payload["group"]) for item in items})
        raise ValueError(f"--only / --exclude leave no group; there are {', '.join(groups[:20])}{' ...' if len(groups) > 20 else ''}")
    return kept


def _record(request: BuildRequest, items: list[SourceItem]) -> dict[str, Any]:
    """The arguments as they stand in dataset.json, and the fingerprint that tells equal builds from others."""
    arguments: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": request.source,
        "input": None if request.input_path is None else str(request.input_path),
        "options": dict(sorted(request.options.items())),
        "only": list(request.groups.only),
        "exclude": list(request.groups.exclude),
        "container": request.container,
        "quantisation": request.quantisation or "auto",
        "items": len(items),
        "items_per_shard": request.items_per_shard or default_items_per_shard(len(items)),
    }
    if arguments["items_per_shard"] < 1:
        raise ValueError(f"--items-per-shard {request.items_per_shard}: at least 1")
    keys = hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()
    fingerprint = hashlib.sha256(json.dumps([arguments, keys], sort_keys=True).encode()).hexdigest()
    return arguments | {"item_keys_sha256": keys, "fingerprint": fingerprint}


def _chunks(name: str, items: list[SourceItem], size: int) -> list[Chunk]:
    return [
        Chunk(f"{name}-{number:06d}.tar", tuple(items[start : start + size])) for number, start in enumerate(range(0, len(items), size))
    ]


def _make_folder(output: Path) -> None:
    try:
        (output / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be made ({error.strerror}); choose another --output") from error


@contextlib.contextmanager
def _locked(output: Path) -> Iterator[None]:
    """One build per folder. The lock is the kernel's and ends with the process, however that ends."""
    with open(output / STATE_FOLDER / "lock", "w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{output}: another build is writing here; wait for it, or choose another --output") from error
        except OSError:
            pass  # a file system without locks: two builds at once still write equal bytes
        yield


def _refuse_other_build(output: Path, record: dict[str, Any]) -> None:
    path = output / DATASET_FILE
    if not path.exists():
        if next(output.glob("*.tar"), None) is not None:
            raise ValueError(f"{output}: holds shards that no build of this program wrote (no {DATASET_FILE}); choose an empty --output")
        return
    try:
        earlier = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); delete the folder or choose another --output") from error
    if earlier.get("fingerprint") != record["fingerprint"]:
        different = [name for name in record if name != "fingerprint" and earlier.get(name) != record[name]] or ["fingerprint"]
        changes = "; ".join(f"{name} was {earlier.get(name)!r}, now {record[name]!r}" for name in different[:3])
        raise ValueError(f"{output}: holds a build with other arguments ({changes}); choose another --output or delete this one")


def _run(settings: ShardSettings, pending: list[Chunk], workers: int, start_method: str, total: int, quiet: bool) -> Iterator[ChunkResult]:
    initial = total - sum(len(chunk.items) for chunk in pending)
    with progress_bar(total, "item", settings.source.name, quiet, initial) as bar:
        rejected = 0

        def report(done: int, newly_rejected: int) -> None:
            nonlocal rejected
            rejected += newly_rejected
            if newly_rejected:
                bar.set_postfix(rejected=rejected, refresh=False)
            bar.update(done)

        if prepare := getattr(settings.source, "prepare", None):
            prepare()  # what all workers share, made once before they are forked
        if workers <= 1:
            for chunk in pending:
                yield build_chunk(settings, chunk, report)
        else:
            yield from _run_in_processes(settings, pending, workers, start_method, report)


def _run_in_processes(
    settings: ShardSettings, pending: list[Chunk], workers: int, start_method: str, report: Callable[[int, int], None]
) -> Iterator[ChunkResult]:
    context = multiprocessing.get_context(start_method)
    counters = context.Array("q", 2)
    others = set(multiprocessing.active_children())
    executor = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(pending)), context, initializer=start_worker, initargs=(settings, counters, os.getpid())
    )
    seen = [0, 0]
    try:
        waiting = {executor.submit(build_chunk_in_worker, chunk) for chunk in pending}
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED)
            now = list(counters[:])
            report(now[0] - seen[0], now[1] - seen[1])
            seen = now
            for future in done:
                yield future.result()
        executor.shutdown()
    except BaseException as error:
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
            worker.join()
        remove_temporary_files(settings.output)
        remove_temporary_files(settings.output / STATE_FOLDER)
        if isinstance(error, concurrent.futures.process.BrokenProcessPool):
            raise ValueError("a worker process was killed (out of memory?); run the same command again, with fewer --workers") from error
        raise


def _finish(output: Path, record: dict[str, Any], results: list[ChunkResult], reused: bool) -> BuildResult:
    """Check keys across shards, then write the two summary files; the same results give the same bytes."""
    shards = [result.shard for result in results if result.samples]
    where: dict[str, str] = {}
    content = hashlib.sha256()
    for shard in shards:
        index = load_index(output / shard)
        content.update(index.sha256.encode())
        for entry in index.entries:
            if entry.key in where:
                raise ValueError(
                    f"{output}: the key {entry.key!r} is in {where[entry.key]} and in {shard}; keys must be unique in a source"
                )
            where[entry.key] = shard
    rejects = [reject | {"shard": result.shard} for result in results for reject in result.rejects]
    counts = {"samples": len(where), "rejected": len(rejects), "filtered": sum(result.filtered for result in results)}
    write_atomically(output / REJECTS_FILE, "".join(json.dumps(reject) + "\n" for reject in rejects).encode())
    summary = record | counts | {"shards": shards, "content_sha256": content.hexdigest(), "complete": True}
    write_atomically(output / DATASET_FILE, _json_bytes(summary))
    return BuildResult(output, **counts, shards=tuple(shards), reused=reused, first_reason=rejects[0]["reason"] if rejects else None)


def _json_bytes(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1) + "\n").encode()
