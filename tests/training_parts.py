"""Small batches, networks and tasks that the tests of tasks, engine and command line share."""

from __future__ import annotations

import pathlib
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mdpretrain.engine.csv_log import CsvLog
from mdpretrain.engine.step_guard import StepGuard, StepGuardOptions
from mdpretrain.engine.step_seed import StepSeed
from mdpretrain.losses.table import LossTable
from mdpretrain.networks.module_config import build_module
from mdpretrain.structures import DepthBatch, SparsePrompt

HEIGHT, WIDTH = 48, 64

ENCODER: dict[str, Any] = {
    "class_path": "mdpretrain.networks.encoders.timm_encoder.TimmEncoder",
    "init_args": {
        "model_name": "vit_tiny_patch16_dinov3_qkvb",
        "layers": [0, 1],
        "model_args": {"depth": 2, "embed_dim": 24, "num_heads": 2},
    },
}
PRIOR_NETWORK: dict[str, Any] = {
    "class_path": "mdpretrain.networks.any_depth.AnyDepth",
    "init_args": {"encoder": ENCODER, "width": 16, "stage_widths": [16, 16], "head_widths": [8, 8]},
}
TEACHER_NETWORK: dict[str, Any] = {
    "class_path": "mdpretrain.networks.metric_anything.MetricAnythingTeacher",
    "init_args": {"encoder": ENCODER, "features": 16, "scales": [4.0, 2.0], "output": "residual", "detail_channels": 8},
}
STUDENT_NETWORK: dict[str, Any] = {
    "class_path": "mdpretrain.networks.metric_anything.MetricAnythingStudent",
    "init_args": {"encoder": ENCODER, "features": 16},
}
PREPARATION: dict[str, Any] = {
    "class_path": "mdpretrain.prompts.preparation.PromptPreparation",
    "init_args": {"maps": ["global", "local"]},
}


def make_batch(seed: int = 0, size: int = 2, prompt_points: int | None = None, camera: bool = True) -> DepthBatch:
    """A batch of smooth depth (1 to 5 m) under noise images, optionally with a prompt."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 1 + 4 * torch.rand(size, 1, 3, 4, generator=generator)
    depth = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)
    intrinsics = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]]).repeat(size, 1, 1)
    prompt = None
    if prompt_points is not None:
        mask = torch.rand(size, 1, HEIGHT, WIDTH, generator=generator) < prompt_points / (HEIGHT * WIDTH)
        prompt = SparsePrompt(torch.where(mask, depth, torch.zeros_like(depth)), mask)
    return DepthBatch(
        image=torch.rand(size, 3, HEIGHT, WIDTH, generator=generator) * 0.5 + depth / 10,
        depth=depth,
        valid=torch.ones_like(depth, dtype=torch.bool),
        sky=torch.zeros_like(depth, dtype=torch.bool),
        intrinsics=intrinsics if camera else torch.full_like(intrinsics, torch.nan),
        camera_known=torch.full((size,), camera),
        metric=torch.ones(size, dtype=torch.bool),
        depth_is_ray=torch.zeros(size, dtype=torch.bool),
        label_kind=torch.full((size,), 2),
        position=torch.arange(size) + seed * size,
        key=[f"scene_{seed}/view_{index}" for index in range(size)],
        source=["rendered"] * size,
        prompt=prompt,
    )


class _Batches(torch.utils.data.Dataset):
    def __init__(self, count: int, size: int, prompt_points: int | None) -> None:
        self.count, self.size, self.prompt_points = count, size, prompt_points

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> DepthBatch:
        return make_batch(index, self.size, self.prompt_points)


def batch_loader(count: int, size: int = 2, prompt_points: int | None = None) -> DataLoader:
    """``count`` different batches in a fixed order."""
    return DataLoader(_Batches(count, size, prompt_points), batch_size=None)


def build(config: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """A module from its config, with reproducible weights."""
    torch.manual_seed(seed)
    return build_module(config)


def mae_table(**row: Any) -> LossTable:
    """The plainest loss table of a metric task."""
    return LossTable({"default": [{"name": "mae", **row}]})


def ssi_table() -> LossTable:
    """The plainest loss table of an affine-invariant task."""
    return LossTable({"default": [{"name": "ssi_mae"}]})


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A detached copy of every weight."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def make_trainer(folder: pathlib.Path, steps: int, **options: Any) -> lightning.Trainer:
    """A trainer of ``steps`` steps on the CPU that logs every one into ``folder``; a refused step ends it, unless told otherwise."""
    settings: dict[str, Any] = {
        "max_steps": steps,
        "max_epochs": -1,
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": CsvLog(folder),
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "callbacks": [StepSeed(0), StepGuard(StepGuardOptions(max_in_a_row=0))],
        **options,
    }
    return lightning.Trainer(**settings)
