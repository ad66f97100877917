"""What a run should have delivered, computed anew from its legs and the shards' indexes: the oracle of an audit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_shards.mixture import MixtureSource
from mdpretrain.data.faults import BadSample
from mdpretrain.data.ledger import key_digest
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.plan import SOURCE_KEYS, Leg, leg_at
from mdpretrain.data.source_reader import SourceReader


class PlannedRun:
    """Position -> the key that the order says, for every leg of a run.

    Args:
        bad: position -> key -> bad sample, as ``bad_samples.jsonl`` lists them.
        moved: source -> folder, for shards that are no longer where the recipe had them.

    Raises (every method):
        ValueError: shards are missing or are not those that the run was trained on; names the source.
    """

    def __init__(self, bad: Mapping[int, Mapping[str, BadSample]], moved: Mapping[str, str]) -> None:
        self.bad = bad
        self.moved = dict(moved)
        self._sources: dict[str, tuple[SourceReader, np.ndarray]] = {}
        self._orders: dict[str, GlobalOrder] = {}

    def digests(self, legs: Sequence[Leg], first_step: int, stop_step: int) -> tuple[int, np.ndarray]:
        """First position, and the digest of the key at every position of steps ``first_step`` ... ``stop_step - 1``; one leg."""
        leg = leg_at(legs, first_step)
        assert leg_at(legs, stop_step - 1) is leg
        first = leg.position(first_step)
        sources, indices = self.order(leg).run(first, leg.position(stop_step) - first)
        result = np.empty(len(indices), dtype=np.uint64)
        for number, name in enumerate(leg.identity["mixture"]):
            own = sources == number
            if own.any():
                result[own] = self._source(leg, name)[1][indices[own]]
        return first, result

    def chain(self, leg: Leg, position: int) -> list[str]:
        """The keys that may stand at a position: the order's own; its substitute if that is listed as bad; and so on."""
        keys: list[str] = []
        order, listed = self.order(leg), self.bad.get(position, {})
        while not keys or (keys[-1] in listed and len(keys) <= len(listed)):
            draw = order(position, len(keys))
            keys.append(self._source(leg, order.names[draw.source])[0].where(draw.index)[1])
        return keys

    def source_at(self, leg: Leg, position: int) -> str:
        """The row that a position draws from."""
        order = self.order(leg)
        return order.names[order(position).source]

    def order(self, leg: Leg) -> GlobalOrder:
        """The order of one leg."""
        identity = json.dumps([leg.first_position, leg.identity, leg.earlier])
        if identity not in self._orders:
            sizes = {name: self._source(leg, name)[0].shard_sizes for name in leg.identity["mixture"]}
            self._orders[identity] = leg.order(sizes)
        return self._orders[identity]

    def _source(self, leg: Leg, name: str) -> tuple[SourceReader, np.ndarray]:
        """A source's reader and the digest of each of its keys."""
        row: dict[str, Any] = leg.identity["mixture"][name]
        wanted = json.dumps([name, *(row.get(key) for key in SOURCE_KEYS)])
        if wanted not in self._sources:
            folder, *sidecars = leg.paths[name]
            filters: dict[str, Any] = {key: row.get(key) for key in ("licences", "figures", "fraction")}
            source = MixtureSource(self.moved.get(name, folder), name=name, sidecars=sidecars, **filters)
            try:
                reader = SourceReader(source, thorough=False)
            except ValueError as error:
                raise ValueError(f"source {name!r}: {error}; if the shards have moved, say where to: --shards {name}=FOLDER") from error
            for key in SOURCE_KEYS:
                if reader.identity().get(key) != row.get(key):
                    raise ValueError(
                        f"source {name!r}: {source.path} holds other shards than the run was trained on ({key} is "
                        f"{reader.identity().get(key)}, it was {row.get(key)}); give the folder of those: --shards {name}=FOLDER"
                    )
            keys = reader.keys()
            digests = np.array([key_digest(name, key) for key in keys], dtype=np.uint64)
            self._sources[wanted] = reader, digests
        return self._sources[wanted]
