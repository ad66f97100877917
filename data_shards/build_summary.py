"""The end of a build, or of a job array (``data-shards merge``): keys checked across shards, then the folder's summary files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.atomic import write_atomically
from data_shards.build_state import ChunkResult, clean, finished_chunk, summary_lock, task_marks
from data_shards.index import load_index
from data_shards.parallel import parallel_map
from data_shards.shard_table import DATASET_FILE, write_table

REJECTS_FILE = "rejects.jsonl"
FEW_SHARDS = 64  # not worth worker processes
SUMMARY_FIELDS = ("samples", "rejected", "filtered", "shards", "content_sha256", "complete")


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """What a build has made; ``reused``: nothing was left to do; ``whole`` is False for one task of several, before the merge."""

    output: Path
    samples: int
    rejected: int
    filtered: int
    shards: tuple[str, ...]
    reused: bool
    first_reason: str | None
    whole: bool = True


def chunk_names(source: str, items: int, items_per_shard: int) -> list[str]:
    """The file name of each chunk's shard."""
    return [f"{source}-{number:06d}.tar" for number in range(-(-items // items_per_shard))]


def finished_chunks(output: Path, shards: list[str], fingerprint: str, workers: int) -> dict[str, ChunkResult]:
    """Those of the chunks that are finished, by the name of their shard."""
    checks = [(output, shard, fingerprint) for shard in shards]
    results = parallel_map(_finished, checks, workers if len(shards) > FEW_SHARDS else 1)
    return {result.shard: result for result in results if result is not None}


def _finished(check: tuple[Path, str, str]) -> ChunkResult | None:
    return finished_chunk(*check)


def merge(output: Path, workers: int = 1) -> BuildResult:
    """Complete a build whose tasks are all done.

    Raises:
        ValueError: there is no such build, or chunks are missing: names them, and the tasks they belong to.
    """
    record = _record_of(output / DATASET_FILE)
    shards = chunk_names(record["source"], record["items"], record["items_per_shard"])
    finished = finished_chunks(output, shards, record["fingerprint"], workers)
    if missing := [number for number, shard in enumerate(shards) if shard not in finished]:
        raise ValueError(f"{output}: {len(missing)} of {len(shards)} chunks are not built: {_whose(output, missing, shards)}")
    return summarise(output, record, [finished[shard] for shard in shards], workers, reused=False)


def summarise(output: Path, record: dict[str, Any], results: list[ChunkResult], workers: int, reused: bool) -> BuildResult:
    """Write the table of shards and the two summary files; the same results give the same bytes.

    Raises:
        ValueError: a key is in two shards; the file system refuses.
    """
    shards = [result.shard for result in results if result.samples]
    content = _check_keys(output, shards, workers)
    rejects = [reject | {"shard": result.shard} for result in results for reject in result.rejects]
    counts = {name: sum(getattr(result, name) for result in results) for name in ("samples", "filtered")} | {"rejected": len(rejects)}
    counts = {name: counts[name] for name in ("samples", "rejected", "filtered")}
    with summary_lock(output):
        if shards:
            write_table(output)
        write_atomically(output / REJECTS_FILE, "".join(json.dumps(reject) + "\n" for reject in rejects).encode())
        summary = record | counts | {"shards": shards, "content_sha256": content, "complete": True}
        write_atomically(output / DATASET_FILE, json_bytes(summary))
        for _, _, mark in task_marks(output):
            mark.unlink(missing_ok=True)
    clean(output, leftovers=True)
    return BuildResult(output, **counts, shards=tuple(shards), reused=reused, first_reason=rejects[0]["reason"] if rejects else None)


def json_bytes(record: dict[str, Any]) -> bytes:
    """How dataset.json is written."""
    return (json.dumps(record, indent=1) + "\n").encode()


def _record_of(path: Path) -> dict[str, Any]:
    """The arguments of the build, from its dataset.json."""
    try:
        record = json.loads(path.read_bytes())
        return {name: value for name, value in record.items() if name not in SUMMARY_FIELDS} | {
            "items": int(record["items"]),
            "items_per_shard": int(record["items_per_shard"]),
            "source": str(record["source"]),
            "fingerprint": str(record["fingerprint"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not the record of a build ({error!r}); give the folder that `data-shards build` wrote to") from error


def _whose(output: Path, missing: list[int], shards: list[str]) -> str:
    names = ", ".join(shards[number] for number in missing[:5]) + (", ..." if len(missing) > 5 else "")
    marks = task_marks(output)
    if not marks or marks[-1][1] == 1:
        return f"{names}; run `data-shards build` again"
    count = marks[-1][1]
    started = {task for task, tasks, _ in marks if tasks == count}
    tasks = sorted({number % count for number in missing})
    said = ", ".join(f"{task} ({'interrupted' if task in started else 'never started'})" for task in tasks)
    return f"{names}; run these of the {count} tasks again (--task-id T --num-tasks {count}): {said}"


def _check_keys(output: Path, shards: list[str], workers: int) -> str:
    """sha256 over the shards' own; refuses a key that is in two shards. Compares 64-bit hashes, then the keys whose hashes are equal:
    twenty million keys take 160 MB, not gigabytes."""
    content, hashes = hashlib.sha256(), [np.zeros(0, np.uint64)]
    for sha256, own in parallel_map(_digest, [output / shard for shard in shards], workers if len(shards) > FEW_SHARDS else 1):
        content.update(sha256.encode())
        hashes.append(own)
    ordered = np.sort(np.concatenate(hashes))
    suspects = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    where: dict[str, str] = {}
    for shard in shards if suspects else []:
        for entry in load_index(output / shard).entries:
            if _hash(entry.key) in suspects:
                if entry.key in where:
                    places = f"{where[entry.key]} and in {shard}"
                    raise ValueError(f"{output}: the key {entry.key!r} is in {places}; keys must be unique in a source")
                where[entry.key] = shard
    return content.hexdigest()


def _digest(path: Path) -> tuple[str, np.ndarray]:
    index = load_index(path)
    return index.sha256, np.array([_hash(entry.key) for entry in index.entries], dtype=np.uint64)


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
