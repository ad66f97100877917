"""What a label's figures cost, and whether its confidence tells where it is wrong.

    python benchmarks/label_confidence.py                                             ms of assess_label per 518 x 518 label
    python benchmarks/label_confidence.py --labels labels/indoor --shards shards/indoor    error by confidence, against the source's depth

The second reads sidecars with a confidence: per image the rank correlation between 1 - confidence and |log(label / measured)|, the image's
median ratio taken out, and over all images the error by confidence. The prompt's pixels, which the figures leave aside, count here.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import cv2
import numpy as np
from scipy.stats import spearmanr

from data_shards.progress import progress_bar
from mdpretrain.data.freed_memory import keep_freed_memory
from mdpretrain.labeling.card.label_table import read_label_table
from mdpretrain.labeling.card.shown import LabelReader
from mdpretrain.labeling.quality import assess_label

SIDE, ROUNDS = 518, 60
BORDERS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


def time_assessment() -> None:
    """A map of boxes with noise, three other passes, 90 % measured, 1 % prompted: CPU time, the least and the median of ROUNDS calls."""
    keep_freed_memory()  # as `mdpretrain label` does
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    shape = (SIDE, SIDE)
    boxes = np.exp(cv2.resize(rng.normal(size=(20, 20)).astype(np.float32), shape, interpolation=cv2.INTER_NEAREST))
    label, *others = ((boxes * np.exp(0.02 * rng.normal(size=shape))).astype(np.float32) for _ in range(4))
    passes = dict(zip(("flip", "disjoint_a", "disjoint_b"), others, strict=True))
    image = np.repeat((boxes / boxes.max())[..., None], 3, axis=2)
    valid, prompt = rng.random(shape) < 0.9, rng.random(shape) < 0.01
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        assess_label(label, passes, boxes, valid, prompt, image, np.zeros(shape, bool))
        seconds.append(time.process_time() - start)
    best, middle = 1e3 * min(seconds), 1e3 * np.median(seconds)
    print(f"assess_label, {SIDE} x {SIDE}, three other passes: {best:.1f} ms of CPU time at best, median {middle:.1f} ms")


def compare(labels: Path, shards: Path, side: int) -> None:
    """The table of errors by confidence."""
    table = read_label_table(labels)
    reader = LabelReader(table, shards)
    ranks, errors, confidences = [], [], []
    with progress_bar(len(table.keys), "label", "compare") as bar:
        for row in range(len(table.keys)):
            one = reader.read(row, side)
            bar.update()
            judged = np.isfinite(one.label) & np.isfinite(one.source_depth)
            if one.confidence is None or not judged.any():
                continue
            log_ratio = np.log(one.label[judged] / one.source_depth[judged])
            error, confidence = np.abs(log_ratio - np.median(log_ratio)), one.confidence[judged]
            ranks.append(spearmanr(1 - confidence, error).statistic)
            errors.append(error)
            confidences.append(confidence)
    error, confidence = np.concatenate(errors), np.concatenate(confidences)
    print(f"{len(ranks)} images: rank correlation {np.min(ranks):.2f} to {np.max(ranks):.2f}, median {np.median(ranks):.2f}")
    print("confidence   pixels %   mean error %   median error %")
    for number, (low, high) in enumerate(itertools.pairwise(BORDERS)):
        own = error[np.digitize(confidence, BORDERS[1:-1]) == number]
        if own.size:
            print(f"{low:.1f} to {high:.1f}   {100 * own.size / error.size:8.1f}   {100 * own.mean():12.2f}   {100 * np.median(own):14.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The cost of a label's figures, and its error by confidence.")
    parser.add_argument("--labels", type=Path, help="sidecars that mdpretrain label wrote with other passes")
    parser.add_argument("--shards", type=Path, help="the folder that was labelled")
    parser.add_argument("--side", type=int, default=518, help="longer side at which the maps are compared (default 518)")
    options = parser.parse_args()
    if options.labels is None:
        time_assessment()
    else:
        compare(options.labels, options.shards, options.side)
