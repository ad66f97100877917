"""Which wanted byte ranges of a file go into one request."""

from __future__ import annotations

from collections.abc import Sequence


def merge_ranges(ranges: Sequence[tuple[int, int]], largest: int, gap: int) -> list[list[int]]:
    """Groups of positions in ``ranges``, each group fit to be fetched by one request, in order of their bytes.

    Args:
        ranges: (first byte, byte behind the last) of each wanted piece; pieces do not overlap.
        largest: bytes of one request; a single larger piece goes alone.
        gap: bytes between two pieces that may be fetched for nothing to save a request.
    """
    groups: list[list[int]] = []
    first = end = 0
    for number in sorted(range(len(ranges)), key=lambda n: ranges[n]):
        start, stop = ranges[number]
        if groups and start - end <= gap and stop - first <= largest:
            groups[-1].append(number)
        else:
            groups.append([number])
            first = start
        end = stop
    return groups
