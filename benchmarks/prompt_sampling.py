"""CPU time of drawing a prompt of each kind, and of interpolating it, as a data worker does on one core.

Run: ``python benchmarks/prompt_sampling.py`` (a minute and a half; ``--side``, ``--repeats`` and ``--no-interpolation`` to change it).

The scene is a tilted plane with a box before it under a random chequerboard; the settings are the kinds' defaults with
``count: [2000, 40000]``. Times are process times, so a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.prompts.noise import PromptNoise
from mdpretrain.prompts.options import PromptDrawer, PromptOptions
from mdpretrain.prompts.scene import PromptScene
from mdpretrain.structures import PROMPT_KINDS

COUNT = (2000, 40_000)
NOISE = PromptNoise(boundary=(0.5, 0.5), scale=(0.9, 1.1), sigma=(0.02, 0.02), disparity_step=(0.001, 0.001), outliers=(0.1, 0.1))


def make_scene(side: int) -> PromptScene:
    """A square scene of an unknown camera."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side] / side
    depth_m = (1 / (0.15 + 0.1 * rows + 0.05 * columns)).astype(np.float32)
    depth_m[side // 3 : side // 2, side // 3 : side // 2] = 1.5
    image = cv2.resize(rng.random((64, 64, 3), dtype=np.float32), (side, side), interpolation=cv2.INTER_NEAREST)
    return PromptScene(depth_m, np.ones((side, side), bool), image, np.full((3, 3), np.nan, np.float32))


def main(argv: list[str] | None = None) -> int:
    """Print one row per kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=1536)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--interpolation", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(argv)
    cv2.setNumThreads(0)
    print("| kind | points, mean | drawn in ms | interpolated in ms |\n|---|---|---|---|")
    for name in (*PROMPT_KINDS, "noise"):
        kind = {name: 1.0} if name in PROMPT_KINDS else {"uniform": 1.0}
        drawer = PromptDrawer(PromptOptions(COUNT, weights=kind, noise=NOISE if name == "noise" else None))
        drawn, interpolated, points = 0.0, 0.0, 0
        for repeat in range(options.repeats):
            scene = make_scene(options.side)  # anew, for what it keeps would be counted once only
            start = time.process_time()
            depth_m, mask, _ = drawer(scene, np.random.default_rng(repeat))
            drawn += time.process_time() - start
            points += int(mask.sum())
            if options.interpolation:
                start = time.process_time()
                linear_inverse_depth(depth_m, mask)
                interpolated += time.process_time() - start
        milliseconds = [1000 * seconds / options.repeats for seconds in (drawn, interpolated)]
        shown = f"{milliseconds[1]:.0f}" if options.interpolation else ""
        print(f"| {name} | {points // options.repeats} | {milliseconds[0]:.0f} | {shown} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
