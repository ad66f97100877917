"""Pictures that are there twice, across shards and sources, found by a perceptual hash.

The hash says which of the 255 lowest coefficients of a discrete cosine transform of the grey 64x64 thumbnail are clearly positive.
Coding a picture again as jpg (quality 60) changes at most 5 of them, halving its size as well; two neighbouring frames of a video at
30 Hz differ in 12 or more (322 real and 240 rendered frames). So two pictures within 7 are one. Brightness or contrast that was
changed, crops and flips are not recognised, nor are very smooth pictures that were coded again.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_shards.lint_findings import Place

THUMBNAIL, KEPT = 64, 16
MOST_DIFFERENT = 7  # of 255 bits
CODING_NOISE = 3.0  # grey levels: coefficients below it turn positive or negative by coding
# Of eight groups of bits, one at least is equal in hashes that differ in seven: only those have to be compared.
GROUPS = 8
FLATTEST = 2.0  # grey levels: the hash of a blank picture is noise


def picture_hash(grey: np.ndarray) -> np.ndarray | None:
    """uint8 (32,): 256 bits of an 8-bit grey image (height, width); None where it shows nothing to go by."""
    small = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < FLATTEST:
        return None
    coefficients = cv2.dct(small)[:KEPT, :KEPT].ravel()
    coefficients[0] = 0  # the mean brightness is always positive
    return np.packbits(coefficients > CODING_NOISE)


class DuplicateSearch:
    """Remembers the pictures seen so far."""

    def __init__(self) -> None:
        self._seen: list[tuple[np.ndarray, Place]] = []
        self._by_group: dict[tuple[int, bytes], list[int]] = {}

    def first_like(self, picture: np.ndarray, place: Place) -> tuple[Place, int] | None:
        """The first earlier place with the same picture and the number of bits that differ, else None (and it is remembered)."""
        keys = [(group, part.tobytes()) for group, part in enumerate(np.split(picture, GROUPS))]
        candidates = sorted({number for key in keys for number in self._by_group.get(key, ())})
        for number in candidates:
            other, first = self._seen[number]
            different = int(np.bitwise_count(picture ^ other).sum())
            if different <= MOST_DIFFERENT:
                return first, different
        for key in keys:
            self._by_group.setdefault(key, []).append(len(self._seen))
        self._seen.append((picture, place))
        return None
