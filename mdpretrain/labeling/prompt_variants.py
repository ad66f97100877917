"""Other prompts of the same sample: drawn anew, cut into two disjoint halves, thinned to a quarter. numpy only, in the reading threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mdpretrain.data.pipeline import PROMPT, Row, key_seed, random_generator
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.prompts.options import PromptDrawer
from mdpretrain.prompts.scene import PromptScene

# What the generators of one sample's variants are told apart by: the number of a further prompt (2, 3, ...), or one of these.
HALVES, THINNED = 0, 1


def prompt_variants(row: Row, names: Sequence[str], drawer: PromptDrawer, interpolate: bool, seed: int) -> dict[str, Row]:
    """The row with another prompt, for every name that can be had: a prompt of one point has no halves, one of three no quarter.

    Args:
        row: a row with a prompt, from which it stays apart.
        names: "prompt_2", "prompt_3", ...; "disjoint_a", "disjoint_b"; "sparse".
        drawer: what drew the row's prompt.
        interpolate: also interpolate each prompt over the image.
        seed: the request's; a variant depends on it, on the key and on its name.
    """
    assert row.prompt_mask is not None and row.prompt_depth_m is not None
    points = np.flatnonzero(row.prompt_mask)
    halves = random_generator(PROMPT, seed, key_seed(row.key), HALVES).permutation(points)
    thinned = random_generator(PROMPT, seed, key_seed(row.key), THINNED).permutation(points)
    chosen = {
        "disjoint_a": halves[: len(points) // 2],
        "disjoint_b": halves[len(points) // 2 :] if len(points) > 1 else halves[:0],
        "sparse": thinned[: len(points) // 4],
    }
    variants = {}
    for name in names:
        if name in chosen:
            mask = np.zeros(row.prompt_mask.shape, bool)
            mask.flat[chosen[name]] = True
            depth_m = np.where(mask, row.prompt_depth_m, np.float32(0))
        else:
            number = int(name.removeprefix("prompt_"))
            scene = PromptScene(row.depth, row.valid, row.image, row.intrinsics)
            depth_m, mask, _ = drawer(scene, random_generator(PROMPT, seed, key_seed(row.key), number))
        if mask.any():
            interpolated = linear_inverse_depth(depth_m, mask) if interpolate else None
            variants[name] = dataclasses.replace(row, prompt_depth_m=depth_m, prompt_mask=mask, interpolated_inverse_depth=interpolated)
    return variants
