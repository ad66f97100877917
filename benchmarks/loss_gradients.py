"""How the forms of the distance-balanced loss share the gradient between near and far: docs/images/losses/*.png, for docs/losses.md.

Run: ``python benchmarks/loss_gradients.py`` (seconds; ``--out`` for another folder).

Each picture shows one quantity against the true depth in metres, one panel per camera, one line per form: ``gradient_inverse.png``
|dL/dC|, ``gradient_log_depth.png`` |dL/d ln depth|, ``cost_of_5_percent.png`` the loss of an inverse depth 5 % too large. All are computed
by the loss itself and autograd, not by formulas. ``--numbers`` prints them for the camera with f_px = W.

``--terms`` (half a minute) prints how strongly the terms of a student's table pull: the norm of dL/d ln C over a rendered room and a
rendered street, for a prediction that is blurred over ``2 r + 1`` pixels and wrong by a smooth relative error of the given deviation.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from data_shards.rendering.frames import RenderedFrame, render_scene
from mdpretrain.losses.distance_balanced import distance_balanced
from mdpretrain.losses.records import LOSSES

FORMS: dict[str, dict[str, Any]] = {
    "inverse": {"form": "inverse"},
    "weighted, gamma 0.5": {"form": "weighted", "gamma": 0.5},
    "weighted, gamma 1": {"form": "weighted", "gamma": 1.0},
    "log, steepness 30 (default)": {"form": "log"},
}
COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#000000")  # told apart without colour vision, too
STYLES = ("--", "-.", ":", "-")
CAMERAS = {"90° wide (f/W = 0.5)": 0.5, "53° (f/W = 1)": 1.0, "23° long (f/W = 2.5)": 2.5}
DEPTHS_M = (0.3, 300.0)
TABLE_M = (0.5, 1.0, 3.0, 10.0, 30.0, 80.0, 300.0)
ERROR = 0.05
SCENES = ((11, "indoor"), (4, "outdoor"))
TERMS = ("distance_balanced", "ssi_mage", "mae")
JUST_OFF = 1e-4  # an L1 has no gradient at its minimum: it is read this far (relative) from it


def each_loss(inverse: Tensor, true_inverse: Tensor, options: dict[str, Any]) -> Tensor:
    """The loss of every value as an image of one pixel."""
    prediction, target = (values.reshape(-1, 1, 1, 1) for values in (inverse, true_inverse))
    return distance_balanced(prediction, target, torch.ones_like(target, dtype=torch.bool), reduction="none", **options)


def gradient_inverse(depth_m: Tensor, focal: float, options: dict[str, Any]) -> Tensor:
    """|dL/dC| beside the true depth; ``focal`` is f_px / W."""
    inverse = (focal / depth_m * (1 + JUST_OFF)).requires_grad_()
    (gradient,) = torch.autograd.grad(each_loss(inverse, focal / depth_m, options).sum(), inverse)
    return gradient.abs()


def gradient_log_depth(depth_m: Tensor, focal: float, options: dict[str, Any]) -> Tensor:
    """|dL/d ln depth| beside the true depth."""
    log_depth = (depth_m.log() - JUST_OFF).requires_grad_()
    (gradient,) = torch.autograd.grad(each_loss(focal / log_depth.exp(), focal / depth_m, options).sum(), log_depth)
    return gradient.abs()


def cost_of_error(depth_m: Tensor, focal: float, options: dict[str, Any]) -> Tensor:
    """The loss of an inverse depth that is ``ERROR`` too large."""
    return each_loss(focal / depth_m * (1 + ERROR), focal / depth_m, options)


QUANTITIES: dict[str, tuple[Callable[..., Tensor], str]] = {
    "gradient_inverse": (gradient_inverse, "|dL/dC|"),
    "gradient_log_depth": (gradient_log_depth, "|dL/d ln depth|"),
    "cost_of_5_percent": (cost_of_error, "loss of 5 % too much inverse depth"),
}


def picture(quantity: Callable[..., Tensor], label: str) -> Figure:
    """One quantity: a panel per camera on common axes, both logarithmic."""
    depth_m = torch.logspace(*(torch.tensor(end).log10().item() for end in DEPTHS_M), 200)
    figure, panels = plt.subplots(1, len(CAMERAS), figsize=(11, 3.7), sharey=True, layout="constrained")
    for panel, (camera, focal) in zip(panels, CAMERAS.items()):
        for (form, options), colour, style in zip(FORMS.items(), COLOURS, STYLES):
            values = quantity(depth_m, focal, options)
            panel.loglog(depth_m, values, style, color=colour, linewidth=2.2 if style == "-" else 1.6, label=form)
        panel.set_title(camera, fontsize=10)
        panel.set_xlabel("true depth, m")
        panel.set_xticks([0.3, 1, 3, 10, 30, 100, 300], ["0.3", "1", "3", "10", "30", "100", "300"])
        panel.grid(True, which="major", alpha=0.3)
    panels[0].set_ylabel(label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(FORMS), frameon=False)
    return figure


def numbers() -> str:
    """The table of docs/losses.md: |dL/dC|, and 100 times the cost of 5 %, with f_px = W."""
    depth_m = torch.tensor(TABLE_M)
    columns = [(gradient_inverse(depth_m, 1.0, options), 100 * cost_of_error(depth_m, 1.0, options)) for options in FORMS.values()]
    lines = ["depth, m | " + " | ".join(FORMS)]
    for index, depth in enumerate(TABLE_M):
        lines.append(f"{depth:g} | " + " | ".join(f"{gradient[index]:.3g}; {cost[index]:.2g}" for gradient, cost in columns))
    return "\n".join(lines)


def blurred_guess(frame: RenderedFrame, radius_px: int, deviation: float) -> tuple[Tensor, Tensor, Tensor]:
    """(prediction, target, valid) in canonical inverse depth: no sharp edge, and a smooth relative error."""
    depth_m = torch.tensor(frame.depth_z_m)[None, None]
    valid = torch.isfinite(depth_m)
    target = torch.where(valid, frame.camera.fx / depth_m.shape[-1] / torch.where(valid, depth_m, 1.0), 0.0)
    blurred = F.avg_pool2d(F.pad(target, (radius_px,) * 4, mode="replicate"), 2 * radius_px + 1, 1)
    coarse = torch.randn(1, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    error = deviation * F.interpolate(coarse, depth_m.shape[-2:], mode="bicubic")
    return blurred.clamp(min=1e-3) * (1 + error), target, valid


def pull(name: str, guess: tuple[Tensor, Tensor, Tensor]) -> tuple[float, float]:
    """A loss and the norm of its gradient with respect to ln C."""
    prediction, target, valid = guess
    prediction = prediction.clone().requires_grad_()
    loss = LOSSES[name].function(prediction, target, valid)
    (gradient,) = torch.autograd.grad(loss, prediction)
    return float(loss.detach()), float((gradient * prediction).detach().norm())


def terms() -> str:
    """One line per scene, guess and term."""
    lines = []
    for seed, kind in SCENES:
        (frame,) = render_scene(seed, kind, 1, (384, 288))
        for radius_px, deviation in ((3, 0.05), (9, 0.1)):
            guess = blurred_guess(frame, radius_px, deviation)
            pulls = {name: pull(name, guess) for name in TERMS}
            unit = pulls[TERMS[0]][1]
            told = ", ".join(f"{name} {loss:.3f} (pull {norm / unit:.2f})" for name, (loss, norm) in pulls.items())
            lines.append(f"{kind}, blur {radius_px} px, error {deviation:.0%}: {told}")
    return "\n".join(lines)


def main() -> None:
    """Draw every picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1] / "docs/images/losses")
    parser.add_argument("--numbers", action="store_true", help="print the numbers in place of drawing")
    parser.add_argument("--terms", action="store_true", help="print how strongly the terms pull on rendered scenes in place of drawing")
    options = parser.parse_args()
    if options.numbers or options.terms:
        print(numbers() if options.numbers else terms())
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (quantity, label) in QUANTITIES.items():
        figure = picture(quantity, label)
        figure.savefig(options.out / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)
        print(options.out / f"{name}.png")


if __name__ == "__main__":
    main()
