"""AbsRel of every prepared map on synthetic piecewise planar scenes with priors of three qualities.

Run: ``python benchmarks/prompt_map_accuracy.py`` (about a minute on one core; ``--scenes``, ``--points`` to change it).

A scene is a room and some ten tilted planar patches (a third of them bulged) at 192 x 144, in inverse z-depth. A prior is
that inverse depth with a gamma, a smooth multiplicative and additive field, blur and noise, and unknown scale and shift:
what an affine-invariant network makes of it. The numbers of docs/prompts.md come from here.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from mdpretrain.prompts.alignment import global_align, local_knn_align
from mdpretrain.prompts.interpolation import linear_inverse_depth, nearest_inverse_depth
from mdpretrain.prompts.planes import local_plane
from mdpretrain.structures import SparsePrompt

HEIGHT, WIDTH = 144, 192
PRIORS = {  # name: (blur in pixels, strength of the smooth fields, noise)
    "good prior": (0.3, 0.05, 0.002),
    "middling prior": (0.6, 0.15, 0.005),
    "weak prior": (3.0, 0.4, 0.03),
}


def make_scene(rng: np.random.Generator) -> np.ndarray:
    """Inverse z-depth in 1/m: the nearest of a room's five planes and the patches in it."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    focal_px = rng.uniform(0.7, 1.3) * WIDTH
    x, y = (columns + 0.5 - WIDTH / 2) / focal_px, (rows + 0.5 - HEIGHT / 2) / focal_px
    inverse = np.full((HEIGHT, WIDTH), 1 / rng.uniform(5, 9))
    for plane in (y / rng.uniform(1, 1.8), -y / rng.uniform(1, 2), x / rng.uniform(1.5, 4), -x / rng.uniform(1.5, 4)):
        inverse = np.maximum(inverse, plane)
    for _ in range(rng.integers(5, 14)):
        u, v = x - rng.uniform(-0.5, 0.5), y - rng.uniform(-0.5, 0.5)
        tilt, angle, half = rng.normal(0, 0.4, 2), rng.uniform(0, np.pi), rng.uniform(0.05, 0.25, 2)
        patch = (1 + tilt[0] * u + tilt[1] * v) / rng.uniform(1.2, 5)
        disc = (u / half[0]) ** 2 + (v / half[1]) ** 2
        box = (abs(u * np.cos(angle) + v * np.sin(angle)) < half[0]) & (abs(v * np.cos(angle) - u * np.sin(angle)) < half[1])
        if rng.random() < 0.3:
            patch = patch * (1 + 0.15 * np.sqrt(np.clip(1 - disc, 0, 1)))
        inside = box if rng.random() < 0.5 else disc < 1
        inverse = np.where(inside & (patch > inverse), patch, inverse)
    return np.clip(inverse, 0.02, 5)


def make_prior(inverse: np.ndarray, rng: np.random.Generator, blur: float, field: float, noise: float) -> np.ndarray:
    """An affine-invariant network's inverse depth, imitated."""
    smooth = [gaussian_filter(rng.standard_normal(inverse.shape), 25) for _ in range(2)]
    prior = (inverse / inverse.max()) ** rng.uniform(0.8, 1.25)
    prior = prior * (1 + 0.5 * field * smooth[0] / smooth[0].std()) + 0.1 * field * smooth[1] / smooth[1].std()
    prior = gaussian_filter(prior, blur) + 3 * noise * gaussian_filter(rng.standard_normal(inverse.shape), 1.5)
    return prior * rng.uniform(0.5, 20) + rng.uniform(-1, 1)


def abs_rel(inverse: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over pixels of |depth - true depth| / true depth."""
    return float((truth / inverse.clamp(0.02, 5) - 1).abs().mean())


def main(argv: list[str] | None = None) -> int:
    """Print one table of prior-free maps and one of aligned maps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--points", type=int, nargs="+", default=[150, 300])
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    for points in options.points:
        rng = np.random.default_rng(0)
        scenes = [make_scene(rng) for _ in range(options.scenes)]
        masks = np.zeros((options.scenes, HEIGHT * WIDTH), dtype=bool)
        for mask in masks:
            mask[rng.choice(mask.size, points, replace=False)] = True
        masks = masks.reshape(-1, HEIGHT, WIDTH)
        truth, there = torch.from_numpy(np.stack(scenes))[:, None].float(), torch.from_numpy(masks)[:, None]
        prompt = SparsePrompt(torch.where(there, 1 / truth, 0.0), there)
        depths = prompt.depth_m[:, 0].numpy()
        print(f"\nN = {points}, no prior\n| map | AbsRel |\n|---|---|")
        for name, function in (("nearest", nearest_inverse_depth), ("Delaunay-linear", linear_inverse_depth)):
            maps = np.stack([function(depth, mask) for depth, mask in zip(depths, masks, strict=True)])
            print(f"| {name} | {abs_rel(torch.from_numpy(maps)[:, None], truth):.4f} |")
        for k in (3, 5, 8):
            print(f"| 1/d^2 mean, k = {k} | {abs_rel(local_knn_align(None, prompt, k=k), truth):.4f} |")
            print(f"| local_plane, k = {k} | {abs_rel(local_plane(prompt, k=k), truth):.4f} |")
        margins = (None, 2.0, 1.2, 1.0)
        print(
            f"\nN = {points}\n| prior | global | "
            + " | ".join(f"k {k}, margin {m}" for k in (5, 8) for m in margins)
            + " |\n"
            + "|---" * 10
            + "|"
        )
        for name, (blur, field, noise) in PRIORS.items():
            prior = torch.from_numpy(np.stack([make_prior(scene, rng, blur, field, noise) for scene in scenes]))[:, None].float()
            cells = [abs_rel(global_align(prior, prompt), truth)]
            cells += [abs_rel(local_knn_align(prior, prompt, k=k, neighbour_margin=m), truth) for k in (5, 8) for m in margins]
            print(f"| {name} | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
