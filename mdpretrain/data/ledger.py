"""What was delivered: a running hash that goes into every checkpoint and, where asked for, every key in compact files.

The hash is the sum, over all samples that training was given, of a 128-bit hash of (global position, source, key). A sum does
not depend on who adds up which part, so every process hashes its own samples without waiting for anybody, and the parts are
joined when a checkpoint is written. Because each term holds its position, a sample that is lost, repeated, swapped or
substituted changes the sum. The terms are computed from what arrived (the key stands in the sample's own meta.json), not from
the plan. The hash guards against faults, not against forgery.

The ledger's files: ``ledger/session_0001/plan.json`` (from which step, in which layout, under which mixture a start of the run
went on) and ``rank_0000.txt.gz``, one line ``STEP POSITION ROW:KEY ROW:KEY ...`` per batch of that process: ``zcat`` shows them.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.atomic import write_atomically
from mdpretrain.data.faults import BadSample, FaultLog
from mdpretrain.data.order import GOLDEN, hash_key, mix64

LEDGER_FOLDER = "ledger"
PLAN_FILE = "plan.json"
LANES = (0x243F6A8885A308D3, 0x13198A2E03707344)  # two 64-bit sums; their salts are digits of pi
FLUSH_CHARACTERS, FLUSH_SECONDS = 1 << 15, 5.0
GZIP = 31  # zlib's number for "a gzip file"
_SESSION = re.compile(r"session_(\d{4,})")
_RANK = re.compile(r"rank_(\d{4,})\.txt\.gz")


def key_digest(source: str, key: str) -> int:
    """64 bits that stand for a sample of a row of the mixture."""
    return hash_key(source, key)


def delivery_hash(positions: np.ndarray, digests: np.ndarray) -> tuple[int, int]:
    """The sum of the hashes of samples: int64 ``positions`` (n,), uint64 ``digests`` (n,) of their keys."""
    places = positions.astype(np.uint64) * GOLDEN
    return tuple(int(mix64(mix64(places + np.uint64(salt)) ^ digests).sum(dtype=np.uint64)) for salt in LANES)  # type: ignore[return-value]


def add_hashes(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """The hash of both sets of samples."""
    return (one[0] + other[0]) % 2**64, (one[1] + other[1]) % 2**64


def hash_text(value: tuple[int, int]) -> str:
    """32 hexadecimal digits."""
    return f"{value[0]:016x}{value[1]:016x}"


def hash_from_text(text: str) -> tuple[int, int]:
    """Inverse of ``hash_text``."""
    return int(text[:16], 16), int(text[16:], 16)


@dataclasses.dataclass(frozen=True)
class _Receipt:
    """What one step brought to this process."""

    step: int
    hash: tuple[int, int]
    samples: int
    bad: collections.Counter[str]
    line: str


class DeliveryRecord:
    """Keeps the account of one process: hash, number of samples, bad samples per source, and the ledger's lines.

    A delivered batch is pending until its step is finished; only finished steps enter the state.

    Args:
        names: the rows of the mixture.
        faults: where bad samples are listed.
        base: the ``state`` of the checkpoint that the run goes on from, None at the start of a run.
        open_ledger: opens the file where keys are written, None for nowhere; called at the first batch, by every process together.
        join: adds up a list of integers over all processes, element by element; called by every process at the same steps.
    """

    def __init__(
        self,
        names: Sequence[str],
        faults: FaultLog | None = None,
        base: dict[str, Any] | None = None,
        open_ledger: Callable[[], LedgerWriter] | None = None,
        join: Callable[[list[int]], list[int]] | None = None,
    ) -> None:
        self.names = list(names)
        self.faults = faults or FaultLog(None)
        self.ledger: LedgerWriter | None = None
        self._open_ledger = open_ledger
        self._join = join or (lambda values: values)
        self._base = base or {"hash": hash_text((0, 0)), "samples": 0, "bad": {}}
        self._pending: collections.deque[_Receipt] = collections.deque()
        self._hash, self._samples = (0, 0), 0
        self._bad: collections.Counter[str] = collections.Counter()

    def take_over(self, other: DeliveryRecord, steps: int) -> None:
        """Go on with the account of an earlier loader of this process, which delivered the first ``steps`` steps."""
        other.close(steps)
        self._base, self._hash, self._samples, self._bad = other._base, other._hash, other._samples, other._bad.copy()

    def add(self, step: int, positions: np.ndarray, rows: Sequence[int], keys: Sequence[str], bad: Sequence[BadSample]) -> None:
        """Take note of a batch of consecutive ``positions``, of the mixture's ``rows`` and the samples' ``keys``."""
        assert (np.diff(positions) == 1).all(), "a process's part of a global batch is one range of positions"
        if self._open_ledger is not None and self.ledger is None:
            self.ledger = self._open_ledger()
        self.faults.record(bad)
        digests = np.array([key_digest(self.names[row], key) for row, key in zip(rows, keys, strict=True)], dtype=np.uint64)
        line = "" if self.ledger is None else f"{step} {positions[0]} {' '.join(f'{row}:{key}' for row, key in zip(rows, keys))}\n"
        counts = collections.Counter(one.source for one in bad)
        self._pending.append(_Receipt(step, delivery_hash(positions, digests), len(keys), counts, line))

    def settle(self, steps: int) -> None:
        """The steps before ``steps`` are finished."""
        while self._pending and self._pending[0].step < steps:
            receipt = self._pending.popleft()
            self._hash = add_hashes(self._hash, receipt.hash)
            self._samples += receipt.samples
            self._bad.update(receipt.bad)
            if self.ledger is not None:
                self.ledger.write(receipt.line)

    def bad_so_far(self) -> dict[str, int]:
        """Bad samples per source in everything delivered, over all processes and the whole run; every process calls it together."""
        own = self._bad + sum((receipt.bad for receipt in self._pending), collections.Counter())
        joined = self._join([own[name] for name in self.names])
        return {name: count + self._base["bad"].get(name, 0) for name, count in zip(self.names, joined)}

    def state(self, steps: int) -> dict[str, Any]:
        """The account of the first ``steps`` steps over all processes, as JSON values; every process calls it together.

        What it counts is on the disk when it returns, so that no checkpoint knows of more than the ledger.
        """
        self.settle(steps)
        if self.ledger is not None:
            self.ledger.sync()
        self.faults.sync()
        limbs = [lane >> shift & 0xFFFFFFFF for lane in self._hash for shift in (0, 32)]  # 32 bits each: their sum has room
        low, high, low2, high2, samples, *bad = self._join([*limbs, self._samples, *(self._bad[name] for name in self.names)])
        joined = ((low + (high << 32)) % 2**64, (low2 + (high2 << 32)) % 2**64)
        base = self._base
        counts = {name: count + base["bad"].get(name, 0) for name, count in zip(self.names, bad)}
        return {
            "hash": hash_text(add_hashes(hash_from_text(base["hash"]), joined)),
            "samples": samples + base["samples"],
            "bad": {name: count for name, count in counts.items() if count},
        }

    def close(self, steps: int) -> None:
        """Write what is finished and close the ledger."""
        self.settle(steps)
        if self.ledger is not None:
            self.ledger.close()


class LedgerWriter:
    """One process's file of one session. Lines reach the disk every few seconds and before every checkpoint."""

    def __init__(self, session: Path, rank: int) -> None:
        session.mkdir(parents=True, exist_ok=True)
        self._file = open(session / f"rank_{rank:04d}.txt.gz", "wb", buffering=0)  # noqa: SIM115 (closed by close)
        self._packer = zlib.compressobj(6, zlib.DEFLATED, GZIP)
        self._lines: list[str] = []
        self._characters = 0
        self._last_flush = time.monotonic()

    def write(self, line: str) -> None:
        self._lines.append(line)
        self._characters += len(line)
        if self._characters > FLUSH_CHARACTERS or time.monotonic() - self._last_flush > FLUSH_SECONDS:
            self._flush(zlib.Z_SYNC_FLUSH)

    def sync(self) -> None:
        """Everything written is on the disk."""
        self._flush(zlib.Z_SYNC_FLUSH)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """The file is a whole gzip file; nothing can be written any more."""
        if not self._file.closed:
            self._flush(zlib.Z_FINISH)
            self._file.close()

    def _flush(self, how: int) -> None:
        text = "".join(self._lines)
        self._lines, self._characters, self._last_flush = [], 0, time.monotonic()
        if text or how == zlib.Z_FINISH:
            self._file.write(self._packer.compress(text.encode()) + self._packer.flush(how))


@dataclasses.dataclass(frozen=True)
class Line:
    """One batch of one process: ``rows[i]:keys[i]`` at position ``first + i``."""

    step: int
    first: int
    rows: list[int]
    keys: list[str]


@dataclasses.dataclass(frozen=True)
class Session:
    """One start of a run: its folder and what its ``plan.json`` says."""

    folder: Path
    number: int
    plan: dict[str, Any]

    def rank_files(self) -> dict[int, Path]:
        """rank -> its file."""
        found = {int(match[1]): path for path in self.folder.iterdir() if (match := _RANK.fullmatch(path.name))}
        return dict(sorted(found.items()))


def next_session(ledger: Path) -> int:
    """The number of a new session."""
    return max((session.number for session in _session_folders(ledger)), default=0) + 1


def write_plan(ledger: Path, number: int, plan: dict[str, Any]) -> None:
    """Begin session ``number`` with its ``plan.json``."""
    folder = session_folder(ledger, number)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PLAN_FILE, (json.dumps(plan, indent=1) + "\n").encode())


def session_folder(ledger: Path, number: int) -> Path:
    """``ledger/session_0001``."""
    return ledger / f"session_{number:04d}"


def read_sessions(ledger: Path) -> list[Session]:
    """The sessions of a ledger, oldest first; one that was killed before it wrote its plan trained on nothing and is left out.

    Raises:
        ValueError: a damaged ``plan.json``, named.
    """
    sessions = []
    for session in _session_folders(ledger):
        path = session.folder / PLAN_FILE
        if path.is_file():
            try:
                sessions.append(dataclasses.replace(session, plan=json.loads(path.read_bytes())))
            except ValueError as error:
                raise ValueError(f"{path}: is damaged ({error}); the ledger cannot be read without it") from error
    return sessions


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of one process, in the order in which they were written.

    A killed process may leave half a line, which is dropped: its step is in no checkpoint.

    Raises:
        ValueError: damaged bytes or a line of another form, naming the file.
    """
    unpacker, rest = zlib.decompressobj(GZIP), b""
    with open(path, "rb") as file:
        while chunk := file.read(1 << 18):
            try:
                *lines, rest = (rest + unpacker.decompress(chunk)).split(b"\n")
            except zlib.error as error:
                raise ValueError(f"{path}: is damaged ({error})") from error
            yield from (_parse(line, path) for line in lines)


def _parse(line: bytes, path: Path) -> Line:
    try:
        step, first, *samples = line.decode().split(" ")
        pairs = [sample.split(":", 1) for sample in samples]
        return Line(int(step), int(first), [int(row) for row, _ in pairs], [key for _, key in pairs])
    except ValueError as error:
        raise ValueError(f"{path}: a line is damaged: {line[:80]!r} ({error})") from error


def _session_folders(ledger: Path) -> list[Session]:
    found = [(int(match[1]), path) for path in ledger.iterdir() if (match := _SESSION.fullmatch(path.name))] if ledger.is_dir() else []
    return [Session(path, number, {}) for number, path in sorted(found)]
