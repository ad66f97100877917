"""The module that turns a sparse metric prompt (and a prior) into dense inverse-depth maps for a network to read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mdpretrain.prompts.alignment import (
    EMPTY_INVERSE_DEPTH,
    INVERSE_DEPTH_RANGE,
    NEIGHBOUR_MARGIN,
    RIDGE,
    Estimator,
    finish,
    global_align,
    local_knn_align,
    median_inverse_depth,
    take,
)
from mdpretrain.prompts.filling import FILL_NEIGHBOURS, fill_prompt
from mdpretrain.prompts.interpolation import linear_inverse_depth
from mdpretrain.prompts.neighbours import Neighbours, PromptPoints, nearest_points, present_pixels, prompt_points
from mdpretrain.prompts.planes import PLANE_NEIGHBOURS, PLANE_RIDGE, local_plane
from mdpretrain.structures import PreparedPrompt, SparsePrompt

MAPS = ("global", "local", "interpolated", "nearest", "local_plane", "filled")


class PromptPreparation(nn.Module):
    """Prepares the named maps on the prompt's device; it has no parameters and no buffers.

    | map            | with a prior                               | without (``prior_inverse_depth=None``)          |
    |----------------|--------------------------------------------|-------------------------------------------------|
    | "global"       | ``global_align`` (GMDR's role)             | the prompt's median inverse depth, everywhere   |
    | "local"        | ``local_knn_align`` (PDSA's role)          | 1/d^2-weighted mean of the k nearest points     |
    | "interpolated" | Delaunay-linear in inverse depth (prior-free), from the data pipeline, or made here on the CPU if absent |
    | "nearest"      | the nearest point's inverse depth (prior-free) ||
    | "local_plane"  | a plane through the nearest points (prior-free): ``local_plane`` ||
    | "filled"       | the prompt's own depth, elsewhere the 1/d^2-weighted mean of the nearest (prior-free): ``fill_prompt`` ||

    Args:
        maps: which maps, in the order of the output's channels.
        k: neighbours of "local".
        ridge: see ``local_knn_align``.
        neighbour_margin: see ``local_knn_align``; 1.0 suits a weak prior, 2.0 (or None) a good one.
        keep_known: "local" and "local_plane" keep the prompt's own measurements.
        estimator: "least_squares", "huber" or "trimmed", for the global fit.
        plane_k: neighbours of "local_plane".
        plane_ridge: see ``local_plane``.
        fill_k: neighbours of "filled".
        inverse_depth_range: (lowest, highest) of every map in 1/m.
        workers: threads of the compiled loops on the CPU; -1 for as many as torch has.

    Raises:
        ValueError: an unknown or repeated map, or a senseless range.
    """

    def __init__(
        self,
        maps: Sequence[str] = ("global", "local"),
        k: int = 5,
        ridge: float = RIDGE,
        neighbour_margin: float | None = NEIGHBOUR_MARGIN,
        keep_known: bool = True,
        estimator: Estimator = "huber",
        plane_k: int = PLANE_NEIGHBOURS,
        plane_ridge: float = PLANE_RIDGE,
        inverse_depth_range: Sequence[float] = INVERSE_DEPTH_RANGE,
        workers: int = -1,
        fill_k: int = FILL_NEIGHBOURS,
    ) -> None:
        super().__init__()
        if unknown := [name for name in maps if name not in MAPS]:
            raise ValueError(f"prepared map {unknown[0]!r} is unknown; choose from {list(MAPS)}")
        if not maps or len(set(maps)) != len(maps):
            raise ValueError(f"prepared maps {list(maps)}: name at least one, and each only once")
        if len(inverse_depth_range) != 2 or not 0 < inverse_depth_range[0] < inverse_depth_range[1]:
            raise ValueError(f"inverse_depth_range {list(inverse_depth_range)}: give [lowest, highest] in 1/m with 0 < lowest < highest")
        self.maps = tuple(maps)
        self.k = k
        self.ridge = ridge
        self.neighbour_margin = neighbour_margin
        self.keep_known = keep_known
        self.estimator: Estimator = estimator
        self.plane_k = plane_k
        self.plane_ridge = plane_ridge
        self.inverse_depth_range = (float(inverse_depth_range[0]), float(inverse_depth_range[1]))
        self.workers = workers
        self.fill_k = fill_k

    def forward(self, prompt: SparsePrompt, prior_inverse_depth: Float[Tensor, "B 1 h w"] | None) -> PreparedPrompt:
        """The maps of ``self.maps``, float32, finite and within ``inverse_depth_range`` at every pixel.

        Args:
            prompt: [B, 1, H, W]; metric.
            prior_inverse_depth: on the same grid, up to scale and shift; non-finite where the prior has no value.

        Raises:
            ValueError: prior and prompt differ in size.
        """
        if prior_inverse_depth is not None and prior_inverse_depth.shape != prompt.depth_m.shape:
            sizes = f"the prior is {tuple(prior_inverse_depth.shape)} and the prompt {tuple(prompt.depth_m.shape)}"
            raise ValueError(f"{sizes}: resize the prior to the image first")
        points = prompt_points(prompt)
        wanted = {"local": self.k, "local_plane": self.plane_k, "nearest": 1}
        local = [name for name in self.maps if name in wanted]
        # One map finds its neighbours piece by piece; several share what one search finds.
        shared = len(local) > 1 or "nearest" in local
        neighbours = nearest_points(points, max(wanted[name] for name in local), self.workers) if shared else None
        maps = [self._prepare(name, prompt, prior_inverse_depth, points, neighbours).float() for name in self.maps]
        return PreparedPrompt(torch.cat(maps, dim=1), self.maps, prompt, points.valid.any(dim=1))

    def extra_repr(self) -> str:
        return (
            f"maps={list(self.maps)}, k={self.k}, ridge={self.ridge}, neighbour_margin={self.neighbour_margin}, estimator={self.estimator}"
        )

    def _prepare(
        self, name: str, prompt: SparsePrompt, prior: Tensor | None, points: PromptPoints, neighbours: Neighbours | None
    ) -> Float[Tensor, "B 1 H W"]:
        if name == "global":
            if prior is None:
                constant = median_inverse_depth(points).clamp(*self.inverse_depth_range)
                return constant[:, None, None, None].expand_as(prompt.depth_m)
            return global_align(prior, prompt, self.estimator, self.inverse_depth_range, points)
        if name == "interpolated":
            return self._interpolated(prompt, points)
        if name == "filled":
            return fill_prompt(prompt, self.fill_k, self.inverse_depth_range, self.workers)
        if name == "local":
            return local_knn_align(
                prior,
                prompt,
                k=self.k,
                ridge=self.ridge,
                neighbour_margin=self.neighbour_margin,
                keep_known=self.keep_known,
                estimator=self.estimator,
                inverse_depth_range=self.inverse_depth_range,
                points=points,
                neighbours=None if neighbours is None else _first(neighbours, self.k),
                workers=self.workers,
            )
        if name == "local_plane":
            return local_plane(
                prompt,
                k=self.plane_k,
                ridge=self.plane_ridge,
                keep_known=self.keep_known,
                inverse_depth_range=self.inverse_depth_range,
                points=points,
                neighbours=None if neighbours is None else _first(neighbours, self.plane_k),
                workers=self.workers,
            )
        assert neighbours is not None
        nearest = take(points.inverse_depth, _first(neighbours, 1))
        return finish(nearest, nearest, points, _first(neighbours, 1), None, True, self.inverse_depth_range)

    def _interpolated(self, prompt: SparsePrompt, points: PromptPoints) -> Float[Tensor, "B 1 H W"]:
        dense = prompt.interpolated_inverse_depth
        if dense is None:  # one image after another on the host: a recipe that trains with it lets the loader do this
            pairs = zip(prompt.depth_m.detach().cpu().numpy(), present_pixels(prompt).cpu().numpy(), strict=True)
            images = [torch.from_numpy(linear_inverse_depth(depth_m[0], there[0])) for depth_m, there in pairs]
            dense = torch.stack(images)[:, None].to(prompt.depth_m.device)
        usable = points.valid.any(dim=1)[:, None, None, None]
        return torch.where(usable, dense, EMPTY_INVERSE_DEPTH).clamp(*self.inverse_depth_range)


def _first(neighbours: Neighbours, k: int) -> Neighbours:
    return Neighbours(*(values[:, :k] for values in neighbours))
