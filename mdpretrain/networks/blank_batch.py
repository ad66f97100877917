"""Batches without content, for counting and timing: the shapes and types that the data pipeline delivers."""

from __future__ import annotations

import torch

from mdpretrain.structures import DepthBatch, PreparedPrompt, SparsePrompt


def blank_batch(
    images: int, height: int, width: int, maps: tuple[str, ...] = (), points: int = 0, device: str | torch.device = "cpu"
) -> DepthBatch:
    """Noise images whose depth is 1 to 5 m everywhere, of metric rendered samples with f_px = width.

    Args:
        images, height, width: the size of the batch.
        maps: prepared maps to give it (copies of the true inverse depth); none: no prepared prompt.
        points: prompt points per image, at random places; 0 (and no maps): no prompt.
        device: where it is made.
    """
    generator = torch.Generator().manual_seed(0)
    depth = 1 + 4 * torch.rand(images, 1, height, width, generator=generator)
    prompt = prepared = None
    if points or maps:
        mask = torch.rand(images, 1, height, width, generator=generator) < points / (height * width)
        prompt = SparsePrompt(torch.where(mask, depth, 0.0), mask)
    yes, no = torch.ones(images, dtype=torch.bool), torch.zeros(images, dtype=torch.bool)
    if maps and prompt is not None:
        prepared = PreparedPrompt((1 / depth).repeat(1, len(maps), 1, 1), maps, prompt, yes.clone())
    camera = torch.tensor([[float(width), 0, width / 2], [0, float(width), height / 2], [0, 0, 1]])
    batch = DepthBatch(
        image=torch.rand(images, 3, height, width, generator=generator),
        depth=depth,
        valid=torch.ones_like(depth, dtype=torch.bool),
        sky=torch.zeros_like(depth, dtype=torch.bool),
        intrinsics=camera.repeat(images, 1, 1),
        camera_known=yes,
        metric=yes.clone(),
        depth_is_ray=no,
        label_kind=torch.full((images,), 2),
        position=torch.arange(images),
        key=[f"blank/{index}" for index in range(images)],
        source=["blank"] * images,
        prompt=prompt,
        prepared=prepared,
    )
    return batch.to(device)
