"""The mixture's schedule: weights in every stretch, draws without gaps, and what happens when a source is used up."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards.schedule import PERIOD, MixtureExhausted, Schedule, Table


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [12.0, 10.0, 8.6, 7.4, 6.4, 5.0, 0.01], [float(k) for k in range(1, 25)]])
def test_weights_are_followed_in_every_prefix(weights: list[float]) -> None:
    schedule = Schedule(weights)
    counts = Table(weights).counts
    shares = counts / PERIOD
    assert counts.sum() == PERIOD
    np.testing.assert_allclose(shares, np.array(weights) / np.sum(weights), atol=(len(weights) + 1) / PERIOD)
    drawn = np.eye(len(weights))[schedule.run(0, PERIOD)[0]].cumsum(axis=0)
    expected = np.arange(1, PERIOD + 1)[:, None] * shares
    bound = 0.5 + shares * len(weights) / 2 + 1e-9
    assert (np.abs(drawn - expected) <= bound).all()


def test_draws_are_numbered_without_gaps_across_periods() -> None:
    schedule = Schedule([2.0, 1.0, 0.5])
    start = PERIOD - 50
    counts = schedule.draws_before(start)
    for position in range(start, start + 100):
        source, draw = schedule(position)
        assert draw == counts[source]
        counts[source] += 1
    assert (schedule.draws_before(start + 100) == counts).all()


def test_a_tiny_weight_is_drawn_all_the_same() -> None:
    assert Table([1.0, 1e-9]).counts.tolist() == [PERIOD - 1, 1]


def drawn_one_by_one(weights: list[float], limits: list[int | None], earlier: list[int], count: int) -> list[tuple[int, int]]:
    """The rule as a loop with a counter: follow a table until it would draw a source once too often, then go on without it."""
    draws, result = list(earlier), []
    while len(result) < count:
        active = [s for s, limit in enumerate(limits) if limit is None or draws[s] < limit]
        if not active:
            return result
        table, place = Table([weights[s] for s in active]), 0
        while len(result) < count:
            source = active[int(table.at(np.array([place]))[0][0])]
            if limits[source] is not None and draws[source] >= limits[source]:
                break
            result.append((source, draws[source]))
            draws[source] += 1
            place += 1
    return result


@pytest.mark.parametrize(
    ("weights", "limits", "earlier"),
    [
        ([1.0, 1.0], [None, 5], [0, 0]),
        ([3.0, 2.0, 1.0, 0.1], [40, 7, None, 1], [0, 0, 0, 0]),
        ([3.0, 2.0, 1.0], [40, 7, 9], [0, 0, 0]),
        ([3.0, 2.0, 1.0], [40, 7, None], [11, 7, 5]),
        ([1.0, 1.0, 1.0], [10, 10, 10], [0, 0, 0]),
    ],
)
def test_a_used_up_source_leaves_its_share_to_the_others(weights: list[float], limits: list[int | None], earlier: list[int]) -> None:
    schedule = Schedule(weights, limits, earlier)
    expected = drawn_one_by_one(weights, limits, earlier, 600)
    sources, draws = schedule.run(0, len(expected))
    assert list(zip(sources.tolist(), draws.tolist())) == expected
    assert [schedule(position) for position in range(0, len(expected), 7)] == expected[::7]  # random access is the same
    for position in {0, 1, len(expected) // 2, len(expected)}:
        counts = np.array(earlier) + np.bincount(sources[:position], minlength=len(weights))
        assert schedule.draws_before(position).tolist() == counts.tolist()
    if None in limits:
        assert schedule.length is None and len(expected) == 600
        start, active = schedule.changes[-1]
        shares = np.bincount(schedule.run(start, PERIOD)[0], minlength=len(weights)) / PERIOD
        wanted = np.array(weights)[active] / np.sum(np.array(weights)[active])
        np.testing.assert_allclose(shares[active], wanted, atol=1e-4)
    else:
        assert schedule.length == len(expected) == sum(limits) - sum(earlier)
        assert schedule.draws_before(len(expected)).tolist() == limits
        with pytest.raises(MixtureExhausted, match=rf"ends after {len(expected)} samples, .* raise max_passes"):
            schedule(len(expected))
