"""Which mixture a run follows from which step on, and what a resume does when the recipe's mixture is another one.

A run is a sequence of *legs*. Each says from which step and position on it holds, the identity of its order (everything that
decides which sample comes when), and how often each source was drawn before. Legs go into every checkpoint; an order is always
built from a leg, in training as in an audit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from data_shards.mixture import max_draws
from data_shards.schedule import Schedule
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ORDER_VERSION, ShuffleOptions
from mdpretrain.data.source_reader import SourceReader

OnMixtureChange = Literal["refuse", "continue", "restart"]
# What decides the order inside a source: with the same values its pass can go on under another mixture.
SOURCE_KEYS = ("shards", "samples", "selected")
SHUFFLE_KEYS = ("order_version", "seed", "block_samples", "window_samples")


@dataclasses.dataclass(frozen=True)
class Leg:
    """A stretch of a run under one mixture, as JSON values.

    Args:
        first_step, first_position: where it begins; step t of it is global batch ``first_position + (t - first_step) * batch``.
        identity: see ``identity_of``.
        earlier: draws that a source has behind it where the leg begins; 0 for one that is not named.
        paths: source -> its folder and its sidecars' folders, as the recipe had them: where an audit looks, not part of the order.
    """

    first_step: int
    first_position: int
    identity: dict[str, Any]
    earlier: dict[str, int]
    paths: dict[str, list[str]]

    def position(self, step: int) -> int:
        """The first position of global batch ``step``."""
        return self.first_position + (step - self.first_step) * int(self.identity["batch_size"])

    def draws_before(self, step: int) -> dict[str, int]:
        """How often each source was drawn before ``step``, those of earlier legs included."""
        mixture = self.identity["mixture"]
        counts = _schedule(self).draws_before(self.position(step) - self.first_position)
        return {name: int(count) for name, count in zip(mixture, counts)}

    def order(self, shard_sizes: Mapping[str, Sequence[int]]) -> GlobalOrder:
        """The order of this leg over sources whose shards have these numbers of samples."""
        identity, mixture = self.identity, self.identity["mixture"]
        return GlobalOrder(
            list(mixture),
            [row["weight"] for row in mixture.values()],
            [shard_sizes[name] for name in mixture],
            identity["seed"],
            ShuffleOptions(identity["block_samples"], identity["window_samples"]),
            [max_draws(row.get("max_passes"), row["samples"]) for row in mixture.values()],
            self.first_position,
            [self.earlier.get(name, 0) for name in mixture],
        )


def first_leg(readers: Sequence[SourceReader], seed: int, batch_size: int, shuffle: ShuffleOptions) -> Leg:
    """A run's only leg as long as its mixture does not change."""
    identity = {
        "mixture": {reader.name: reader.identity() for reader in readers},
        "batch_size": batch_size,
        "order_version": ORDER_VERSION,
        "seed": seed,
        "block_samples": shuffle.block_samples,
        "window_samples": shuffle.window_samples,
    }
    return Leg(0, 0, identity, {}, {reader.name: [reader.path, *reader.source.sidecars] for reader in readers})


def go_on(saved: Sequence[Leg], steps: int, now: Leg, on_change: OnMixtureChange) -> list[Leg]:
    """The legs of a run that resumes after ``steps`` steps with the recipe's mixture ``now``.

    With an unchanged identity they are the saved ones (the rows may stand in another order: the leg keeps its own). Otherwise
    "continue" adds a leg in which every source whose own samples and shuffling are unchanged goes on in its pass, and "restart"
    one in which all begin their first pass.

    Raises:
        ValueError: the identity has changed and ``on_change`` is "refuse", naming the first difference; or the code that wrote
            the checkpoint computed another order.
    """
    last = saved[-1]
    change = first_difference(last.identity, now.identity)
    if change is None:
        return [*saved[:-1], dataclasses.replace(last, paths=now.paths)]
    if last.identity["order_version"] != now.identity["order_version"]:
        raise ValueError(
            f"the checkpoint was trained with data {change}: this code computes another order; resume with the code of that version"
        )
    if on_change == "refuse":
        raise ValueError(
            f"the checkpoint was trained with data {change}: the samples or their order would change in mid-run; restore it in the recipe, "
            "or say what to do: --data.on_mixture_change=continue (the new mixture, each unchanged source where it stands) or "
            "restart (the new mixture from its beginning)"
        )
    earlier = {}
    if on_change == "continue":
        same_shuffle = all(last.identity[key] == now.identity[key] for key in SHUFFLE_KEYS)
        old, new = last.identity["mixture"], now.identity["mixture"]
        for name, draws in last.draws_before(steps).items():
            if name in new and same_shuffle and all(old[name].get(key) == new[name].get(key) for key in SOURCE_KEYS):
                earlier[name] = draws
    kept = [leg for leg in saved if leg.first_step < steps]
    return [*kept, dataclasses.replace(now, first_step=steps, first_position=last.position(steps), earlier=earlier)]


def leg_at(legs: Sequence[Leg], step: int) -> Leg:
    """The leg that global batch ``step`` belongs to."""
    return next(leg for leg in reversed(legs) if leg.first_step <= step)


def first_difference(saved: dict[str, Any], now: dict[str, Any]) -> str | None:
    """The first value that differs, as ``mixture.indoor.weight = 2.0, but the recipe says 3.0``; None where nothing does."""
    for name in sorted(set(saved) | set(now)):
        before, after = saved.get(name), now.get(name)
        if before != after:
            if isinstance(before, dict) and isinstance(after, dict) and (inner := first_difference(before, after)):
                return f"{name}.{inner}"
            return f"{name} = {before}, but the recipe says {after}"
    return None


def _schedule(leg: Leg) -> Schedule:
    mixture = leg.identity["mixture"]
    limits = [max_draws(row.get("max_passes"), row["samples"]) for row in mixture.values()]
    return Schedule([row["weight"] for row in mixture.values()], limits, [leg.earlier.get(name, 0) for name in mixture])
