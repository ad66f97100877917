"""How many requests and bytes remote shards cost per sample trained on, by the real order and the real merging of ranges.

    python benchmarks/remote_requests.py
    python benchmarks/remote_requests.py --sample-kib 1000 --samples-per-shard 512

Nothing is read: shards of equal samples are assumed, and one node's requests over some spans of fetching ahead are counted.
"Whole shards" is what a loader pays that fetches a shard for the samples of one window and cannot keep it until the next.
"""

from __future__ import annotations

import argparse

from data_shards.storage.options import StorageOptions
from data_shards.storage.ranges import merge_ranges
from data_shards.storage.remote_shard import LARGEST_GAP
from mdpretrain.data.fetch_ahead import Node, NodeDraws
from mdpretrain.data.mixture import GlobalOrder
from mdpretrain.data.order import ShuffleOptions
from mdpretrain.data.training_stream import Share

RANKS_PER_NODE, SHARDS = 8, 500
SPANS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample-kib", type=int, default=300)
    parser.add_argument("--samples-per-shard", type=int, default=1024)
    parser.add_argument("--batch-per-node", type=int, default=64)
    arguments = parser.parse_args()
    print("| sources | nodes | fetched ahead | requests/sample | bytes fetched / bytes used |\n|--:|--:|--:|--:|--:|")
    for sources in (1, 8):
        for nodes in (1, 2, 18):
            for ahead in (1024, 4096, 16384):
                requests, amplification = count(sources, nodes, ahead, arguments)
                print(f"| {sources} | {nodes} | {ahead:,} | {requests:.3f} | {amplification:.2f} |")
    whole = arguments.samples_per_shard / ShuffleOptions().block_samples
    print(f"whole shards, kept for one window: 1 request per shard, {whole:.0f} times the bytes on one node, x nodes on several")


def count(sources: int, nodes: int, ahead: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """(requests per sample, bytes fetched per byte used) of the first node."""
    size, per_shard = arguments.sample_kib * 1024, arguments.samples_per_shard
    names = [f"s{number}" for number in range(sources)]
    order = GlobalOrder(names, [1.0] * sources, [[per_shard] * SHARDS] * sources, 0, ShuffleOptions())
    share = Share(arguments.batch_per_node * nodes, 0, RANKS_PER_NODE * nodes)
    draws = NodeDraws(order, share, Node(0, 0, RANKS_PER_NODE))
    steps = ahead // 2 // arguments.batch_per_node
    kept: set[tuple[int, int]] = set()
    asked = fetched = 0
    for span in range(SPANS):
        wanted = {draw for step in range(span * steps, (span + 1) * steps) for draw in draws(step)}
        by_shard: dict[tuple[int, int], list[int]] = {}
        for source, index in wanted - kept:
            by_shard.setdefault((source, index // per_shard), []).append(index % per_shard)
        for (source, shard), places in by_shard.items():
            ranges = [(place * size, (place + 1) * size) for place in places]
            for group in merge_ranges(ranges, StorageOptions().request_bytes, LARGEST_GAP):
                asked += 1
                fetched += ranges[group[-1]][1] - ranges[group[0]][0]
                kept |= {(source, shard * per_shard + places[number]) for number in group}
    used = SPANS * steps * arguments.batch_per_node
    return asked / used, fetched / (used * size)


if __name__ == "__main__":
    main()
