"""One picture of every prompt simulator on rendered scenes: docs/images/prompts/*.png.

Run: ``python benchmarks/prompt_pictures.py`` (about a minute on one core; ``--out`` for another folder, ``--kinds`` for some of them).

Each picture shows the image, the prompt over the dimmed image (points enlarged to be seen, near warm, far cold) and the prompt's error
against the rendered depth (relative; dark is none, bright 25 % and more). Outdoor sensors look at a street, the others at a room.
"""

from __future__ import annotations

import argparse
import pathlib

import cv2
import numpy as np
from PIL import Image

from data_shards.colour import ERROR_LIMIT, colour_relative_error, depth_scale
from data_shards.rendering.frames import RenderedFrame, render_scene
from mdpretrain.prompts.noise import PromptNoise
from mdpretrain.prompts.options import PromptDrawer, PromptOptions
from mdpretrain.prompts.scene import PromptScene, SparseMaps
from mdpretrain.structures import PROMPT_KINDS

SIZE = (416, 312)
COUNT = (1500, 1500)
ROOM, STREET = (11, "indoor"), (4, "outdoor")
OUTDOOR = ("lidar", "solid_state_lidar", "radar")
BLOCKS = ((0.3, 1), (0.1, 2), (0.0, 3))  # from this fraction of the pixels on, a point is painted as a square of so many pixels
COARSE = 0xF0  # bits of a colour that are kept of images: their texture is most of a file
NOISE = PromptNoise(boundary=(0.5, 0.5), scale=(1.05, 1.05), offset_m=(0.05, 0.05), sigma=(0.02, 0.02), outliers=(0.03, 0.03))


def scene_of(frame: RenderedFrame) -> PromptScene:
    """What the simulators look at: the sky is no measurement."""
    camera, valid = frame.camera, np.isfinite(frame.depth_z_m)
    intrinsics = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], np.float32)
    depth_m = np.where(valid, frame.depth_z_m, np.float32(0))
    return PromptScene(depth_m, valid, frame.image.astype(np.float32) / 255, intrinsics)


def picture(scene: PromptScene, prompt: SparseMaps) -> np.ndarray:
    """uint8 (H, 3 W, 3): image, prompt, error."""
    depth_m, mask = prompt
    image = np.rint(scene.image * 255).astype(np.uint8) & COARSE
    grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].repeat(3, axis=2) // 3) & COARSE  # so that even far points stand out
    backgrounds = (grey, 255 - (85 - grey))  # no error is black: seen before a light image
    scale = depth_scale(np.where(scene.usable, scene.depth_m, 0))
    colours = [scale.colour(depth_m), colour_relative_error(depth_m, scene.depth_m, mask)]
    panels = [image, *(over(background, colour & COARSE, mask) for background, colour in zip(backgrounds, colours))]
    return np.concatenate(panels, axis=1)


def over(background: np.ndarray, colour: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Coloured points, the larger the fewer they are."""
    side = next(side for least, side in BLOCKS if mask.mean() >= least)
    painted = background.copy()
    rows, columns = np.nonzero(mask)
    for down, across in np.ndindex(side, side):
        row, column = np.minimum(rows + down, mask.shape[0] - 1), np.minimum(columns + across, mask.shape[1] - 1)
        painted[row, column] = colour[rows, columns]
    return painted


def main(argv: list[str] | None = None) -> int:
    """Write the pictures and print what each prompt holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("docs/images/prompts"))
    parser.add_argument("--kinds", nargs="+", default=[*PROMPT_KINDS, "noise"], choices=[*PROMPT_KINDS, "noise"])
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    scenes: dict[tuple[int, str], PromptScene] = {}
    print(f"| prompt | points | share of pixels | median relative error | points off by {ERROR_LIMIT:.0%} or more |\n|---|---|---|---|---|")
    for name in options.kinds:
        place = STREET if name in OUTDOOR else ROOM
        if place not in scenes:
            scenes[place] = scene_of(render_scene(*place, views=1, size=SIZE)[0])
        kind = {name: 1.0} if name in PROMPT_KINDS else {"uniform": 1.0}
        drawer = PromptDrawer(PromptOptions(COUNT, weights=kind, noise=NOISE if name == "noise" else None))
        depth_m, mask, _ = drawer(scenes[place], np.random.default_rng(1))
        truth_m = scenes[place].depth_m[mask]
        error = np.abs(depth_m[mask] / truth_m - 1) if mask.any() else np.zeros(1)
        print(f"| {name} | {mask.sum()} | {mask.mean():.1%} | {np.median(error):.2%} | {(error >= ERROR_LIMIT).mean():.1%} |")
        shown = Image.fromarray(picture(scenes[place], (depth_m, mask)))
        many = mask.mean() >= BLOCKS[1][0]  # then a palette loses nothing small, and is much smaller
        (shown.quantize(96, dither=Image.Dither.NONE) if many else shown).save(options.out / f"{name}.png", optimize=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
