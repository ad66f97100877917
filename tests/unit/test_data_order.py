"""The global order: exactly once per pass, weights in every stretch, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from data_shards.mixture import MixtureSource
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ShuffleOptions, SourceOrder, keyed_permutation

SMALL = ShuffleOptions(block_samples=4, window_samples=32)


@pytest.mark.parametrize("shard_sizes", [[1], [7], [3, 0, 5], [100], [40, 1, 33, 64], [16] * 20])
def test_every_sample_once_in_every_pass(shard_sizes: list[int]) -> None:
    order = SourceOrder("a", 5, shard_sizes, SMALL)
    for epoch in range(3):
        drawn = [order.index(epoch * order.size + place) for place in range(order.size)]
        assert sorted(drawn) == list(range(sum(shard_sizes)))


def test_passes_seeds_and_names_give_different_orders() -> None:
    def first_pass(name: str, seed: int, start: int = 0) -> list[int]:
        order = SourceOrder(name, seed, [50, 50], SMALL)
        return [order.index(start + place) for place in range(100)]

    orders = [first_pass("a", 0), first_pass("b", 0), first_pass("a", 1), first_pass("a", 0, start=100)]
    assert len({tuple(order) for order in orders}) == 4


def test_random_access_equals_sequential_access() -> None:
    order = SourceOrder("a", 2, [30, 70], SMALL)
    sequential = [order.index(draw) for draw in range(300)]
    fresh = SourceOrder("a", 2, [30, 70], SMALL)
    for draw in np.random.default_rng(0).permutation(300):
        assert fresh.index(int(draw)) == sequential[draw]


def test_keyed_permutation_is_a_fixed_published_function() -> None:
    """splitmix64 written out with Python integers: the order may never change under a resumed run."""

    def splitmix(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        return state ^ (state >> 31)

    key, count = 0xFEDCBA9876543210, 50
    hashes = [splitmix((key + (i + 1) * 0x9E3779B97F4A7C15) % 2**64) for i in range(count)]
    assert keyed_permutation(count, key).tolist() == sorted(range(count), key=hashes.__getitem__)


def test_many_draws_at_once_are_the_draws_one_by_one() -> None:
    order = SourceOrder("a", 2, [30, 0, 71, 5], SMALL)
    one_by_one = [order.index(draw) for draw in range(400)]
    for first, count in ((0, 400), (17, 0), (17, 1), (90, 40), (105, 212)):
        assert order.indices(first, count).tolist() == one_by_one[first : first + count]
    mixture = GlobalOrder(["a", "b", "c"], [3.0, 1.0, 0.5], [[30, 71], [5], [64, 64]], 1, SMALL, [None, 12, 150], 1000, [4, 0, 9])
    sources, indices = mixture.run(1003, 700)
    drawn = [mixture(position) for position in range(1003, 1703)]
    assert sources.tolist() == [draw.source for draw in drawn] and indices.tolist() == [draw.index for draw in drawn]


def test_a_window_reads_few_blocks_and_mixes_them() -> None:
    shuffle = ShuffleOptions(block_samples=16, window_samples=256)
    order = SourceOrder("a", 0, [128] * 64, shuffle)
    drawn = np.array([order.index(place) for place in range(order.size)])
    for window in drawn.reshape(-1, 256):
        assert len(np.unique(window // 16)) == 16  # sequential reading: a window touches 16 blocks and finishes them
    place = np.argsort(drawn)
    neighbours = np.abs(np.diff(place).reshape(-1)[np.arange(order.size - 1) % 16 != 15])
    assert 256 / 3 * 0.9 < neighbours.mean() < 256 / 3 * 1.1  # uniform in the window: mean distance one third of it


def test_substitutes_are_other_samples_of_the_same_pass() -> None:
    order = SourceOrder("a", 0, [10], SMALL)
    assert [order.index(8, attempt) for attempt in range(4)] == [order.index(place) for place in (8, 9, 0, 1)]


def test_order_does_not_depend_on_the_hash_seed_of_the_process() -> None:
    program = (
        "from mdpretrain.data.mixture import GlobalOrder\nfrom mdpretrain.data.order import ShuffleOptions\n"
        "order = GlobalOrder(['a', 'b'], [1, 2], [[30, 5], [64]], 7, ShuffleOptions(4, 16))\n"
        "print([order(g) for g in range(60)])"
    )
    outputs = set()
    for hash_seed in ("0", "12345"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        outputs.add(subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(outputs) == 1


def test_passes_count_epochs_per_source() -> None:
    order = GlobalOrder(["a", "b"], [3.0, 1.0], [[10], [20]], 0, SMALL)
    passes = order.passes(400)
    assert passes["a"] == pytest.approx(30, abs=0.2) and passes["b"] == pytest.approx(5, abs=0.1)


def test_bad_mixtures_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="two sources of the mixture are called 'a'"):
        GlobalOrder(["a", "a"], [1.0, 1.0], [[1], [1]], 0, SMALL)
    with pytest.raises(ValueError, match="mixture is empty"):
        GlobalOrder([], [], [], 0, SMALL)
    with pytest.raises(ValueError, match="source 'a': its shards hold no samples"):
        GlobalOrder(["a"], [1.0], [[0]], 0, SMALL)
    with pytest.raises(ValueError, match=r"weight 0\.0 must be positive"):
        MixtureSource("somewhere", weight=0.0)
    with pytest.raises(ValueError, match=r"min_depth_m 5\.0 and max_depth_m 2\.0"):
        MixtureSource("somewhere", min_depth_m=5.0, max_depth_m=2.0)
    with pytest.raises(ValueError, match="1 <= block <= window"):
        ShuffleOptions(block_samples=64, window_samples=32)
