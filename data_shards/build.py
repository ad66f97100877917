"""``data-shards build``: a raw source becomes a folder of shards, in parallel, and the same folder however often it is interrupted.

The item list is cut into fixed chunks, and each chunk becomes one shard; which samples a shard holds depends on the arguments only.
Beside the shards lie ``dataset.json`` (what was built from what), ``rejects.jsonl`` (what was left out, and why) and ``.build/``
(which chunks are done, for continuing).
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_shards.atomic import write_atomically
from data_shards.build_state import STATE_FOLDER, ChunkResult, claim_machine_paths, clean, mark_task, summary_lock
from data_shards.build_summary import DATASET_FILE, BuildResult, chunk_names, finished_chunks, json_bytes, summarise
from data_shards.build_tasks import ONLY_TASK, Task
from data_shards.build_worker import Chunk, GroupFilter, ShardSettings, build_chunk, build_chunk_in_worker, from_input, start_worker
from data_shards.parallel import process_pool
from data_shards.progress import progress_bar
from data_shards.schema import SCHEMA_VERSION
from data_shards.sources.base import Source, SourceItem
from data_shards.sources.registry import make_source

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


def build(
    request: BuildRequest,
    output: Path | str,
    workers: int = 1,
    start_method: str = "fork",
    quiet: bool = False,
    task: Task = ONLY_TASK,
) -> BuildResult:
    """Build the shards of ``request`` into ``output``; what an earlier, equal build has done is kept, finished or not.

    With a ``task`` of several only its share is built, and ``build_summary.merge`` completes the folder when all are done.

    Raises:
        ValueError: the source refuses its input or options, ``output`` holds a build with other arguments, a key comes twice, the
            disk is full, the input went away, a worker died, another build writes the same shard.
        KeyboardInterrupt: workers are stopped first; the same call continues.
    """
    output = Path(output).resolve()
    if request.input_path is not None:
        request = dataclasses.replace(request, input_path=Path(request.input_path).resolve())
    source = make_source(request.source, request.input_path, request.options)
    items = _items(source, request)
    record = _record(request, items)
    chunks = [chunk for chunk in _chunks(request.source, items, record["items_per_shard"]) if task.owns(chunk.number)]
    _make_folder(output)
    with summary_lock(output):
        _claim(output, request, record, task)
    clean(output, leftovers=False)
    results = finished_chunks(output, [chunk.shard for chunk in chunks], record["fingerprint"], workers)
    pending = [chunk for chunk in chunks if chunk.shard not in results]
    if pending:
        with summary_lock(output):
            write_atomically(output / DATASET_FILE, json_bytes(record | {"complete": False}))
        settings = ShardSettings(
            source, request.input_path, request.groups, output, request.container, request.quantisation, record["fingerprint"]
        )
        try:
            for result in _run(settings, pending, workers, start_method, sum(len(c.items) for c in chunks), quiet):
                results[result.shard] = result
        except BaseException:
            clean(output, leftovers=False)
            raise
    ordered = [results[chunk.shard] for chunk in chunks]
    return summarise(output, record, ordered, workers, reused=not pending) if task.count == 1 else _part(output, ordered, not pending)


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
        "options": {name: _portable(value, request.input_path) for name, value in sorted(request.options.items())},
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


def _portable(option: str, input_path: Path | None) -> str:
    """An option without this machine's paths: dataset.json is the same wherever the same data are built (see ``_machine_paths``)."""
    text = option if input_path is None else from_input(option, input_path)
    return Path(text).name if Path(text).is_absolute() else text


def _machine_paths(request: BuildRequest) -> dict[str, str]:
    """What ``_portable`` leaves out: absolute paths, kept in .build only, so that two inputs are never mixed."""
    options = {f"option {name}": value for name, value in sorted(request.options.items()) if Path(value).is_absolute()}
    return options | ({} if request.input_path is None else {"input": str(request.input_path)})


def _chunks(name: str, items: list[SourceItem], size: int) -> list[Chunk]:
    names = chunk_names(name, len(items), size)
    return [Chunk(number, shard, tuple(items[number * size : (number + 1) * size])) for number, shard in enumerate(names)]


def _make_folder(output: Path) -> None:
    try:
        (output / STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{output}: cannot be made ({error.strerror}); choose another --output") from error


def _claim(output: Path, request: BuildRequest, record: dict[str, Any], task: Task) -> None:
    """Make the folder this build's own, or refuse one with other shards."""
    _refuse_other_build(output, record)
    if paths := _machine_paths(request):
        claim_machine_paths(output, paths)
    if not (output / DATASET_FILE).exists():
        write_atomically(output / DATASET_FILE, json_bytes(record | {"complete": False}))
    if task.count > 1:
        mark_task(output, task.number, task.count)


def _part(output: Path, results: list[ChunkResult], reused: bool) -> BuildResult:
    """What one task of several has made."""
    rejects = [reject for result in results for reject in result.rejects]
    return BuildResult(
        output,
        samples=sum(result.samples for result in results),
        rejected=len(rejects),
        filtered=sum(result.filtered for result in results),
        shards=tuple(result.shard for result in results if result.samples),
        reused=reused,
        first_reason=rejects[0]["reason"] if rejects else None,
        whole=False,
    )


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
    counters = multiprocessing.get_context(start_method).Array("q", 2)
    seen = [0, 0]
    with process_pool(min(workers, len(pending)), start_method, start_worker, (settings, counters)) as executor:
        waiting = {executor.submit(build_chunk_in_worker, chunk) for chunk in pending}
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED)
            now = list(counters[:])
            report(now[0] - seen[0], now[1] - seen[1])
            seen = now
            for future in done:
                yield future.result()
