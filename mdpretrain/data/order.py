"""The order inside one source: which sample its n-th draw is, as a pure function of (seed, source name, n).

A pass over a source shows every sample once. Its samples, laid end to end over its shards, are cut into *blocks* of
neighbours (never across two shards); each pass permutes the blocks, takes them in *windows* of a few dozen and permutes
the samples of a window. So a pass is shuffled over the whole source, while at any moment only the blocks of one window
are being read, each a contiguous range of bytes. There is no cursor: draw n is computed, not reached. A source with few
shards needs no special case, because blocks are ranges of samples. ``docs/streaming.md`` argues and measures this.

Permutations are orders of hashed counters (splitmix64 with a blake2b key), not of a library's generator, so that they
are the same on every machine, in every process and with every version of numpy.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import numpy as np

ORDER_VERSION = 1
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step from one state to the next
Value = TypeVar("Value")


def hash_key(*parts: object) -> int:
    """A 64-bit number that depends on every part and on nothing else (not on PYTHONHASHSEED, not on the process)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def keyed_permutation(count: int, key: int) -> np.ndarray:
    """A pseudo-random permutation of ``range(count)``, int64 ``(count,)``: the order of splitmix64's first ``count`` outputs."""
    return np.argsort(mix64(np.arange(1, count + 1, dtype=np.uint64) * GOLDEN + np.uint64(key)), kind="stable")


def mix64(state: np.ndarray) -> np.ndarray:
    """splitmix64's output function, element by element, uint64: every bit of the result depends on every bit of ``state``."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@dataclasses.dataclass(frozen=True)
class ShuffleOptions:
    """How far samples are mixed. Part of the order: changing either number changes which sample comes when.

    Args:
        block_samples: neighbours in a shard that are read together; larger reads are kinder to disks and object stores.
        window_samples: samples that are permuted among each other; two neighbours of a shard end up about a third of this apart.
    """

    block_samples: int = 64
    window_samples: int = 4096

    def __post_init__(self) -> None:
        if not 1 <= self.block_samples <= self.window_samples:
            raise ValueError(
                f"shuffle: block_samples {self.block_samples} and window_samples {self.window_samples} must satisfy 1 <= block <= window"
            )


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One pass over a source: the blocks' order, and where each window begins in blocks and in samples."""

    block_order: np.ndarray
    window_blocks: np.ndarray
    window_starts: np.ndarray


class _Recent:
    """The last few values of a pure function of its key; small, because a reader moves on."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.values: collections.OrderedDict[Hashable, object] = collections.OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key not in self.values:
            self.values[key] = make()
            if len(self.values) > self.capacity:
                self.values.popitem(last=False)
        self.values.move_to_end(key)
        return self.values[key]  # type: ignore[return-value]


class SourceOrder:
    """The endless order of one source's samples.

    Args:
        name: the source's name in the mixture; two sources of one size must not have the same order.
        seed: the run's seed.
        shard_sizes: samples in each shard, in the shards' order.
        shuffle: block and window.

    Raises:
        ValueError: the source has no samples.
    """

    def __init__(self, name: str, seed: int, shard_sizes: Sequence[int], shuffle: ShuffleOptions) -> None:
        self.name = name
        self.seed = seed
        self.shuffle = shuffle
        self.size = int(sum(shard_sizes))
        if self.size == 0:
            raise ValueError(f"source {name!r}: its shards hold no samples; take it out of the mixture or build it again")
        self._block_sizes, self._block_starts = _cut_blocks(shard_sizes, shuffle.block_samples)
        self._passes = _Recent(2)
        self._windows = _Recent(4)

    def index(self, draw: int, attempt: int = 0) -> int:
        """The sample (0 <= index < size, shards laid end to end) of draw ``draw`` >= 0.

        ``attempt`` > 0 is the substitute after that many bad samples: the sample ``attempt`` places further on in the same pass.
        """
        epoch, place = divmod(draw, self.size)
        place = (place + attempt) % self.size
        samples, start = self._window_at(epoch, place)
        return int(samples[place - start])

    def indices(self, first: int, count: int) -> np.ndarray:
        """The samples of draws ``first`` ... ``first + count - 1``, int64 ``(count,)``: ``index`` of each, window by window."""
        result = np.empty(count, dtype=np.int64)
        done = 0
        while done < count:
            epoch, place = divmod(first + done, self.size)
            samples, start = self._window_at(epoch, place)
            part = samples[place - start :][: count - done]
            result[done : done + len(part)] = part
            done += len(part)
        return result

    def _window_at(self, epoch: int, place: int) -> tuple[np.ndarray, int]:
        """The samples of the window that holds ``place`` of pass ``epoch``, in their order, and the window's first place."""
        plan = self._passes.get(epoch, lambda: self._plan(epoch))
        window = int(np.searchsorted(plan.window_starts, place, side="right")) - 1
        samples = self._windows.get((epoch, window), lambda: self._samples_of_window(plan, epoch, window))
        return samples, int(plan.window_starts[window])

    def _plan(self, epoch: int) -> _Pass:
        blocks = len(self._block_sizes)
        order = keyed_permutation(blocks, hash_key(self.seed, self.name, "blocks", epoch))
        # Windows of equal numbers of blocks: a short last window would mix its few samples badly.
        windows = max(1, round(self.size / self.shuffle.window_samples))
        windows = min(windows, blocks)
        window_blocks = np.arange(windows + 1) * blocks // windows
        starts = np.concatenate([[0], np.cumsum(self._block_sizes[order])])[window_blocks[:-1]]
        return _Pass(order, window_blocks, starts)

    def _samples_of_window(self, plan: _Pass, epoch: int, window: int) -> np.ndarray:
        blocks = plan.block_order[plan.window_blocks[window] : plan.window_blocks[window + 1]]
        sizes = self._block_sizes[blocks]
        ends = np.cumsum(sizes)
        samples = np.arange(ends[-1]) + np.repeat(self._block_starts[blocks] - (ends - sizes), sizes)
        return samples[keyed_permutation(len(samples), hash_key(self.seed, self.name, "window", epoch, window))]


def _cut_blocks(shard_sizes: Sequence[int], block_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and first samples of the blocks: each shard is cut into nearly equal pieces of at most ``block_samples``."""
    sizes: list[int] = []
    for shard in shard_sizes:
        pieces = -(-shard // block_samples)
        sizes += [(shard * (piece + 1)) // pieces - (shard * piece) // pieces for piece in range(pieces)]
    block_sizes = np.asarray(sizes, dtype=np.int64)
    return block_sizes, np.cumsum(block_sizes) - block_sizes
