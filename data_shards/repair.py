"""``data-shards repair``: a good tar and index from what a damaged tar still holds, and the list of what it does not.

Without ``output`` and ``in_place`` nothing is written. Where the names are taken (always in place), the files that have them stay as
``X.tar.damaged`` and ``X.index.json.damaged``; a run that is killed between two renames is completed by the next one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_shards.atomic import TEMPORARY_MARK, sync_folder, write_atomically
from data_shards.checksum import sha256_of
from data_shards.index import ShardIndex, build_index, index_path, list_shards
from data_shards.parallel import parallel_map
from data_shards.progress import progress_bar
from data_shards.salvage import Loss, Salvage, salvage
from data_shards.shard_table import TABLE_FILE, write_table
from data_shards.storage.address import ShardPath
from data_shards.verify import local_paths
from data_shards.writer import ShardWriter

DAMAGED_SUFFIX = ".damaged"


@dataclasses.dataclass(frozen=True)
class Repair:
    """What became of one shard.

    ``damage`` is 'none', 'index' (the tar is good) or 'tar'; ``exact``: the good tar has the bytes that the old index promises;
    ``written`` is the good tar, or None.
    """

    shard: Path
    damage: str
    saved: int = 0
    losses: tuple[Loss, ...] = ()
    exact: bool = False
    written: Path | None = None


def repair(paths: Sequence[ShardPath], output: Path | None, in_place: bool, workers: int = 1, quiet: bool = False) -> list[Repair]:
    """Examine and mend the shards that folders and single tars name, in their order.

    Raises:
        ValueError: a path is no shard, an earlier repair's ``.damaged`` file is in the way, the file system refuses.
    """
    shards = [shard for path in local_paths(paths) for shard in _shards(path)]
    if output is not None:
        names = [shard.name for shard in shards]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two shards are called {twice[0]}; repair them one by one, each into an --output of its own")
        if any(shard.parent.resolve() == output.resolve() for shard in shards):
            raise ValueError(f"--output {output} is where the damaged shards are; choose another folder, or --in-place")
        with _named(output):
            output.mkdir(parents=True, exist_ok=True)
    mend = functools.partial(_repair, output=output, in_place=in_place)
    done = []
    with progress_bar(len(shards), "shard", "repair", quiet) as bar:
        for result in parallel_map(mend, shards, workers):
            done.append(result)
            bar.update()
    for folder in sorted({result.written.parent for result in done if result.written is not None}):
        if (folder / TABLE_FILE).exists() and all(index_path(shard).exists() for shard in list_shards(folder)):
            write_table(folder)
    return done


def _shards(path: Path) -> list[Path]:
    """The tars of a folder, those included that a killed repair in place has renamed but not yet replaced."""
    if path.suffix == ".tar" and (path.is_file() or _damaged(path).is_file()):
        return [path]
    renamed = [other.with_suffix("") for other in path.glob(f"*.tar{DAMAGED_SUFFIX}")] if path.is_dir() else []
    if renamed and not next(path.glob("*.tar"), None):
        return sorted(renamed)
    return sorted({*list_shards(path), *renamed})


def _damaged(path: Path) -> Path:
    return path.with_name(path.name + DAMAGED_SUFFIX)


def _repair(shard: Path, output: Path | None, in_place: bool) -> Repair:
    renamed = not shard.exists()  # by a repair in place that was killed before it could give the new tar its name
    index_file = _damaged(index_path(shard)) if renamed and _damaged(index_path(shard)).exists() else index_path(shard)
    with _named(shard):
        found = salvage(_damaged(shard) if renamed else shard, index_file)
        damage = "tar" if renamed else _damage(shard, found)
        result = Repair(shard, damage, len(found.samples), tuple(found.losses))
        target = shard if in_place else None if output is None else output / shard.name
        if damage == "none" or target is None or not found.samples:
            return result
        if damage == "index" and in_place:
            _keep(index_file)
            write_atomically(index_path(shard), build_index(shard).to_bytes())
            return dataclasses.replace(result, written=shard)
        index = _write(found, target)
    exact = found.index is not None and found.index.sha256 == index.sha256
    return dataclasses.replace(result, exact=exact, written=target)


def _damage(shard: Path, found: Salvage) -> str:
    if found.index is not None:
        return "none" if not found.losses and found.index.sha256 == sha256_of(shard) else "tar"
    try:
        build_index(shard)
    except ValueError:
        return "tar"
    return "tar" if found.losses else "index"


def _write(found: Salvage, target: Path) -> ShardIndex:
    """The whole samples as a new shard; files that have its names already are renamed, the tar first."""
    for leftover in target.parent.glob(f"{target.stem}.*{TEMPORARY_MARK}*"):  # of a repair that was killed
        leftover.unlink(missing_ok=True)
    figures = {} if found.index is None else {entry.key: entry.figures for entry in found.index.entries}
    writer = ShardWriter(target)
    try:
        for key, members in found.members():
            entry = writer.add(key, members)
            writer.entries[-1] = dataclasses.replace(entry, figures=figures.get(key))
        writer.finish()
        if target.exists():
            _keep(target)
        if index_path(target).exists() and not _damaged(index_path(target)).exists():
            _keep(index_path(target))
        return writer.publish()
    except BaseException:
        writer.discard()
        raise


def _keep(path: Path) -> None:
    """Rename a damaged file."""
    if _damaged(path).exists():
        raise ValueError(f"{_damaged(path)}: left by an earlier repair; move it away first")
    if path.exists():
        path.rename(_damaged(path))
        sync_folder(path.parent)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
